package runtime

import (
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Paths in /proc and /sys that a container with procMount Default must not read
// or must not write.
var (
	maskedPaths = []string{"/proc/asound", "/proc/acpi", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/timer_list",
		"/proc/timer_stats", "/proc/sched_debug", "/proc/scsi", "/sys/firmware", "/sys/devices/virtual/powercap"}
	readonlyPaths = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// effective is the security context of c: the pod's, overlaid field by field.
func effective(p *v1.Pod, c *v1.Container) v1.SecurityContext {
	var s v1.SecurityContext
	if c.SecurityContext != nil {
		s = *c.SecurityContext
	}
	if ps := p.Spec.SecurityContext; ps != nil {
		overlay(&s.SELinuxOptions, ps.SELinuxOptions)
		overlay(&s.RunAsUser, ps.RunAsUser)
		overlay(&s.RunAsGroup, ps.RunAsGroup)
		overlay(&s.RunAsNonRoot, ps.RunAsNonRoot)
		overlay(&s.SeccompProfile, ps.SeccompProfile)
	}
	// The annotation is older than the field, and stands between the two levels of it.
	overlay(&s.AppArmorProfile, annotatedAppArmor(p, c))
	if ps := p.Spec.SecurityContext; ps != nil {
		overlay(&s.AppArmorProfile, ps.AppArmorProfile)
	}
	return s
}

// annotatedAppArmor is the profile that the pod's annotation for c names, nil if
// there is none. One that is not spelled right asks for what no host has.
func annotatedAppArmor(p *v1.Pod, c *v1.Container) *v1.AppArmorProfile {
	text, ok := p.Annotations[v1.DeprecatedAppArmorBetaContainerAnnotationKeyPrefix+c.Name]
	if !ok || text == "" {
		return nil
	}
	switch text {
	case v1.DeprecatedAppArmorBetaProfileRuntimeDefault:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}
	case v1.DeprecatedAppArmorBetaProfileNameUnconfined:
		return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeUnconfined}
	}
	name := strings.TrimPrefix(text, v1.DeprecatedAppArmorBetaProfileNamePrefix)
	return &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeLocalhost, LocalhostProfile: &name}
}

func overlay[T any](own **T, from *T) {
	if *own == nil {
		*own = from
	}
}

func yes(b *bool) bool { return b != nil && *b }

// imageUser is who an image runs as.
type imageUser struct {
	uid  *int64
	name string
}

// peers are what a container shares with others beyond what its pod says.
type peers struct {
	target string         // the container whose processes an ephemeral container is to see
	ids    *pod.IDMapping // of the pod's user namespace
}

// containerSecurity translates c's security context.
func (c Config) containerSecurity(p *v1.Pod, ctr *v1.Container, user imageUser, with peers) (*cri.LinuxContainerSecurityContext, error) {
	s := effective(p, ctr)
	if err := nonRoot(p, ctr, s, user); err != nil {
		return nil, err
	}
	seccomp, err := c.seccomp(s.SeccompProfile)
	if err != nil {
		return nil, err
	}
	out := &cri.LinuxContainerSecurityContext{
		Privileged:       yes(s.Privileged),
		NamespaceOptions: namespaces(p, with.ids),
		SelinuxOptions:   selinux(s.SELinuxOptions),
		ReadonlyRootfs:   yes(s.ReadOnlyRootFilesystem),
		NoNewPrivs:       s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation,
		Seccomp:          seccomp,
	}
	out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(p)
	if with.target != "" && out.NamespaceOptions.Pid == cri.NamespaceMode_CONTAINER {
		out.NamespaceOptions.Pid, out.NamespaceOptions.TargetId = cri.NamespaceMode_TARGET, with.target
	}
	out.Capabilities = capabilities(s.Capabilities)
	runAs(out, s, user)
	if s.ProcMount == nil || *s.ProcMount == v1.DefaultProcMount {
		out.MaskedPaths, out.ReadonlyPaths = c.masked, readonlyPaths
	}
	if a := s.AppArmorProfile; a != nil {
		if !c.Node.AppArmor && a.Type != v1.AppArmorProfileTypeUnconfined {
			return nil, failAs(opConfig, pod.Invalid, fmt.Errorf("cannot enforce AppArmor profile of type %s: AppArmor is not enabled on the host", a.Type))
		}
		if c.Node.AppArmor {
			//lint:ignore SA1019 older runtimes read only this form
			out.Apparmor, out.ApparmorProfile, err = apparmor(a)
		}
	}
	return out, err
}

func capabilities(c *v1.Capabilities) *cri.Capability {
	if c == nil {
		return nil
	}
	out := &cri.Capability{}
	for _, name := range c.Add {
		out.AddCapabilities = append(out.AddCapabilities, string(name))
	}
	for _, name := range c.Drop {
		out.DropCapabilities = append(out.DropCapabilities, string(name))
	}
	return out
}

// runAs says who the container runs as: the pod's word, else the image's.
func runAs(out *cri.LinuxContainerSecurityContext, s v1.SecurityContext, user imageUser) {
	switch {
	case s.RunAsUser != nil:
		out.RunAsUser = &cri.Int64Value{Value: *s.RunAsUser}
	case user.uid != nil:
		out.RunAsUser = &cri.Int64Value{Value: *user.uid}
	case user.name != "":
		out.RunAsUsername = user.name
	}
	if s.RunAsGroup != nil {
		out.RunAsGroup = &cri.Int64Value{Value: *s.RunAsGroup}
	}
}

// maskedOn are the masked paths of this host: those that tell of its temperature
// are there for some CPUs only.
func maskedOn() []string {
	throttle, _ := filepath.Glob("/sys/devices/system/cpu/cpu*/thermal_throttle") // the pattern is valid
	return append(maskedPaths[:len(maskedPaths):len(maskedPaths)], throttle...)
}

// nonRoot refuses a container that must not run as root and would.
func nonRoot(p *v1.Pod, c *v1.Container, s v1.SecurityContext, user imageUser) error {
	if !yes(s.RunAsNonRoot) {
		return nil
	}
	at := fmt.Sprintf("(pod: %q, container: %s)", fmt.Sprintf("%s_%s(%s)", p.Name, p.Namespace, p.UID), c.Name)
	var err error
	switch {
	case s.RunAsUser != nil && *s.RunAsUser == 0:
		err = fmt.Errorf("container's runAsUser breaks non-root policy %s", at)
	case s.RunAsUser != nil:
	case user.uid != nil && *user.uid == 0:
		err = fmt.Errorf("container has runAsNonRoot and image will run as root %s", at)
	case user.uid != nil && *user.uid < 0:
		err = fmt.Errorf("container has runAsNonRoot and image has an invalid user id (%d) %s", *user.uid, at)
	case user.uid == nil && user.name != "":
		err = fmt.Errorf("container has runAsNonRoot and image has non-numeric user (%s), cannot verify user is non-root %s", user.name, at)
	case user.uid == nil:
		err = fmt.Errorf("container has runAsNonRoot and image will run as root %s", at)
	}
	if err != nil {
		return failAs(opConfig, pod.Invalid, err)
	}
	return nil
}

// seccomp translates a profile; none means the runtime's own where that is the node's default.
func (c Config) seccomp(p *v1.SeccompProfile) (*cri.SecurityProfile, error) {
	if p == nil {
		if c.SeccompDefault {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	}
	switch p.Type {
	case v1.SeccompProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, nil
	case v1.SeccompProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, nil
	case v1.SeccompProfileTypeLocalhost:
		if p.LocalhostProfile == nil || !filepath.IsLocal(*p.LocalhostProfile) {
			return nil, failAs(opConfig, pod.Invalid, errors.New("localhostProfile must be set to a path below the seccomp directory if seccompProfile type is Localhost"))
		}
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: filepath.Join(c.RootDir, "seccomp", *p.LocalhostProfile)}, nil
	}
	return nil, failAs(opConfig, pod.Invalid, fmt.Errorf("seccompProfile type %q is not known", p.Type))
}

// apparmor returns the profile in both forms that runtimes read.
// What it does not know is refused: a container must not run unconfined by mistake.
func apparmor(p *v1.AppArmorProfile) (*cri.SecurityProfile, string, error) {
	switch p.Type {
	case v1.AppArmorProfileTypeRuntimeDefault:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault}, v1.DeprecatedAppArmorBetaProfileRuntimeDefault, nil
	case v1.AppArmorProfileTypeUnconfined:
		return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Unconfined}, v1.DeprecatedAppArmorBetaProfileNameUnconfined, nil
	case v1.AppArmorProfileTypeLocalhost:
		if name := p.LocalhostProfile; name != nil && *name != "" {
			return &cri.SecurityProfile{ProfileType: cri.SecurityProfile_Localhost, LocalhostRef: *name}, v1.DeprecatedAppArmorBetaProfileNamePrefix + *name, nil
		}
		return nil, "", failAs(opConfig, pod.Invalid, errors.New("localhostProfile must be set if appArmorProfile type is Localhost"))
	}
	return nil, "", failAs(opConfig, pod.Invalid, fmt.Errorf("appArmorProfile type %q is not known", p.Type))
}

func selinux(o *v1.SELinuxOptions) *cri.SELinuxOption {
	if o == nil {
		return nil
	}
	return &cri.SELinuxOption{User: o.User, Role: o.Role, Type: o.Type, Level: o.Level}
}

// groups are fsGroup and the supplemental groups, which every container gets.
func groups(p *v1.Pod) ([]int64, cri.SupplementalGroupsPolicy) {
	s := p.Spec.SecurityContext
	if s == nil {
		return nil, cri.SupplementalGroupsPolicy_Merge
	}
	var all []int64
	if s.FSGroup != nil {
		all = append(all, *s.FSGroup)
	}
	all = append(all, s.SupplementalGroups...)
	if s.SupplementalGroupsPolicy != nil && *s.SupplementalGroupsPolicy == v1.SupplementalGroupsPolicyStrict {
		return all, cri.SupplementalGroupsPolicy_Strict
	}
	return all, cri.SupplementalGroupsPolicy_Merge
}

// namespaces says which the pod shares with the node, and which its containers
// share; ids are those of its own user namespace, if it has one.
func namespaces(p *v1.Pod, ids *pod.IDMapping) *cri.NamespaceOption {
	n := &cri.NamespaceOption{
		Ipc: cri.NamespaceMode_POD, Network: cri.NamespaceMode_POD, Pid: cri.NamespaceMode_CONTAINER,
		UsernsOptions: usernsOptions(ids),
	}
	if p.Spec.HostIPC {
		n.Ipc = cri.NamespaceMode_NODE
	}
	if p.Spec.HostNetwork {
		n.Network = cri.NamespaceMode_NODE
	}
	switch {
	case p.Spec.HostPID:
		n.Pid = cri.NamespaceMode_NODE
	case yes(p.Spec.ShareProcessNamespace):
		n.Pid = cri.NamespaceMode_POD
	}
	return n
}

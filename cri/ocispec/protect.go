package ocispec

import (
	"encoding/base64"
	"encoding/json"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var (
	defaultMasked = []string{
		"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys", "/proc/latency_stats", "/proc/sched_debug",
		"/proc/scsi", "/proc/timer_list", "/proc/timer_stats", "/sys/devices/virtual/powercap", "/sys/firmware",
	}
	defaultReadonly = []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
)

// setProtections hides the kernel's private parts and sets the AppArmor profile.
func setProtections(spec *specs.Spec, in Input, _ *notes) error {
	sec := in.Config.GetLinux().GetSecurityContext()
	if privileged(in) {
		// By default it has none; one that is named is meant.
		if kind, _ := AppArmorProfile(sec); kind != runtimeapi.SecurityProfile_Localhost {
			return nil
		}
		profile, err := apparmor(sec, in.Host)
		spec.Process.ApparmorProfile = profile
		return err
	}
	spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = sec.GetMaskedPaths(), sec.GetReadonlyPaths()
	// On the wire "nothing masked" and "nothing said" look alike. Kubernetes
	// allows an unmasked /proc only in a user namespace, so elsewhere it is
	// nothing said.
	if len(spec.Linux.MaskedPaths) == 0 && len(spec.Linux.ReadonlyPaths) == 0 && in.Sandbox.Users.NS == "" {
		spec.Linux.MaskedPaths, spec.Linux.ReadonlyPaths = defaultMasked, defaultReadonly
	}
	profile, err := apparmor(sec, in.Host)
	if err != nil {
		return err
	}
	spec.Process.ApparmorProfile = profile
	return nil
}

// AppArmorProfile reads which profile is asked for; name is that of a Localhost one.
func AppArmorProfile(sec *runtimeapi.LinuxContainerSecurityContext) (kind runtimeapi.SecurityProfile_ProfileType, name string) {
	//lint:ignore SA1019 older clients send only the deprecated field
	switch p, old := sec.GetApparmor(), sec.GetApparmorProfile(); {
	case p != nil:
		kind, name = p.GetProfileType(), p.GetLocalhostRef()
	case old == "" || old == "runtime/default":
	case old == "unconfined":
		kind = runtimeapi.SecurityProfile_Unconfined
	default:
		kind, name = runtimeapi.SecurityProfile_Localhost, old
	}
	return kind, strings.TrimPrefix(name, "localhost/")
}

// apparmor names the profile. RuntimeDefault without AppArmor on the host is
// nothing; a profile asked for by name and not enforceable is an error.
func apparmor(sec *runtimeapi.LinuxContainerSecurityContext, host Host) (string, error) {
	kind, name := AppArmorProfile(sec)
	switch kind {
	case runtimeapi.SecurityProfile_Unconfined:
		return "", nil
	case runtimeapi.SecurityProfile_Localhost:
		if !host.AppArmor {
			return "", unsupported("AppArmor profile %q", name)
		}
		if name == "" {
			return "", invalid("an AppArmor profile of type Localhost needs a name")
		}
		return name, nil
	}
	if !host.AppArmor {
		return "", nil
	}
	return host.AppArmorDefault, nil
}

// setSeccomp sets the filter. A privileged container has none.
func setSeccomp(spec *specs.Spec, in Input, n *notes) error {
	sec := in.Config.GetLinux().GetSecurityContext()
	if sec.GetPrivileged() || sec.GetSeccomp() == nil {
		return nil
	}
	switch sec.GetSeccomp().GetProfileType() {
	case runtimeapi.SecurityProfile_Unconfined:
		return nil
	case runtimeapi.SecurityProfile_Localhost:
		if !in.Host.Seccomp {
			return unsupported("seccomp profile %q", sec.GetSeccomp().GetLocalhostRef())
		}
		if in.LocalSeccomp == nil {
			return invalid("seccomp profile %q has not been loaded", sec.GetSeccomp().GetLocalhostRef())
		}
		spec.Linux.Seccomp = in.LocalSeccomp
		return nil
	case runtimeapi.SecurityProfile_RuntimeDefault:
		if !in.Host.Seccomp {
			n.add("the default seccomp profile is left out: this kernel has no seccomp filters")
			return nil
		}
		spec.Linux.Seccomp = seccomp.DefaultProfile(spec)
		return nil
	}
	return invalid("unknown seccomp profile type %s", sec.GetSeccomp().GetProfileType())
}

// CompiledSeccomp puts a filter that crun has compiled from spec's own seccomp
// section beside that section, which takes two thirds off a container's
// creation. A runtime that does not know the annotation compiles the section.
func CompiledSeccomp(spec *specs.Spec, bpf []byte) {
	if spec.Linux.Seccomp != nil && len(bpf) > 0 {
		spec.Annotations["run.oci.seccomp_bpf_data"] = base64.StdEncoding.EncodeToString(bpf)
	}
}

// ParseSeccomp reads a Localhost profile in the OCI's JSON form. It refuses
// what would silently filter nothing.
func ParseSeccomp(raw []byte) (*specs.LinuxSeccomp, error) {
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(raw, &p); err != nil {
		return nil, invalid("seccomp profile is not valid JSON: %v", err)
	}
	if p.DefaultAction == "" {
		return nil, invalid("seccomp profile has no defaultAction")
	}
	return &p, nil
}

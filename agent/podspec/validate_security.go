package podspec

import (
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/component-helpers/node/util/sysctl"
)

func (c *checker) user(at *field.Path, id *int64) {
	if id != nil {
		c.invalid(at, *id, validation.IsValidUserID(*id)...)
	}
}

func (c *checker) group(at *field.Path, id *int64) {
	if id != nil {
		c.invalid(at, *id, validation.IsValidGroupID(*id)...)
	}
}

// ownUsers: the pod has a user namespace of its own.
func (c *checker) ownUsers() bool { return c.spec.HostUsers != nil && !*c.spec.HostUsers }

func (c *checker) podSecurity(spec, at *field.Path) {
	s := c.pod
	c.group(at.Child("fsGroup"), s.FSGroup)
	c.user(at.Child("runAsUser"), s.RunAsUser)
	c.group(at.Child("runAsGroup"), s.RunAsGroup)
	for i, g := range s.SupplementalGroups {
		c.group(at.Child("supplementalGroups").Index(i), &g)
	}
	if c.spec.HostPID && isTrue(c.spec.ShareProcessNamespace) {
		c.invalid(at.Child("shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled")
	}
	c.sysctls(at.Child("sysctls"))
	if p := s.FSGroupChangePolicy; p != nil {
		oneOf(&c.findings, at.Child("fsGroupChangePolicy"), *p, v1.FSGroupChangeAlways, v1.FSGroupChangeOnRootMismatch)
	}
	c.seccomp(s.SeccompProfile, at.Child("seccompProfile"))
	c.appArmor(s.AppArmorProfile, at.Child("appArmorProfile"))
	c.windowsOptions(s.WindowsOptions, at.Child("windowsOptions"))
	if p := s.SupplementalGroupsPolicy; p != nil {
		oneOf(&c.findings, at.Child("supplementalGroupsPolicy"), *p, v1.SupplementalGroupsPolicyMerge, v1.SupplementalGroupsPolicyStrict)
	}
	if p := s.SELinuxChangePolicy; p != nil { // MountOption is behind a gate that is off
		oneOf(&c.findings, at.Child("seLinuxChangePolicy"), *p, v1.SELinuxChangePolicyRecursive)
	}
	c.hostUsers(spec)
}

// hostUsers: users of its own go with no other namespace of the host, nor with
// devices, whose owner nobody can map.
func (c *checker) hostUsers(at *field.Path) {
	if !c.ownUsers() {
		return
	}
	for _, f := range []struct {
		name string
		set  bool
	}{{"hostNetwork", c.spec.HostNetwork}, {"HostPID", c.spec.HostPID}, {"HostIPC", c.spec.HostIPC}} {
		if f.set {
			c.forbidden(at.Child(f.name), "when `hostUsers` is false")
		}
	}
	c.each(at, func(k *v1.Container, at *field.Path) {
		if len(k.VolumeDevices) > 0 {
			c.forbidden(at.Child("volumeDevices"), "when `hostUsers` is false")
		}
	})
}

func (c *checker) containerSecurity(s *v1.SecurityContext, at *field.Path) {
	if s == nil {
		return
	}
	c.user(at.Child("runAsUser"), s.RunAsUser)
	c.group(at.Child("runAsGroup"), s.RunAsGroup)
	if p := s.ProcMount; p != nil {
		oneOf(&c.findings, at.Child("procMount"), *p, v1.DefaultProcMount, v1.UnmaskedProcMount)
		if *p == v1.UnmaskedProcMount && !c.ownUsers() {
			c.invalid(at.Child("procMount"), *p, "`hostUsers` must be false to use `Unmasked`")
		}
	}
	c.seccomp(s.SeccompProfile, at.Child("seccompProfile"))
	if s.AllowPrivilegeEscalation != nil && !*s.AllowPrivilegeEscalation {
		if isTrue(s.Privileged) {
			c.invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true")
		}
		if s.Capabilities != nil {
			for _, added := range s.Capabilities.Add {
				if added == "CAP_SYS_ADMIN" {
					c.invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN")
				}
			}
		}
	}
	c.windowsOptions(s.WindowsOptions, at.Child("windowsOptions"))
	c.appArmor(s.AppArmorProfile, at.Child("appArmorProfile"))
}

func (c *checker) seccomp(p *v1.SeccompProfile, at *field.Path) {
	if p == nil {
		return
	}
	chosen(&c.findings, at.Child("type"), p.Type, v1.SeccompProfileTypeLocalhost, v1.SeccompProfileTypeRuntimeDefault, v1.SeccompProfileTypeUnconfined)
	at = at.Child("localhostProfile")
	switch local := p.Type == v1.SeccompProfileTypeLocalhost; {
	case local && p.LocalhostProfile == nil:
		c.required(at, "must be set when seccomp type is Localhost")
	case local:
		c.below(at, *p.LocalhostProfile)
	case p.LocalhostProfile != nil:
		c.invalid(at, *p.LocalhostProfile, "can only be set when seccomp type is Localhost")
	}
}

// maxProfile is the longest path that the kernel takes, without its final zero.
const maxProfile = 4095

func (c *checker) appArmor(p *v1.AppArmorProfile, at *field.Path) {
	if p == nil {
		return
	}
	chosen(&c.findings, at.Child("type"), p.Type, v1.AppArmorProfileTypeLocalhost, v1.AppArmorProfileTypeRuntimeDefault, v1.AppArmorProfileTypeUnconfined)
	at = at.Child("localhostProfile")
	switch p.Type {
	case v1.AppArmorProfileTypeLocalhost:
		const missing = "must be set when AppArmor type is Localhost"
		if p.LocalhostProfile == nil {
			c.required(at, missing)
			return
		}
		name := *p.LocalhostProfile
		if name != strings.TrimSpace(name) {
			c.invalid(at, name, "must not be padded with whitespace")
		} else if name == "" {
			c.required(at, missing)
		}
		if len(name) > maxProfile {
			c.add(field.TooLong(at, "", maxProfile))
		}
	case v1.AppArmorProfileTypeRuntimeDefault, v1.AppArmorProfileTypeUnconfined:
		if p.LocalhostProfile != nil {
			c.invalid(at, *p.LocalhostProfile, "can only be set when AppArmor type is Localhost")
		}
	}
}

// A sysctl is named with dots or slashes, and is not longer than an object's name.
var sysctlName = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*[a-z0-9]([-_a-z0-9]*[a-z0-9])?$`)

const maxSysctl = 253

func (c *checker) sysctls(at *field.Path) {
	seen := sets.New[string]()
	for i, s := range c.pod.Sysctls {
		at := at.Index(i).Child("name")
		switch {
		case s.Name == "":
			c.required(at, "")
		case len(s.Name) > maxSysctl || !sysctlName.MatchString(s.Name):
			c.invalid(at, s.Name, "must be at most 253 lower case letters, digits, '-' and '_', with '.' or '/' between its parts")
		case seen.Has(s.Name):
			c.add(field.Duplicate(at, s.Name))
		}
		seen.Insert(s.Name)
		switch ns, _, _ := sysctl.GetNamespace(s.Name); {
		case c.spec.HostNetwork && ns == sysctl.NetNamespace:
			c.invalid(at, s.Name, "may not be specified when 'hostNetwork' is true")
		case c.spec.HostIPC && ns == sysctl.IPCNamespace:
			c.invalid(at, s.Name, "may not be specified when 'hostIPC' is true")
		}
	}
}

// system checks what depends on the operating system that the pod is for.
func (c *checker) system(at *field.Path) {
	c.hostProcess(at)
	os := c.spec.OS
	switch {
	case os == nil:
	case os.Name == "":
		c.required(at.Child("os", "name"), "")
	case os.Name == v1.Linux:
		c.notForLinux(at)
	case os.Name == v1.Windows:
		c.notForWindows(at)
	default:
		c.add(field.NotSupported(at.Child("os"), os.Name, slices.Sorted(slices.Values([]v1.OSName{v1.Linux, v1.Windows}))))
	}
}

func (c *checker) notForLinux(at *field.Path) {
	const why = "windows options cannot be set for a linux pod"
	if c.pod.WindowsOptions != nil {
		c.forbidden(at.Child("securityContext", "windowsOptions"), why)
	}
	c.each(at, func(k *v1.Container, at *field.Path) {
		if k.SecurityContext != nil && k.SecurityContext.WindowsOptions != nil {
			c.forbidden(at.Child("securityContext", "windowsOptions"), why)
		}
	})
}

package podspec

import (
	"fmt"
	"regexp"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What only Linux knows: a security context for Windows may not set it.
var (
	linuxPod = sets.New("appArmorProfile", "seLinuxOptions", "seccompProfile", "fsGroup", "fsGroupChangePolicy", "sysctls",
		"runAsUser", "runAsGroup", "supplementalGroups", "supplementalGroupsPolicy", "seLinuxChangePolicy")
	linuxContainer = sets.New("appArmorProfile", "seLinuxOptions", "seccompProfile", "capabilities", "readOnlyRootFilesystem",
		"privileged", "allowPrivilegeEscalation", "procMount", "runAsUser", "runAsGroup")
)

func (c *checker) notForWindows(at *field.Path) {
	const why = "cannot be set for a windows pod"
	for _, f := range []struct {
		name string
		set  bool
	}{
		{"hostUsers", c.spec.HostUsers != nil}, {"hostPID", c.spec.HostPID}, {"hostIPC", c.spec.HostIPC},
		{"shareProcessNamespace", c.spec.ShareProcessNamespace != nil},
	} {
		if f.set {
			c.forbidden(at.Child(f.name), why)
		}
	}
	pod := *c.pod
	if len(pod.Sysctls) == 0 {
		pod.Sysctls = nil
	}
	c.noneOf(pod, linuxPod, at.Child("securityContext"), why)
	c.each(at, func(k *v1.Container, at *field.Path) {
		if s := k.SecurityContext; s != nil {
			c.noneOf(*s, linuxContainer, at.Child("securityContext"), why)
		}
	})
}

// hostProcess: a pod of Windows runs wholly as processes of the host, or not at all.
func (c *checker) hostProcess(at *field.Path) {
	var pod *bool
	if w := c.pod.WindowsOptions; w != nil {
		pod = w.HostProcess
	}
	all, host := 0, 0
	c.each(at, func(k *v1.Container, at *field.Path) {
		own := pod
		if s := k.SecurityContext; s != nil && s.WindowsOptions != nil && s.WindowsOptions.HostProcess != nil {
			own = s.WindowsOptions.HostProcess
			if pod != nil && *pod != *own {
				c.invalid(at.Child("securityContext", "windowsOptions", "hostProcess"), *own,
					fmt.Sprintf("pod hostProcess value must be identical if both are specified, was %v", *pod))
			}
		}
		all++
		if isTrue(own) {
			host++
		}
	})
	if host > 0 && host != all {
		c.invalid(at, "", "If pod contains any hostProcess containers then all containers must be HostProcess containers")
	}
	if host > 0 && !c.spec.HostNetwork {
		c.invalid(at.Child("hostNetwork"), false, "hostNetwork must be true if pod contains any hostProcess containers")
	}
}

// Bounds of what Windows is told about who runs a container.
const (
	maxCredentialSpec = 64 << 10 // bytes
	maxDomain         = 255
	maxUser           = 104
)

// A domain is a NetBIOS name of at most 15 characters or a DNS name.
var (
	windowsControl = regexp.MustCompile(`[[:cntrl:]]`)
	netBIOSDomain  = regexp.MustCompile(`^[^\\/:*?"<>|.][^\\/:*?"<>|]{0,14}$`)
	dnsDomain      = regexp.MustCompile(`^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$`)
)

func (c *checker) windowsOptions(w *v1.WindowsSecurityContextOptions, at *field.Path) {
	if w == nil {
		return
	}
	if name := w.GMSACredentialSpecName; name != nil {
		c.invalid(at.Child("gmsaCredentialSpecName"), *name, validation.IsDNS1123Subdomain(*name)...)
	}
	if spec := w.GMSACredentialSpec; spec != nil && (*spec == "" || len(*spec) > maxCredentialSpec) {
		c.invalid(at.Child("gmsaCredentialSpec"), len(*spec), "must have from 1 to 65536 bytes")
	}
	if w.RunAsUserName != nil {
		c.windowsUser(*w.RunAsUserName, at.Child("runAsUserName"))
	}
}

// windowsUser checks USER or DOMAIN\USER.
func (c *checker) windowsUser(name string, at *field.Path) {
	switch {
	case name == "":
		c.invalid(at, name, "must not be empty")
		return
	case windowsControl.MatchString(name):
		c.invalid(at, name, "must not contain control characters")
		return
	case strings.Count(name, `\`) > 1:
		c.invalid(at, name, "must not contain more than one backslash")
		return
	}
	user := name
	if domain, u, ok := strings.Cut(name, `\`); ok {
		user = u
		if len(domain) > maxDomain {
			c.invalid(at, name, fmt.Sprintf("its domain must not be longer than %d characters", maxDomain))
		}
		if !netBIOSDomain.MatchString(domain) && !dnsDomain.MatchString(domain) {
			c.invalid(at, name, "its domain must be a NetBIOS or a DNS name")
		}
	}
	if user == "" {
		c.invalid(at, name, "its user must not be empty")
	} else if len(user) > maxUser {
		c.invalid(at, name, fmt.Sprintf("its user must not be longer than %d characters", maxUser))
	}
	if user != "" && strings.Trim(user, ". ") == "" {
		c.invalid(at, name, "its user must not be of dots and spaces alone")
	}
	if strings.ContainsAny(user, `"/\:;|=,+*?<>@[]`) {
		c.invalid(at, name, `its user must not contain any of "/\:;|=,+*?<>@[]`)
	}
}

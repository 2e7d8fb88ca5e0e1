package source

import (
	"fmt"
	"math"
	"path"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func ids(at *field.Path, name string, id *int64) field.ErrorList {
	if id == nil {
		return nil
	}
	return within(at.Child(name), *id, 0, math.MaxInt32)
}

func validatePodSecurity(s *v1.PodSpec, at *field.Path) (errs field.ErrorList) {
	c := s.SecurityContext
	if s.HostPID && s.ShareProcessNamespace != nil && *s.ShareProcessNamespace {
		errs = append(errs, field.Invalid(field.NewPath("spec", "shareProcessNamespace"), true, "ShareProcessNamespace and HostPID cannot both be enabled"))
	}
	errs = append(errs, ids(at, "runAsUser", c.RunAsUser)...)
	errs = append(errs, ids(at, "runAsGroup", c.RunAsGroup)...)
	errs = append(errs, ids(at, "fsGroup", c.FSGroup)...)
	for i, g := range c.SupplementalGroups {
		errs = append(errs, within(at.Child("supplementalGroups").Index(i), g, 0, math.MaxInt32)...)
	}
	if p := c.SupplementalGroupsPolicy; p != nil {
		errs = append(errs, oneOf(at.Child("supplementalGroupsPolicy"), *p, v1.SupplementalGroupsPolicyMerge, v1.SupplementalGroupsPolicyStrict)...)
	}
	if p := c.FSGroupChangePolicy; p != nil {
		errs = append(errs, oneOf(at.Child("fsGroupChangePolicy"), *p, v1.FSGroupChangeOnRootMismatch, v1.FSGroupChangeAlways)...)
	}
	errs = append(errs, validateSeccomp(c.SeccompProfile, at.Child("seccompProfile"))...)
	seen := sets.New[string]()
	for i, sysctl := range c.Sysctls {
		at := at.Child("sysctls").Index(i).Child("name")
		name := strings.ReplaceAll(sysctl.Name, "/", ".")
		switch {
		case name == "":
			errs = append(errs, field.Required(at, ""))
		case seen.Has(name):
			errs = append(errs, field.Duplicate(at, name))
		case !safeSysctls.Has(name):
			errs = append(errs, field.Forbidden(at, fmt.Sprintf("forbidden sysctl: %q not allowlisted", name)))
		case s.HostNetwork && strings.HasPrefix(name, "net."):
			errs = append(errs, field.Invalid(at, name, "may not be specified when 'hostNetwork' is set to true"))
		case s.HostIPC && strings.HasPrefix(name, "kernel."):
			errs = append(errs, field.Invalid(at, name, "may not be specified when 'hostIPC' is set to true"))
		}
		seen.Insert(name)
	}
	return errs
}

func validateSecurity(c *v1.SecurityContext, at *field.Path) (errs field.ErrorList) {
	if c == nil {
		return nil
	}
	errs = append(errs, ids(at, "runAsUser", c.RunAsUser)...)
	errs = append(errs, ids(at, "runAsGroup", c.RunAsGroup)...)
	if c.ProcMount != nil {
		errs = append(errs, oneOf(at.Child("procMount"), *c.ProcMount, v1.DefaultProcMount, v1.UnmaskedProcMount)...)
	}
	errs = append(errs, validateSeccomp(c.SeccompProfile, at.Child("seccompProfile"))...)
	if c.AllowPrivilegeEscalation != nil && !*c.AllowPrivilegeEscalation {
		if c.Privileged != nil && *c.Privileged {
			errs = append(errs, field.Invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `privileged` to true"))
		}
		if c.Capabilities != nil && slices.ContainsFunc(c.Capabilities.Add, func(k v1.Capability) bool { return strings.TrimPrefix(string(k), "CAP_") == "SYS_ADMIN" }) {
			errs = append(errs, field.Invalid(at, "", "cannot set `allowPrivilegeEscalation` to false and `capabilities.Add` CAP_SYS_ADMIN"))
		}
	}
	return errs
}

func validateSeccomp(p *v1.SeccompProfile, at *field.Path) (errs field.ErrorList) {
	if p == nil {
		return nil
	}
	errs = oneOf(at.Child("type"), p.Type, v1.SeccompProfileTypeLocalhost, v1.SeccompProfileTypeRuntimeDefault, v1.SeccompProfileTypeUnconfined)
	local := at.Child("localhostProfile")
	switch {
	case p.Type == v1.SeccompProfileTypeLocalhost && (p.LocalhostProfile == nil || *p.LocalhostProfile == ""):
		errs = append(errs, field.Required(local, "must be set when seccomp type is Localhost"))
	case p.Type == v1.SeccompProfileTypeLocalhost:
		errs = append(errs, localPath(local, *p.LocalhostProfile)...)
	case p.LocalhostProfile != nil:
		errs = append(errs, field.Invalid(local, *p.LocalhostProfile, "can only be set when seccomp type is Localhost"))
	}
	return errs
}

func validateResources(r *v1.ResourceRequirements, at *field.Path) (errs field.ErrorList) {
	quantity := func(at *field.Path, name v1.ResourceName, q resource.Quantity) {
		if q.Sign() < 0 {
			errs = append(errs, field.Invalid(at, q.String(), negative))
		}
		switch {
		case name == v1.ResourceCPU, name == v1.ResourceMemory, name == v1.ResourceEphemeralStorage:
		case strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix):
			if _, err := resource.ParseQuantity(strings.TrimPrefix(string(name), v1.ResourceHugePagesPrefix)); err != nil {
				errs = append(errs, field.Invalid(at, name, "must end in a size of pages, as in hugepages-2Mi"))
			}
		case !strings.Contains(string(name), "/"):
			errs = append(errs, field.NotSupported(at, name, []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory, v1.ResourceEphemeralStorage, "hugepages-<size>"}))
		default: // an extended resource: admission says what is wrong with it
			errs = append(errs, invalid(at, name, validation.IsQualifiedName(string(name)))...)
		}
	}
	for name, q := range r.Limits {
		quantity(at.Child("limits").Key(string(name)), name, q)
		request, ok := r.Requests[name]
		at := at.Child("requests").Key(string(name))
		if ok && request.Cmp(q) > 0 {
			errs = append(errs, field.Invalid(at, request.String(), fmt.Sprintf("must be less than or equal to %s limit of %s", name, q.String())))
		} else if ok && request.Cmp(q) < 0 && strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			errs = append(errs, field.Invalid(at, request.String(), fmt.Sprintf("must be equal to %s limit of %s", name, q.String())))
		}
	}
	for name, q := range r.Requests {
		quantity(at.Child("requests").Key(string(name)), name, q)
		if _, ok := r.Limits[name]; !ok && strings.HasPrefix(string(name), v1.ResourceHugePagesPrefix) {
			errs = append(errs, field.Required(at.Child("limits").Key(string(name)), "limit must be set for huge pages"))
		}
	}
	return errs
}

func validateMode(at *field.Path, mode *int32) field.ErrorList {
	if mode == nil || *mode >= 0 && *mode <= 0o777 {
		return nil
	}
	return field.ErrorList{field.Invalid(at, *mode, "must be a number between 0 and 0777 (octal), both inclusive")}
}

func validateItems(items []v1.KeyToPath, at *field.Path) (errs field.ErrorList) {
	for i, item := range items {
		at := at.Index(i)
		if item.Key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		}
		errs = append(errs, filePath(at.Child("path"), item.Path)...)
		errs = append(errs, validateMode(at.Child("mode"), item.Mode)...)
	}
	return errs
}

// filePath is the path of a file inside a volume.
func filePath(at *field.Path, p string) field.ErrorList {
	if p == "" {
		return field.ErrorList{field.Required(at, "")}
	}
	if strings.HasPrefix(p, "..") && p != ".." && !strings.HasPrefix(p, "../") {
		return field.ErrorList{field.Invalid(at, p, "must not start with '..'")}
	}
	if path.Clean(p) == "." {
		return field.ErrorList{field.Invalid(at, p, "must name a file")}
	}
	return localPath(at, p)
}

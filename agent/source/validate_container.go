package source

import (
	"fmt"
	"math"
	"path"
	"strings"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// specContext is what checking one container needs to know of its pod.
type specContext struct {
	spec      *v1.PodSpec
	volumes   map[string]bool
	names     sets.Set[string]
	hostPorts sets.Set[string]
}

func (x specContext) container(c *v1.Container, at *field.Path, init bool) (errs field.ErrorList) {
	switch {
	case c.Name == "":
		errs = append(errs, field.Required(at.Child("name"), ""))
	case x.names.Has(c.Name):
		errs = append(errs, field.Duplicate(at.Child("name"), c.Name))
	default:
		errs = append(errs, invalid(at.Child("name"), c.Name, validation.IsDNS1123Label(c.Name))...)
	}
	x.names.Insert(c.Name)
	if c.Image == "" {
		errs = append(errs, field.Required(at.Child("image"), ""))
	} else if c.Image != strings.TrimSpace(c.Image) {
		errs = append(errs, field.Invalid(at.Child("image"), c.Image, "must not have leading or trailing whitespace"))
	}
	errs = append(errs, oneOf(at.Child("imagePullPolicy"), c.ImagePullPolicy, v1.PullAlways, v1.PullIfNotPresent, v1.PullNever)...)
	errs = append(errs, oneOf(at.Child("terminationMessagePolicy"), c.TerminationMessagePolicy, v1.TerminationMessageReadFile, v1.TerminationMessageFallbackToLogsOnError)...)
	errs = append(errs, x.ports(c.Ports, at.Child("ports"))...)
	errs = append(errs, validateEnv(c, at)...)
	errs = append(errs, x.mounts(c, at.Child("volumeMounts"))...)
	errs = append(errs, validateResources(&c.Resources, at.Child("resources"))...)
	errs = append(errs, validateRestart(c, at, init)...)
	errs = append(errs, validateSecurity(c.SecurityContext, at.Child("securityContext"))...)
	return append(errs, validateHealth(c, at, init)...)
}

func (x specContext) ports(ports []v1.ContainerPort, at *field.Path) (errs field.ErrorList) {
	names := sets.New[string]()
	for i, p := range ports {
		at := at.Index(i)
		if p.Name != "" {
			if msgs := validation.IsValidPortName(p.Name); len(msgs) > 0 {
				errs = append(errs, invalid(at.Child("name"), p.Name, msgs)...)
			} else if names.Has(p.Name) {
				errs = append(errs, field.Duplicate(at.Child("name"), p.Name))
			}
			names.Insert(p.Name)
		}
		if p.ContainerPort == 0 {
			errs = append(errs, field.Required(at.Child("containerPort"), ""))
		} else {
			errs = append(errs, invalid(at.Child("containerPort"), p.ContainerPort, validation.IsValidPortNum(int(p.ContainerPort)))...)
		}
		errs = append(errs, oneOf(at.Child("protocol"), p.Protocol, v1.ProtocolSCTP, v1.ProtocolTCP, v1.ProtocolUDP)...)
		if p.HostIP != "" {
			errs = append(errs, validation.IsValidIP(at.Child("hostIP"), p.HostIP)...)
		}
		if p.HostPort == 0 {
			continue
		}
		errs = append(errs, invalid(at.Child("hostPort"), p.HostPort, validation.IsValidPortNum(int(p.HostPort)))...)
		if x.spec.HostNetwork && p.HostPort != p.ContainerPort {
			errs = append(errs, field.Invalid(at.Child("containerPort"), p.ContainerPort, "must match `hostPort` when `hostNetwork` is true"))
		}
		key := fmt.Sprintf("%s/%s/%d", p.Protocol, p.HostIP, p.HostPort)
		if x.hostPorts.Has(key) {
			errs = append(errs, field.Duplicate(at.Child("hostPort"), key))
		}
		x.hostPorts.Insert(key)
	}
	return errs
}

var envFields = sets.New("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName", "status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs")

var envResources = sets.New("limits.cpu", "limits.memory", "limits.ephemeral-storage", "requests.cpu", "requests.memory", "requests.ephemeral-storage")

func validateEnv(c *v1.Container, at *field.Path) (errs field.ErrorList) {
	for i := range c.Env {
		e, at := &c.Env[i], at.Child("env").Index(i)
		if e.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else {
			errs = append(errs, invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name))...)
		}
		if e.ValueFrom != nil {
			errs = append(errs, validateEnvSource(e, at.Child("valueFrom"))...)
		}
	}
	for i := range c.EnvFrom {
		e, at := &c.EnvFrom[i], at.Child("envFrom").Index(i)
		if e.Prefix != "" {
			errs = append(errs, invalid(at.Child("prefix"), e.Prefix, validation.IsRelaxedEnvVarName(e.Prefix))...)
		}
		switch {
		case e.ConfigMapRef == nil && e.SecretRef == nil:
			errs = append(errs, field.Invalid(at, "", "must specify one of: `configMapRef` or `secretRef`"))
		case e.ConfigMapRef != nil && e.SecretRef != nil:
			errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
		case e.ConfigMapRef != nil:
			errs = append(errs, objectName(at.Child("configMapRef"), e.ConfigMapRef.Name)...)
		default:
			errs = append(errs, objectName(at.Child("secretRef"), e.SecretRef.Name)...)
		}
	}
	return errs
}

func objectName(at *field.Path, name string) field.ErrorList {
	if name == "" {
		return field.ErrorList{field.Required(at.Child("name"), "")}
	}
	return invalid(at.Child("name"), name, apivalidation.NameIsDNSSubdomain(name, false))
}

func validateEnvSource(e *v1.EnvVar, at *field.Path) (errs field.ErrorList) {
	s, n := e.ValueFrom, 0
	key := func(at *field.Path, name, key string) {
		n++
		errs = append(errs, objectName(at, name)...)
		if key == "" {
			errs = append(errs, field.Required(at.Child("key"), ""))
		} else {
			errs = append(errs, invalid(at.Child("key"), key, validation.IsConfigMapKey(key))...)
		}
	}
	if f := s.FieldRef; f != nil {
		n++
		errs = append(errs, validateFieldRef(f, at.Child("fieldRef"), envFields)...)
	}
	if r := s.ResourceFieldRef; r != nil {
		n++
		errs = append(errs, validateResourceRef(r, at.Child("resourceFieldRef"))...)
	}
	if r := s.ConfigMapKeyRef; r != nil {
		key(at.Child("configMapKeyRef"), r.Name, r.Key)
	}
	if r := s.SecretKeyRef; r != nil {
		key(at.Child("secretKeyRef"), r.Name, r.Key)
	}
	switch {
	case n == 0:
		errs = append(errs, field.Invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef` or `secretKeyRef`"))
	case e.Value != "":
		errs = append(errs, field.Invalid(at, "", "may not be specified when `value` is not empty"))
	case n > 1:
		errs = append(errs, field.Invalid(at, "", "may not have more than one field specified at a time"))
	}
	return errs
}

// validateFieldRef checks a downward API field against those that may be had here.
func validateFieldRef(f *v1.ObjectFieldSelector, at *field.Path, allowed sets.Set[string]) field.ErrorList {
	switch {
	case f.APIVersion != "v1":
		return field.ErrorList{field.Invalid(at.Child("apiVersion"), f.APIVersion, "must be v1")}
	case f.FieldPath == "":
		return field.ErrorList{field.Required(at.Child("fieldPath"), "")}
	}
	name, rest, subscripted := strings.Cut(f.FieldPath, "['")
	if subscripted && strings.HasSuffix(rest, "']") && (name == "metadata.labels" || name == "metadata.annotations") {
		return invalid(at.Child("fieldPath"), f.FieldPath, validation.IsQualifiedName(strings.ToLower(strings.TrimSuffix(rest, "']"))))
	}
	if !allowed.Has(f.FieldPath) {
		return field.ErrorList{field.NotSupported(at.Child("fieldPath"), f.FieldPath, append(sets.List(allowed), "metadata.annotations['<KEY>']", "metadata.labels['<KEY>']"))}
	}
	return nil
}

func validateResourceRef(r *v1.ResourceFieldSelector, at *field.Path) field.ErrorList {
	switch {
	case r.Resource == "":
		return field.ErrorList{field.Required(at.Child("resource"), "")}
	case !envResources.Has(r.Resource) && !strings.Contains(r.Resource, ".hugepages-"):
		return field.ErrorList{field.NotSupported(at.Child("resource"), r.Resource, sets.List(envResources))}
	case r.Divisor.Sign() < 0:
		return field.ErrorList{field.Invalid(at.Child("divisor"), r.Divisor.String(), "must not be negative")}
	}
	return nil
}

func (x specContext) mounts(c *v1.Container, at *field.Path) (errs field.ErrorList) {
	seen := sets.New[string]()
	for i, m := range c.VolumeMounts {
		at := at.Index(i)
		if m.Name == "" {
			errs = append(errs, field.Required(at.Child("name"), ""))
		} else if !x.volumes[m.Name] {
			errs = append(errs, field.NotFound(at.Child("name"), m.Name))
		}
		if m.MountPath == "" {
			errs = append(errs, field.Required(at.Child("mountPath"), ""))
		} else if strings.Contains(m.MountPath, ":") {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must not contain ':'"))
		}
		if seen.Has(m.MountPath) {
			errs = append(errs, field.Invalid(at.Child("mountPath"), m.MountPath, "must be unique"))
		}
		seen.Insert(m.MountPath)
		errs = append(errs, localPath(at.Child("subPath"), m.SubPath)...)
		if p := m.MountPropagation; p != nil {
			errs = append(errs, oneOf(at.Child("mountPropagation"), *p, v1.MountPropagationBidirectional, v1.MountPropagationHostToContainer, v1.MountPropagationNone)...)
			privileged := c.SecurityContext != nil && c.SecurityContext.Privileged != nil && *c.SecurityContext.Privileged
			if *p == v1.MountPropagationBidirectional && !privileged {
				errs = append(errs, field.Forbidden(at.Child("mountPropagation"), "Bidirectional mount propagation is available only to privileged containers"))
			}
		}
		errs = append(errs, validateRecursive(m, at)...)
	}
	return errs
}

func validateRecursive(m v1.VolumeMount, at *field.Path) field.ErrorList {
	if m.RecursiveReadOnly == nil || *m.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return nil
	}
	if errs := oneOf(at.Child("recursiveReadOnly"), *m.RecursiveReadOnly, v1.RecursiveReadOnlyDisabled, v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible); errs != nil {
		return errs
	}
	if !m.ReadOnly {
		return field.ErrorList{field.Forbidden(at.Child("recursiveReadOnly"), "may only be specified when readOnly is true")}
	}
	if m.MountPropagation != nil && *m.MountPropagation != v1.MountPropagationNone {
		return field.ErrorList{field.Forbidden(at.Child("recursiveReadOnly"), "may only be specified when mountPropagation is None or not specified")}
	}
	return nil
}

// localPath: relative, and never upward.
func localPath(at *field.Path, p string) (errs field.ErrorList) {
	if path.IsAbs(p) {
		errs = append(errs, field.Invalid(at, p, "must be a relative path"))
	}
	for _, part := range strings.Split(p, "/") {
		if part == ".." {
			errs = append(errs, field.Invalid(at, p, "must not contain '..'"))
			break
		}
	}
	return errs
}

func validPort(at *field.Path, p intstr.IntOrString) field.ErrorList {
	if p.Type == intstr.Int {
		return invalid(at, p.IntValue(), validation.IsValidPortNum(p.IntValue()))
	}
	return invalid(at, p.StrVal, validation.IsValidPortName(p.StrVal))
}

// count checks that n is not negative, nor larger than a timer can take.
func count(at *field.Path, n int64) field.ErrorList {
	if n < 0 {
		return field.ErrorList{field.Invalid(at, n, apivalidation.IsNegativeErrorMsg)}
	}
	return within(at, n, 0, math.MaxInt32)
}

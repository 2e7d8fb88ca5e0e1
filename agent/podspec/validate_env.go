package podspec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (c *checker) env(vars []v1.EnvVar, at *field.Path) {
	for i := range vars {
		e, at := &vars[i], at.Index(i)
		if c.need(at.Child("name"), e.Name) {
			c.invalid(at.Child("name"), e.Name, validation.IsRelaxedEnvVarName(e.Name)...)
		}
		if e.ValueFrom != nil {
			c.envSource(e, at.Child("valueFrom"))
		}
	}
}

func (c *checker) envSource(e *v1.EnvVar, at *field.Path) {
	s, n := e.ValueFrom, 0
	if r := s.FieldRef; r != nil {
		n++
		c.fieldRef(r, at.Child("fieldRef"), envFields)
	}
	if r := s.ResourceFieldRef; r != nil {
		n++
		c.resourceRef(r, at.Child("resourceFieldRef"), false)
	}
	if r := s.ConfigMapKeyRef; r != nil {
		n++
		c.keyRef(r.Name, r.Key, at.Child("configMapKeyRef"))
	}
	if r := s.SecretKeyRef; r != nil {
		n++
		c.keyRef(r.Name, r.Key, at.Child("secretKeyRef"))
	}
	if r := s.FileKeyRef; r != nil {
		n++
		c.fileKeyRef(r, at.Child("fileKeyRef"))
	}
	switch {
	case n == 0:
		c.invalid(at, "", "must specify one of: `fieldRef`, `resourceFieldRef`, `configMapKeyRef`, `secretKeyRef` or `fileKeyRef`")
	case e.Value != "":
		c.invalid(at, "", "may not be specified when `value` is not empty")
	case n > 1:
		c.invalid(at, "", "may not have more than one field specified at a time")
	}
}

func (c *checker) keyRef(name, key string, at *field.Path) {
	c.objectName(at.Child("name"), name)
	if c.need(at.Child("key"), key) {
		c.invalid(at.Child("key"), key, validation.IsConfigMapKey(key)...)
	}
}

func (c *checker) fileKeyRef(r *v1.FileKeySelector, at *field.Path) {
	if c.need(at.Child("key"), r.Key) {
		c.invalid(at.Child("key"), r.Key, validation.IsRelaxedEnvVarName(r.Key)...)
	}
	if c.need(at.Child("volumeName"), r.VolumeName) {
		c.label(at.Child("volumeName"), r.VolumeName)
	}
	if c.need(at.Child("path"), r.Path) {
		c.noUp(at.Child("path"), r.Path)
	}
}

// fileKeyVolumes: a file of variables is written by a container into an emptyDir.
func (c *checker) fileKeyVolumes(at *field.Path) {
	byName := map[string]*v1.VolumeSource{}
	for i := range c.spec.Volumes {
		byName[c.spec.Volumes[i].Name] = &c.spec.Volumes[i].VolumeSource
	}
	c.each(at, func(k *v1.Container, at *field.Path) {
		for i, e := range k.Env {
			if e.ValueFrom == nil || e.ValueFrom.FileKeyRef == nil {
				continue
			}
			name, at := e.ValueFrom.FileKeyRef.VolumeName, at.Child("env").Index(i).Child("valueFrom", "fileKeyRef", "volumeName")
			if s, ok := byName[name]; !ok {
				c.add(field.NotFound(at, name))
			} else if s.EmptyDir == nil {
				c.invalid(at, name, "referenced volume must be of type emptyDir")
			}
		}
	})
}

func (c *checker) envFrom(sources []v1.EnvFromSource, at *field.Path) {
	name := func(name string, at *field.Path) {
		if c.need(at, name) {
			c.invalid(at, name, apivalidation.NameIsDNSSubdomain(name, true)...)
		}
	}
	for i, s := range sources {
		item := at.Index(i)
		if s.Prefix != "" {
			c.invalid(item.Child("prefix"), s.Prefix, validation.IsRelaxedEnvVarName(s.Prefix)...)
		}
		if s.ConfigMapRef != nil {
			name(s.ConfigMapRef.Name, item.Child("configMapRef", "name"))
		}
		if s.SecretRef != nil {
			name(s.SecretRef.Name, item.Child("secretRef", "name"))
		}
		if (s.ConfigMapRef == nil) == (s.SecretRef == nil) { // the API names the list, not the item
			c.invalid(at, "", fmt.Sprintf("item %d must specify exactly one of: `configMapRef` or `secretRef`", i))
		}
	}
}

// What the downward API can tell: the first set at all, the others where.
var (
	podFields = sets.New("metadata.annotations", "metadata.labels", "metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName",
		"spec.restartPolicy", "spec.serviceAccountName", "spec.schedulerName", "status.phase", "status.hostIP", "status.hostIPs",
		"status.podIP", "status.podIPs", "spec.host")
	envFields = sets.New("metadata.name", "metadata.namespace", "metadata.uid", "spec.nodeName", "spec.serviceAccountName",
		"status.hostIP", "status.hostIPs", "status.podIP", "status.podIPs", "spec.host")
	volumeFields = sets.New("metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid")
)

// fieldRef checks a reference to a field of the pod; spec.host is the old name of
// spec.nodeName.
func (c *checker) fieldRef(r *v1.ObjectFieldSelector, at *field.Path, allowed sets.Set[string]) {
	path := at.Child("fieldPath")
	if !c.need(at.Child("apiVersion"), r.APIVersion) || !c.need(path, r.FieldPath) {
		return
	}
	of, key, subscripted := subscript(r.FieldPath)
	switch {
	case r.APIVersion != "v1":
		c.invalid(path, r.FieldPath, "the only version of a pod is v1, not "+r.APIVersion)
	case subscripted && of == "metadata.annotations":
		c.qualified(at, strings.ToLower(key), key)
	case subscripted && of == "metadata.labels":
		c.qualified(at, key, key)
	case subscripted:
		c.invalid(path, r.FieldPath, "only metadata.annotations and metadata.labels take a ['key']")
	case !podFields.Has(r.FieldPath):
		c.invalid(path, r.FieldPath, "is not a field that the downward API offers: "+strings.Join(sets.List(allowed), ", "))
	case !allowed.Has(r.FieldPath):
		c.add(field.NotSupported(path, r.FieldPath, sets.List(allowed)))
	}
}

// subscript splits metadata.labels['key'].
func subscript(path string) (of, key string, ok bool) {
	rest, ok := strings.CutSuffix(path, "']")
	if !ok {
		return "", "", false
	}
	of, key, ok = strings.Cut(rest, "['")
	return of, key, ok && of != ""
}

var containerFields = sets.New("limits.cpu", "limits.memory", "limits.ephemeral-storage",
	"requests.cpu", "requests.memory", "requests.ephemeral-storage")

func hugePagesField(name string) bool {
	return strings.HasPrefix(name, "limits.hugepages-") || strings.HasPrefix(name, "requests.hugepages-")
}

// byteDivisors are the units in which a number of bytes may be told.
var byteDivisors = sets.New("1", "1k", "1M", "1G", "1T", "1P", "1E", "1Ki", "1Mi", "1Gi", "1Ti", "1Pi", "1Ei")

var cpuDivisors = sets.New("1m", "1")

// resourceRef checks a reference to a request or a limit; in a volume it has to
// name the container.
func (c *checker) resourceRef(r *v1.ResourceFieldSelector, at *field.Path, volume bool) {
	known := containerFields.Has(r.Resource) || hugePagesField(r.Resource)
	switch {
	case volume && r.ContainerName == "":
		c.required(at.Child("containerName"), "")
	case r.Resource == "":
		c.required(at.Child("resource"), "")
	case !known:
		c.add(field.NotSupported(at.Child("resource"), r.Resource, sets.List(containerFields)))
	}
	if !known || r.Divisor.Cmp(resource.Quantity{}) == 0 {
		return
	}
	units := byteDivisors
	if r.Resource == "limits.cpu" || r.Resource == "requests.cpu" {
		units = cpuDivisors
	}
	if !units.Has(r.Divisor.String()) {
		c.invalid(at.Child("divisor"), r.Divisor.String(), fmt.Sprintf("must be one of %s for %s", strings.Join(sets.List(units), ", "), r.Resource))
	}
}

package source

import (
	"path"
	"reflect"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// volumeList checks the pod's volumes, and remembers their names for the mounts.
func (x specContext) volumeList(at *field.Path) (errs field.ErrorList) {
	for i := range x.spec.Volumes {
		v, at := &x.spec.Volumes[i], at.Index(i)
		switch {
		case v.Name == "":
			errs = append(errs, field.Required(at.Child("name"), ""))
		case x.volumes[v.Name]:
			errs = append(errs, field.Duplicate(at.Child("name"), v.Name))
		default:
			errs = append(errs, invalid(at.Child("name"), v.Name, validation.IsDNS1123Label(v.Name))...)
		}
		x.volumes[v.Name] = true
		errs = append(errs, validateVolume(&v.VolumeSource, at)...)
	}
	return errs
}

func validateVolume(v *v1.VolumeSource, at *field.Path) (errs field.ErrorList) {
	if countSet(v) > 1 {
		errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type"))
	}
	if e := v.EmptyDir; e != nil {
		if e.Medium != v1.StorageMediumDefault && e.Medium != v1.StorageMediumMemory {
			errs = append(errs, oneOf(at.Child("emptyDir", "medium"), e.Medium, v1.StorageMediumDefault, v1.StorageMediumMemory)...)
		}
		if e.SizeLimit != nil && e.SizeLimit.Sign() < 0 {
			errs = append(errs, field.Forbidden(at.Child("emptyDir", "sizeLimit"), "SizeLimit field must be a valid resource quantity"))
		}
	}
	if h := v.HostPath; h != nil {
		errs = append(errs, validateHostPath(h, at.Child("hostPath"))...)
	}
	if c := v.ConfigMap; c != nil {
		at := at.Child("configMap")
		errs = append(errs, objectName(at, c.Name)...)
		errs = append(errs, validateMode(at.Child("defaultMode"), c.DefaultMode)...)
		errs = append(errs, validateItems(c.Items, at.Child("items"))...)
	}
	if s := v.Secret; s != nil {
		at := at.Child("secret")
		if s.SecretName == "" {
			errs = append(errs, field.Required(at.Child("secretName"), ""))
		} else {
			errs = append(errs, invalid(at.Child("secretName"), s.SecretName, validation.IsDNS1123Subdomain(s.SecretName))...)
		}
		errs = append(errs, validateMode(at.Child("defaultMode"), s.DefaultMode)...)
		errs = append(errs, validateItems(s.Items, at.Child("items"))...)
	}
	if d := v.DownwardAPI; d != nil {
		at := at.Child("downwardAPI")
		errs = append(errs, validateMode(at.Child("defaultMode"), d.DefaultMode)...)
		errs = append(errs, validateDownward(d.Items, at.Child("items"))...)
	}
	if p := v.Projected; p != nil {
		errs = append(errs, validateProjected(p, at.Child("projected"))...)
	}
	return errs
}

// countSet counts the pointers of a union that are set.
func countSet(union any) (n int) {
	v := reflect.ValueOf(union).Elem()
	for i := range v.NumField() {
		if f := v.Field(i); f.Kind() == reflect.Pointer && !f.IsNil() {
			n++
		}
	}
	return n
}

func validateHostPath(h *v1.HostPathVolumeSource, at *field.Path) (errs field.ErrorList) {
	if h.Path == "" {
		errs = append(errs, field.Required(at.Child("path"), ""))
	} else if !path.IsAbs(h.Path) {
		errs = append(errs, field.Invalid(at.Child("path"), h.Path, "must be an absolute path"))
	} else {
		errs = append(errs, localPath(at.Child("path"), h.Path[1:])...)
	}
	return append(errs, oneOf(at.Child("type"), *h.Type, v1.HostPathUnset, v1.HostPathDirectoryOrCreate, v1.HostPathDirectory, v1.HostPathFileOrCreate,
		v1.HostPathFile, v1.HostPathSocket, v1.HostPathCharDev, v1.HostPathBlockDev)...)
}

var volumeFieldRefs = sets.New("metadata.name", "metadata.namespace", "metadata.labels", "metadata.annotations", "metadata.uid")

func validateDownward(items []v1.DownwardAPIVolumeFile, at *field.Path) (errs field.ErrorList) {
	for i := range items {
		f, at := &items[i], at.Index(i)
		errs = append(errs, filePath(at.Child("path"), f.Path)...)
		errs = append(errs, validateMode(at.Child("mode"), f.Mode)...)
		switch {
		case f.FieldRef != nil && f.ResourceFieldRef != nil:
			errs = append(errs, field.Invalid(at, "resource", "fieldRef and resourceFieldRef can not be specified simultaneously"))
		case f.FieldRef != nil:
			errs = append(errs, validateFieldRef(f.FieldRef, at.Child("fieldRef"), volumeFieldRefs)...)
		case f.ResourceFieldRef != nil && f.ResourceFieldRef.ContainerName == "":
			errs = append(errs, field.Required(at.Child("resourceFieldRef", "containerName"), ""))
		case f.ResourceFieldRef != nil:
			errs = append(errs, validateResourceRef(f.ResourceFieldRef, at.Child("resourceFieldRef"))...)
		default:
			errs = append(errs, field.Required(at, "one of fieldRef and resourceFieldRef is required"))
		}
	}
	return errs
}

func validateProjected(p *v1.ProjectedVolumeSource, at *field.Path) (errs field.ErrorList) {
	errs = validateMode(at.Child("defaultMode"), p.DefaultMode)
	paths := sets.New[string]()
	unique := func(at *field.Path, p string) {
		if p = path.Clean(p); paths.Has(p) {
			errs = append(errs, field.Invalid(at, p, "conflicting duplicate paths"))
		}
		paths.Insert(p)
	}
	for i := range p.Sources {
		s, at := &p.Sources[i], at.Child("sources").Index(i)
		switch n := countSet(s); {
		case n == 0:
			errs = append(errs, field.Required(at, "must specify a source"))
		case n > 1:
			errs = append(errs, field.Forbidden(at, "may not specify more than 1 volume type per source"))
		}
		keys := func(at *field.Path, name string, items []v1.KeyToPath) {
			errs = append(errs, objectName(at, name)...)
			errs = append(errs, validateItems(items, at.Child("items"))...)
			for j, item := range items {
				unique(at.Child("items").Index(j).Child("path"), item.Path)
			}
		}
		if s.ConfigMap != nil {
			keys(at.Child("configMap"), s.ConfigMap.Name, s.ConfigMap.Items)
		}
		if s.Secret != nil {
			keys(at.Child("secret"), s.Secret.Name, s.Secret.Items)
		}
		if s.DownwardAPI != nil {
			at := at.Child("downwardAPI", "items")
			errs = append(errs, validateDownward(s.DownwardAPI.Items, at)...)
			for j, item := range s.DownwardAPI.Items {
				unique(at.Index(j).Child("path"), item.Path)
			}
		}
	}
	return errs
}

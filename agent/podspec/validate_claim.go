package podspec

import (
	"fmt"
	"reflect"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// templateFields are what a template may say about the objects made from it.
var templateFields = sets.New("Annotations", "Labels")

// ephemeral checks a volume whose claim comes and goes with the pod.
func (c *checker) ephemeral(e *v1.EphemeralVolumeSource, at *field.Path) {
	if t := e.VolumeClaimTemplate; t == nil {
		c.required(at.Child("volumeClaimTemplate"), "")
	} else {
		at := at.Child("volumeClaimTemplate")
		meta := at.Child("metadata")
		c.add(apivalidation.ValidateAnnotations(t.Annotations, meta.Child("annotations"))...)
		c.add(metavalidation.ValidateLabels(t.Labels, meta.Child("labels"))...)
		c.onlyFields(t.ObjectMeta, templateFields, meta, "cannot be set")
		c.claim(&t.Spec, at.Child("spec"))
	}
}

// claimName: the claim is named after the pod and the volume; where one of them has
// no name, that is told elsewhere.
func (c *checker) claimName(volume string, at *field.Path) {
	if c.meta.Name == "" || volume == "" {
		return
	}
	name := c.meta.Name + "-" + volume
	for _, why := range apivalidation.NameIsDNSSubdomain(name, false) {
		c.invalid(at, volume, fmt.Sprintf("PVC name %q: %v", name, why))
	}
}

func (c *checker) claim(s *v1.PersistentVolumeClaimSpec, at *field.Path) {
	c.accessModes(s.AccessModes, at.Child("accessModes"))
	c.add(metavalidation.ValidateLabelSelector(s.Selector, metavalidation.LabelSelectorValidationOptions{}, at.Child("selector"))...)
	if size, ok := s.Resources.Requests[v1.ResourceStorage]; !ok {
		c.required(at.Child("resources").Key("storage"), "")
	} else if size.Sign() <= 0 {
		c.invalid(at.Child("resources").Key("storage"), size.String(), "must be greater than zero")
	}
	c.class(at.Child("storageClassName"), s.StorageClassName)
	c.class(at.Child("volumeAttributesClassName"), s.VolumeAttributesClassName)
	if m := s.VolumeMode; m != nil {
		oneOf(&c.findings, at.Child("volumeMode"), *m, v1.PersistentVolumeBlock, v1.PersistentVolumeFilesystem)
	}
	c.dataSources(s, at)
}

// class: the empty name is none.
func (c *checker) class(at *field.Path, name *string) {
	if name != nil && *name != "" {
		c.objectName(at, *name)
	}
}

func (c *checker) accessModes(modes []v1.PersistentVolumeAccessMode, at *field.Path) {
	if len(modes) == 0 {
		c.required(at, "at least 1 access mode is required")
	}
	alone, shared := false, false
	for _, m := range modes {
		switch m {
		case v1.ReadWriteOncePod:
			alone = true
		case v1.ReadWriteOnce, v1.ReadOnlyMany, v1.ReadWriteMany:
			shared = true
		default:
			oneOf(&c.findings, at, m, v1.ReadOnlyMany, v1.ReadWriteMany, v1.ReadWriteOnce, v1.ReadWriteOncePod)
		}
	}
	if alone && shared {
		c.forbidden(at, "may not use ReadWriteOncePod with other access modes")
	}
}

func (c *checker) dataSources(s *v1.PersistentVolumeClaimSpec, at *field.Path) {
	old, ref := s.DataSource, s.DataSourceRef
	if old != nil {
		c.dataSource(old.Name, old.Kind, old.APIGroup, at.Child("dataSource"))
	}
	if ref == nil {
		return
	}
	c.dataSource(ref.Name, ref.Kind, ref.APIGroup, at.Child("dataSourceRef"))
	elsewhere := ref.Namespace != nil && *ref.Namespace != ""
	if elsewhere {
		c.invalid(at.Child("dataSourceRef", "namespace"), *ref.Namespace, apivalidation.ValidateNamespaceName(*ref.Namespace, false)...)
	}
	switch {
	case old == nil:
	case elsewhere:
		c.invalid(at, "dataSource", "may not be specified when dataSourceRef.namespace is specified")
	case old.Kind != ref.Kind || old.Name != ref.Name || !reflect.DeepEqual(old.APIGroup, ref.APIGroup):
		c.invalid(at, "dataSource", "must match dataSourceRef")
	}
}

func (c *checker) dataSource(name, kind string, group *string, at *field.Path) {
	c.need(at.Child("name"), name)
	c.need(at.Child("kind"), kind)
	if group != nil && *group != "" {
		c.invalid(at.Child("apiGroup"), *group, validation.IsDNS1123Subdomain(*group)...)
	} else if kind != "PersistentVolumeClaim" {
		c.invalid(at, kind, "must be 'PersistentVolumeClaim' when referencing the default apiGroup")
	}
}

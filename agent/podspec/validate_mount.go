package podspec

import (
	"maps"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func (c *checker) mounts(k *v1.Container, list *field.Path) {
	devices := map[string]string{}
	for _, d := range k.VolumeDevices {
		devices[d.Name] = d.DevicePath
	}
	paths := sets.New[string]()
	for i := range k.VolumeMounts {
		m, at := &k.VolumeMounts[i], list.Index(i)
		c.need(at.Child("name"), m.Name)
		if c.volumes[m.Name] == nil {
			c.add(field.NotFound(at.Child("name"), m.Name))
		}
		c.need(at.Child("mountPath"), m.MountPath)
		if paths.Has(m.MountPath) {
			c.invalid(at.Child("mountPath"), m.MountPath, "must be unique")
		}
		paths.Insert(m.MountPath)
		if _, ok := devices[m.Name]; ok {
			c.invalid(at.Child("name"), m.Name, "must not already exist in volumeDevices")
		}
		if slices.Contains(slices.Collect(maps.Values(devices)), m.MountPath) {
			c.invalid(at.Child("mountPath"), m.MountPath, "must not already exist as a path in volumeDevices")
		}
		// From here on the API names the list, not the mount.
		c.below(list.Child("subPath"), m.SubPath)
		if m.SubPathExpr != "" {
			if m.SubPath != "" {
				c.invalid(at.Child("subPathExpr"), m.SubPathExpr, "subPathExpr and subPath are mutually exclusive")
			}
			c.below(list.Child("subPathExpr"), m.SubPathExpr)
		}
		c.propagation(m, k.SecurityContext, list.Child("mountPropagation"))
		c.recursive(m, list.Child("recursiveReadOnly"))
	}
}

func (c *checker) propagation(m *v1.VolumeMount, s *v1.SecurityContext, at *field.Path) {
	if m.MountPropagation == nil {
		return
	}
	oneOf(&c.findings, at, *m.MountPropagation, v1.MountPropagationBidirectional, v1.MountPropagationHostToContainer, v1.MountPropagationNone)
	if *m.MountPropagation == v1.MountPropagationBidirectional && !(s != nil && isTrue(s.Privileged)) {
		c.forbidden(at, "Bidirectional mount propagation is available only to privileged containers (volume "+m.Name+")")
	}
}

func (c *checker) recursive(m *v1.VolumeMount, at *field.Path) {
	if m.RecursiveReadOnly == nil {
		return
	}
	switch *m.RecursiveReadOnly {
	case v1.RecursiveReadOnlyDisabled:
	case v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible:
		if !m.ReadOnly {
			c.forbidden(at, "may only be specified when readOnly is true (volume "+m.Name+")")
		}
		if m.MountPropagation != nil && *m.MountPropagation != v1.MountPropagationNone {
			c.forbidden(at, "may only be specified when mountPropagation is None or not specified (volume "+m.Name+")")
		}
	default:
		oneOf(&c.findings, at, *m.RecursiveReadOnly, v1.RecursiveReadOnlyDisabled, v1.RecursiveReadOnlyEnabled, v1.RecursiveReadOnlyIfPossible)
	}
}

func (c *checker) devices(k *v1.Container, list *field.Path) {
	mounts := map[string]string{}
	for _, m := range k.VolumeMounts {
		mounts[m.Name] = m.MountPath
	}
	names, paths := sets.New[string](), sets.New[string]()
	for i, d := range k.VolumeDevices {
		name, path := list.Index(i).Child("name"), list.Index(i).Child("devicePath")
		if names.Has(d.Name) {
			c.invalid(name, d.Name, "must be unique")
		}
		if c.need(name, d.Name) {
			names.Insert(d.Name)
		}
		if v := c.volumes[d.Name]; v == nil {
			c.add(field.NotFound(name, d.Name))
		} else if v.PersistentVolumeClaim == nil && v.Ephemeral == nil {
			c.invalid(name, d.Name, "can only use volume source type of PersistentVolumeClaim or Ephemeral for block mode")
		}
		c.need(path, d.DevicePath)
		if paths.Has(d.DevicePath) {
			c.invalid(path, d.DevicePath, "must be unique")
		}
		before := len(c.errs)
		if c.noUp(path, d.DevicePath); len(c.errs) == before {
			paths.Insert(d.DevicePath)
		}
		if _, ok := mounts[d.Name]; ok {
			c.invalid(name, d.Name, "must not already exist in volumeMounts")
		}
		if slices.Contains(slices.Collect(maps.Values(mounts)), d.DevicePath) {
			c.invalid(path, d.DevicePath, "must not already exist as a path in volumeMounts")
		}
	}
}

func isTrue(b *bool) bool { return b != nil && *b }

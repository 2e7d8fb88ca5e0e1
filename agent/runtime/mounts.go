package runtime

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounting is what a container's mounts are made from.
type mounting struct {
	pod     *v1.Pod
	ctr     *v1.Container
	volumes map[string]pod.Volume
	images  map[string]*cri.ImageSpec // of image volumes
	env     map[string]string
	// recursive says that the runtime can make read-only mounts recursively so.
	recursive bool
	// ids are those of the pod's user namespace: every mount is shifted by them.
	ids     *pod.IDMapping
	subPath func(context.Context, *v1.Pod, SubPath) (string, error)
}

// mounts are the container's volume mounts, in the order of its spec. Volumes are
// relabelled by the runtime whatever seLinuxChangePolicy says: MountOption is for
// volumes whose driver mounts them with a label, and none of a node's own does.
func (m mounting) mounts(ctx context.Context) ([]*cri.Mount, error) {
	var all []*cri.Mount
	labelled := map[string]bool{} // one relabelling of a volume is enough
	for i := range m.ctr.VolumeMounts {
		vm := &m.ctr.VolumeMounts[i]
		source := volumeOf(m.pod, vm.Name)
		sub, err := m.subPathOf(vm)
		if err != nil {
			return nil, err
		}
		one := &cri.Mount{ContainerPath: containerPath(vm.MountPath), UidMappings: idMappings(m.ids), GidMappings: idMappings(m.ids)}
		if source != nil && source.Image != nil {
			err = m.imageMount(one, vm.Name, sub)
		} else {
			err = m.hostMount(ctx, one, i, sub)
			one.SelinuxRelabel = (source == nil || source.HostPath == nil) && !labelled[vm.Name] // the node's own files keep their labels
			labelled[vm.Name] = true
		}
		if err != nil {
			return nil, err
		}
		if one.Propagation, err = propagationOf(vm.MountPropagation); err != nil {
			return nil, err
		}
		if one.RecursiveReadOnly, err = m.recursively(vm); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// subPathOf is the part of the volume that is mounted, "" for all of it.
func (m mounting) subPathOf(vm *v1.VolumeMount) (string, error) {
	sub := vm.SubPath
	if vm.SubPathExpr != "" {
		var err error
		if sub, err = expandSubPath(vm.SubPathExpr, m.env); err != nil {
			return "", err
		}
	}
	if sub != "" && !filepath.IsLocal(sub) {
		return "", failAs(opConfig, pod.Invalid, fmt.Errorf("subPath %q of volume mount %q must stay within the volume, without a leading slash and .. parts", sub, vm.Name))
	}
	return sub, nil
}

// hostMount completes the mount of a volume that lies on the host.
func (m mounting) hostMount(ctx context.Context, one *cri.Mount, index int, sub string) error {
	vm := &m.ctr.VolumeMounts[index]
	vol, ok := m.volumes[vm.Name]
	if !ok {
		return failAs(opConfig, pod.NotFound, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, m.ctr.Name))
	}
	one.HostPath, one.Readonly = vol.HostPath, vm.ReadOnly || vol.ReadOnly
	if sub == "" {
		return nil
	}
	var err error
	if one.HostPath, err = m.subPath(ctx, m.pod, SubPath{Volume: vm.Name, Container: m.ctr.Name, Index: index, Path: sub}); err != nil {
		return failAs(opConfig, kindOf(err), fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, m.ctr.Name, err))
	}
	return nil
}

// imageMount completes the mount of an image volume: the runtime mounts the
// image itself, and looks for the path inside it.
func (m mounting) imageMount(one *cri.Mount, volume, sub string) error {
	image, ok := m.images[volume]
	if !ok {
		return failAs(opConfig, pod.NotFound, fmt.Errorf("the image of volume %q is not there yet", volume))
	}
	one.Image, one.ImageSubPath, one.Readonly = image, sub, true
	return nil
}

// volumeOf is the source of the pod's volume of that name, nil if it has none.
func volumeOf(p *v1.Pod, name string) *v1.VolumeSource {
	for i := range p.Spec.Volumes {
		if p.Spec.Volumes[i].Name == name {
			return &p.Spec.Volumes[i].VolumeSource
		}
	}
	return nil
}

// recursively says whether a read-only mount also makes mounts below it read-only.
func (m mounting) recursively(vm *v1.VolumeMount) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, failAs(opConfig, pod.Invalid, fmt.Errorf("volume mount %q: recursiveReadOnly needs readOnly: true", vm.Name))
	}
	if vm.MountPropagation != nil && *vm.MountPropagation != v1.MountPropagationNone {
		return false, failAs(opConfig, pod.Invalid, fmt.Errorf("volume mount %q: recursiveReadOnly needs mountPropagation: None", vm.Name))
	}
	if !m.recursive && *vm.RecursiveReadOnly == v1.RecursiveReadOnlyEnabled {
		return false, failAs(opConfig, pod.Invalid, fmt.Errorf("volume mount %q: recursive read-only mounts are not supported by the runtime", vm.Name))
	}
	return m.recursive, nil
}

func propagationOf(p *v1.MountPropagationMode) (cri.MountPropagation, error) {
	if p == nil {
		return cri.MountPropagation_PROPAGATION_PRIVATE, nil
	}
	switch *p {
	case v1.MountPropagationNone:
		return cri.MountPropagation_PROPAGATION_PRIVATE, nil
	case v1.MountPropagationHostToContainer:
		return cri.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, nil
	case v1.MountPropagationBidirectional:
		return cri.MountPropagation_PROPAGATION_BIDIRECTIONAL, nil
	}
	return 0, failAs(opConfig, pod.Invalid, errors.New("invalid MountPropagation mode: "+string(*p)))
}

// containerPath is absolute: a relative mountPath counts from the root.
func containerPath(p string) string {
	if filepath.IsAbs(p) {
		return p
	}
	return filepath.Join("/", p)
}

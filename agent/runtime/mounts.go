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
	env     map[string]string
	// recursive says that the runtime can make read-only mounts recursively so.
	recursive bool
	subPath   func(context.Context, *v1.Pod, SubPath) (string, error)
}

// mounts are the container's volume mounts, in the order of its spec.
func (m mounting) mounts(ctx context.Context) ([]*cri.Mount, error) {
	var all []*cri.Mount
	for i, vm := range m.ctr.VolumeMounts {
		vol, ok := m.volumes[vm.Name]
		if !ok {
			return nil, failAs(opConfig, pod.NotFound, fmt.Errorf("cannot find volume %q to mount into container %q", vm.Name, m.ctr.Name))
		}
		sub := vm.SubPath
		if vm.SubPathExpr != "" {
			var err error
			if sub, err = expandSubPath(vm.SubPathExpr, m.env); err != nil {
				return nil, err
			}
		}
		host := vol.HostPath
		if sub != "" {
			if !filepath.IsLocal(sub) {
				return nil, failAs(opConfig, pod.Invalid, fmt.Errorf("subPath %q of volume mount %q must stay within the volume, without a leading slash and .. parts", sub, vm.Name))
			}
			var err error
			if host, err = m.subPath(ctx, m.pod, SubPath{Volume: vm.Name, Container: m.ctr.Name, Index: i, Path: sub}); err != nil {
				return nil, failAs(opConfig, kindOf(err), fmt.Errorf("failed to prepare subPath for volumeMount %q of container %q: %w", vm.Name, m.ctr.Name, err))
			}
		}
		propagation, err := propagationOf(vm.MountPropagation)
		if err != nil {
			return nil, err
		}
		one := &cri.Mount{
			ContainerPath: containerPath(vm.MountPath), HostPath: host, Readonly: vm.ReadOnly || vol.ReadOnly,
			SelinuxRelabel: true, Propagation: propagation,
		}
		if one.RecursiveReadOnly, err = m.recursively(vm); err != nil {
			return nil, err
		}
		all = append(all, one)
	}
	return all, nil
}

// recursively says whether a read-only mount also makes mounts below it read-only.
func (m mounting) recursively(vm v1.VolumeMount) (bool, error) {
	if vm.RecursiveReadOnly == nil || *vm.RecursiveReadOnly == v1.RecursiveReadOnlyDisabled {
		return false, nil
	}
	if !vm.ReadOnly {
		return false, failAs(opConfig, pod.Invalid, fmt.Errorf("volume mount %q: recursiveReadOnly needs readOnly: true", vm.Name))
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

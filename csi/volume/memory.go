package volume

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"
)

// MemorySize is the size of an emptyDir of medium Memory: the least of the
// node's allocatable memory, the pod's memory limit (if all its containers have
// one) and the volume's own sizeLimit. 0 means that none of them is known.
func (f Facts) MemorySize(v Volume) int64 {
	allocatable := f.Allocatable[v1.ResourceMemory]
	size := allocatable.Value()
	least := func(n int64) {
		if n > 0 && (size == 0 || n < size) {
			size = n
		}
	}
	least(f.podMemoryLimit())
	if limit := v.Source.EmptyDir.SizeLimit; limit != nil {
		least(limit.Value())
	}
	return size
}

func (f Facts) podMemoryLimit() int64 {
	declared := true
	limits := resourcehelper.PodLimits(f.Pod, resourcehelper.PodResourcesOptions{
		ContainerFn: func(r v1.ResourceList, _ resourcehelper.ContainerType) {
			if r.Memory().IsZero() {
				declared = false
			}
		},
	})
	if pod := f.Pod.Spec.Resources; pod != nil && !pod.Limits.Memory().IsZero() {
		return pod.Limits.Memory().Value()
	}
	if !declared {
		return 0
	}
	return limits.Memory().Value()
}

func isHuge(medium v1.StorageMedium) bool {
	return medium == v1.StorageMediumHugePages || strings.HasPrefix(string(medium), string(v1.StorageMediumHugePagesPrefix))
}

// PageSize is the size in bytes of the huge pages that an emptyDir v of medium
// HugePages or HugePages-<size> is made of. For HugePages it is the one size that
// the pod and its containers ask for: there must be one, and no second. For
// HugePages-<size> it is that size, which at least one of them must ask for.
func (f Facts) PageSize(v Volume) (int64, error) {
	medium := v.Source.EmptyDir.Medium
	var wanted int64
	if medium != v1.StorageMediumHugePages {
		text := strings.TrimPrefix(string(medium), string(v1.StorageMediumHugePagesPrefix))
		size, err := resource.ParseQuantity(text)
		if err != nil || size.Sign() <= 0 {
			return 0, invalid("medium %s: %q is not a size of huge pages; write it as HugePages-2Mi", medium, text)
		}
		wanted = size.Value()
	}
	var found int64
	for _, list := range f.resourceLists() {
		for name := range list {
			text, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
			if !ok {
				continue
			}
			size, err := resource.ParseQuantity(text)
			if err != nil {
				return 0, invalid("resource %s: %q is not a size of huge pages", name, text)
			}
			switch n := size.Value(); {
			case wanted == n:
				return n, nil
			case wanted != 0:
			case found != 0 && found != n:
				return 0, invalid("medium: %s can't be used if container requests multiple huge page sizes; name the size, as in HugePages-2Mi", medium)
			default:
				found = n
			}
		}
	}
	if found == 0 {
		return 0, invalid("medium %s: hugePages storage requested, but there is no resource request for huge pages", medium)
	}
	return found, nil
}

// resourceLists are the limits and requests of the pod and of its containers;
// for huge pages the two agree.
func (f Facts) resourceLists() []v1.ResourceList {
	var all []v1.ResourceList
	if r := f.Pod.Spec.Resources; r != nil {
		all = append(all, r.Limits, r.Requests)
	}
	for _, containers := range [][]v1.Container{f.Pod.Spec.Containers, f.Pod.Spec.InitContainers} {
		for i := range containers {
			all = append(all, containers[i].Resources.Limits, containers[i].Resources.Requests)
		}
	}
	return all
}

// ByteSize renders n bytes as Kubernetes does: 2Mi, 1Gi.
func ByteSize(n int64) string { return fmt.Sprint(resource.NewQuantity(n, resource.BinarySI)) }

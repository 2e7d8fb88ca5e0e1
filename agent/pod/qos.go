package pod

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// QOSClass returns the class that p's status names, for it never changes while
// the pod lives, or else computes it: from the pod's own requests and limits if
// it has any (KEP-2837), else from those of its init and main containers. Only
// cpu and memory count. A request that is missing counts as its limit, which is
// what defaulting makes of it.
func QOSClass(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	return ComputeQOSClass(&p.Spec)
}

// ComputeQOSClass is QOSClass for a pod that has no status.
func ComputeQOSClass(spec *v1.PodSpec) v1.PodQOSClass {
	var sum demand
	if r := spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		sum.add(r)
	} else {
		for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
			for i := range list {
				sum.add(&list[i].Resources)
			}
		}
	}
	switch {
	case !sum.any:
		return v1.PodQOSBestEffort
	case !sum.open && sum.cpu.equal() && sum.memory.equal():
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

// demand adds up what containers ask for.
type demand struct {
	cpu, memory pair
	any         bool // something is asked for
	open        bool // somebody is not limited
}

type pair struct{ request, limit resource.Quantity }

func (p pair) equal() bool { return p.request.Cmp(p.limit) == 0 }

func (d *demand) add(r *v1.ResourceRequirements) {
	d.addOne(&d.cpu, r, v1.ResourceCPU)
	d.addOne(&d.memory, r, v1.ResourceMemory)
}

func (d *demand) addOne(sum *pair, r *v1.ResourceRequirements, name v1.ResourceName) {
	limit := r.Limits[name]
	request, asked := r.Requests[name]
	if !asked {
		request = limit
	}
	if request.IsZero() && limit.IsZero() {
		d.open = true
		return
	}
	d.any, d.open = true, d.open || limit.IsZero()
	sum.request.Add(request)
	sum.limit.Add(limit)
}

package plan

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// qosClass is what the pod's requests and limits of cpu and memory make it.
func qosClass(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	all := []v1.ResourceRequirements{}
	if r := p.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		all = append(all, *r)
	} else {
		for i := range p.Spec.InitContainers {
			all = append(all, p.Spec.InitContainers[i].Resources)
		}
		for i := range p.Spec.Containers {
			all = append(all, p.Spec.Containers[i].Resources)
		}
	}
	guaranteed, any := true, false
	for _, r := range all {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			request, limit := r.Requests[name], r.Limits[name]
			any = any || !request.IsZero() || !limit.IsZero()
			guaranteed = guaranteed && !limit.IsZero() && equalOrUnset(request, limit)
		}
	}
	switch {
	case !any:
		return v1.PodQOSBestEffort
	case guaranteed:
		return v1.PodQOSGuaranteed
	}
	return v1.PodQOSBurstable
}

func equalOrUnset(request, limit resource.Quantity) bool {
	return request.IsZero() || request.Cmp(limit) == 0
}

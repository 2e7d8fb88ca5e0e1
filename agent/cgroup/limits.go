package cgroup

import (
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
)

// Bounds of the kernel, and the kubelet's reading of requests (6.2 of its formulas).
const (
	minShares = 2
	maxShares = 262144
	minQuota  = 1000 // microseconds
)

// Limits are what a pod's group is given. Zero values are not written.
type Limits struct {
	CPUShares uint64
	CPUQuota  int64  // microseconds in each CPUPeriod; -1: no limit
	CPUPeriod uint64 // microseconds
	Memory    int64  // bytes
	Pids      int64
}

// MilliCPUToShares turns thousandths of a CPU into cpu.shares of cgroup v1.
func MilliCPUToShares(milli int64) uint64 {
	return uint64(max(minShares, min(maxShares, milli*1024/1000)))
}

// MilliCPUToQuota turns thousandths of a CPU into microseconds in each period; 0 stays 0.
func MilliCPUToQuota(milli int64, period time.Duration) int64 {
	if milli == 0 {
		return 0
	}
	return max(minQuota, milli*period.Microseconds()/1000)
}

// SharesToWeight turns cpu.shares of cgroup v1 into cpu.weight of v2.
func SharesToWeight(shares uint64) uint64 {
	if shares < minShares {
		shares = minShares
	}
	if shares >= maxShares {
		return 10000
	}
	return 1 + (shares-minShares)*9999/(maxShares-minShares)
}

// weightToMilli is the inverse, as near as it goes: it sums up what burstable
// pods have requested after a restart of the agent.
func weightToMilli(weight uint64) int64 {
	if weight <= 1 {
		return 0
	}
	return sharesToMilli(minShares + (weight-1)*(maxShares-minShares)/9999)
}

func sharesToMilli(shares uint64) int64 {
	if shares <= minShares {
		return 0
	}
	return (int64(shares)*1000 + 1023) / 1024
}

// QOSClass returns the class that p's status names, for it never changes, or else
// computes it from the requests and limits of its containers.
func QOSClass(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	if r := p.Spec.Resources; r != nil && (len(r.Requests) > 0 || len(r.Limits) > 0) {
		return classOf([]v1.ResourceRequirements{*r})
	}
	var all []v1.ResourceRequirements
	for i := range p.Spec.InitContainers {
		all = append(all, p.Spec.InitContainers[i].Resources)
	}
	for i := range p.Spec.Containers {
		all = append(all, p.Spec.Containers[i].Resources)
	}
	return classOf(all)
}

// classOf: Guaranteed if each of all limits cpu and memory to what it requests,
// BestEffort if none asks for anything, else Burstable.
func classOf(all []v1.ResourceRequirements) v1.PodQOSClass {
	guaranteed, any := len(all) > 0, false
	for _, r := range all {
		for _, what := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			limit, request := r.Limits[what], r.Requests[what]
			if !limit.IsZero() || !request.IsZero() {
				any = true
			}
			if _, asked := r.Requests[what]; !asked {
				request = limit // defaulting makes the request equal the limit
			}
			if limit.IsZero() || limit.Cmp(request) != 0 {
				guaranteed = false
			}
		}
	}
	switch {
	case guaranteed:
		return v1.PodQOSGuaranteed
	case any:
		return v1.PodQOSBurstable
	}
	return v1.PodQOSBestEffort
}

// podRequestMilliCPU is what p asks for, overhead included.
func podRequestMilliCPU(p *v1.Pod) int64 {
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	return requests.Cpu().MilliValue()
}

// PodLimits computes what p's group is given. cpu and memory are limited for a
// Burstable pod only if every container declares that limit, or the pod does.
func (c Config) PodLimits(p *v1.Pod) Limits {
	l := Limits{Pids: c.PodPidsLimit}
	limits := resource.PodLimits(p, resource.PodResourcesOptions{})
	cpu, memory := limits.Cpu().MilliValue(), limits.Memory().Value()
	quota := int64(-1)
	if !c.NoCPUQuota {
		quota = MilliCPUToQuota(cpu, c.period())
	}
	switch class := QOSClass(p); class {
	case v1.PodQOSGuaranteed:
		l.CPUShares, l.CPUQuota, l.Memory = MilliCPUToShares(podRequestMilliCPU(p)), quota, memory
	case v1.PodQOSBurstable:
		l.CPUShares = MilliCPUToShares(podRequestMilliCPU(p))
		if limited(p, v1.ResourceCPU) {
			l.CPUQuota = quota
		}
		if limited(p, v1.ResourceMemory) {
			l.Memory = memory
		}
	default:
		l.CPUShares = minShares
	}
	if l.CPUQuota != 0 {
		l.CPUPeriod = uint64(c.period().Microseconds())
	}
	return l
}

// limited says that the pod, or every container of it, limits what.
func limited(p *v1.Pod, what v1.ResourceName) bool {
	if p.Spec.Resources != nil {
		if q, ok := p.Spec.Resources.Limits[what]; ok && !q.IsZero() {
			return true
		}
	}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if q := list[i].Resources.Limits[what]; q.IsZero() {
				return false
			}
		}
	}
	return true
}

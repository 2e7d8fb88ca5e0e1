package runtime

import (
	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// OOM scores: how ready the kernel is to kill a container's processes.
const (
	oomGuaranteed = -997
	oomBestEffort = 1000
)

func shares(milli int64) int64 { return max(2, min(262144, milli*1024/1000)) }

// quota is in microseconds of each period; 0: no limit.
func (c Config) quota(milli int64) (quota, period int64) {
	if milli == 0 || c.NoCPUQuota {
		return 0, 0
	}
	period = c.CPUPeriod.Microseconds()
	return max(1000, milli*period/1000), period
}

// containerResources translates requests and limits. A container without a
// limit in a pod that has one is held to the pod's.
func (c Config) containerResources(p *v1.Pod, ctr *v1.Container) *cri.LinuxContainerResources {
	limit := func(name v1.ResourceName) (q int64) {
		if l, ok := ctr.Resources.Limits[name]; ok {
			return value(name, l)
		}
		if p.Spec.Resources != nil {
			return value(name, p.Spec.Resources.Limits[name])
		}
		return 0
	}
	cpu, asked := ctr.Resources.Requests[v1.ResourceCPU]
	milli := cpu.MilliValue()
	if !asked {
		milli = ctr.Resources.Limits.Cpu().MilliValue()
	}
	r := &cri.LinuxContainerResources{
		CpuShares:          shares(milli),
		MemoryLimitInBytes: limit(v1.ResourceMemory),
		OomScoreAdj:        c.oomScore(p, ctr),
	}
	r.CpuQuota, r.CpuPeriod = c.quota(limit(v1.ResourceCPU))
	if c.Node.SwapAccounting {
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes // no swap for pods
	}
	if c.Node.CgroupV2 {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	for name, q := range ctr.Resources.Limits {
		if size, ok := pageSize(name); ok {
			r.HugepageLimits = append(r.HugepageLimits, &cri.HugepageLimit{PageSize: size, Limit: uint64(q.Value())})
		}
	}
	return r
}

// oomScore is low for containers that asked for much of the node's memory.
func (c Config) oomScore(p *v1.Pod, ctr *v1.Container) int64 {
	if p.Spec.PriorityClassName == "system-node-critical" {
		return oomGuaranteed
	}
	switch qosClass(p) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if c.Node.Memory <= 0 {
		return 999
	}
	score := 1000 - 1000*ctr.Resources.Requests.Memory().Value()/c.Node.Memory
	if isSidecar(p, ctr.Name) { // a sidecar is not killed before the container it serves
		smallest := int64(-1)
		for i := range p.Spec.Containers {
			if m := p.Spec.Containers[i].Resources.Requests.Memory().Value(); smallest < 0 || m < smallest {
				smallest = m
			}
		}
		score = min(score, 1000-1000*max(smallest, 0)/c.Node.Memory)
	}
	return max(3, min(999, score))
}

func isSidecar(p *v1.Pod, name string) bool {
	for i := range p.Spec.InitContainers {
		c := &p.Spec.InitContainers[i]
		if c.Name == name {
			return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
		}
	}
	return false
}

// qosClass is the pod's class. status.qosClass never changes once it is set.
func qosClass(p *v1.Pod) v1.PodQOSClass {
	if p.Status.QOSClass != "" {
		return p.Status.QOSClass
	}
	any, guaranteed := false, true
	look := func(r v1.ResourceRequirements) {
		for _, name := range []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory} {
			limit, request := r.Limits[name], r.Requests[name]
			any = any || !limit.IsZero() || !request.IsZero()
			_, asked := r.Requests[name]
			if limit.IsZero() || asked && limit.Cmp(request) != 0 {
				guaranteed = false
			}
		}
	}
	if r := p.Spec.Resources; r != nil && (len(r.Limits) > 0 || len(r.Requests) > 0) {
		look(*r)
	} else {
		for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
			for i := range list {
				look(list[i].Resources)
			}
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

// sandboxResources are the sum of the containers', and the overhead apart.
func (c Config) sandboxResources(p *v1.Pod) (all, overhead *cri.LinuxContainerResources) {
	opts := resource.PodResourcesOptions{ExcludeOverhead: true}
	requests, limits := resource.PodRequests(p, opts), resource.PodLimits(p, opts)
	all = &cri.LinuxContainerResources{CpuShares: shares(requests.Cpu().MilliValue()), MemoryLimitInBytes: limits.Memory().Value()}
	all.CpuQuota, all.CpuPeriod = c.quota(limits.Cpu().MilliValue())
	overhead = &cri.LinuxContainerResources{}
	if len(p.Spec.Overhead) > 0 {
		overhead.CpuShares = shares(p.Spec.Overhead.Cpu().MilliValue())
		overhead.CpuQuota, overhead.CpuPeriod = c.quota(p.Spec.Overhead.Cpu().MilliValue())
		overhead.MemoryLimitInBytes = p.Spec.Overhead.Memory().Value()
	}
	return all, overhead
}

package runtime

import (
	"maps"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	quantity "k8s.io/apimachinery/pkg/api/resource"
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
	cpu, asked := ctr.Resources.Requests[v1.ResourceCPU]
	milli := cpu.MilliValue()
	if !asked {
		milli = limitOf(p, ctr, v1.ResourceCPU)
	}
	r := &cri.LinuxContainerResources{
		CpuShares:          shares(milli),
		MemoryLimitInBytes: limitOf(p, ctr, v1.ResourceMemory),
		OomScoreAdj:        c.oomScore(p, ctr),
		HugepageLimits:     c.hugepages(ctr),
	}
	r.CpuQuota, r.CpuPeriod = c.quota(limitOf(p, ctr, v1.ResourceCPU))
	if c.Node.CgroupV2 && !c.SingleProcessOOMKill {
		r.Unified = map[string]string{"memory.oom.group": "1"}
	}
	c.limitSwap(r, p, ctr)
	return r
}

// limitOf is ctr's limit, or else the pod's own; 0: none.
func limitOf(p *v1.Pod, ctr *v1.Container, name v1.ResourceName) int64 {
	if l, ok := ctr.Resources.Limits[name]; ok && !l.IsZero() {
		return value(name, l)
	}
	if p.Spec.Resources != nil {
		return value(name, p.Spec.Resources.Limits[name])
	}
	return 0
}

// hugepages limits every size of the node: what is not asked for is not given.
func (c Config) hugepages(ctr *v1.Container) []*cri.HugepageLimit {
	limits := map[string]uint64{}
	for _, size := range c.pageSizes {
		limits[size] = 0
	}
	for name, q := range ctr.Resources.Limits {
		if size, ok := pageSize(name); ok {
			limits[size] = uint64(q.Value())
		}
	}
	var out []*cri.HugepageLimit
	for _, size := range slices.Sorted(maps.Keys(limits)) {
		out = append(out, &cri.HugepageLimit{PageSize: size, Limit: limits[size]})
	}
	return out
}

// nodePageSizes are the sizes of the kernel's huge pages, as cgroups write them.
func nodePageSizes() []string {
	var out []string
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages") // a kernel without has no sizes
	for _, e := range entries {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		if size, ok := pageSize(v1.ResourceName(v1.ResourceHugePagesPrefix + quantity.NewQuantity(kib*1024, quantity.BinarySI).String())); ok {
			out = append(out, size)
		}
	}
	return out
}

// limitSwap gives no swap, or with LimitedSwap (KEP-2400) to burstable
// containers, which request some but not all of their memory for certain, a
// part of the node's as large as their part of its memory.
func (c Config) limitSwap(r *cri.LinuxContainerResources, p *v1.Pod, ctr *v1.Container) {
	if !c.Node.SwapAccounting {
		return
	}
	if !c.Node.CgroupV2 {
		r.MemorySwapLimitInBytes = r.MemoryLimitInBytes // memory and swap together; without a limit on memory there is none on both
		return
	}
	swap := int64(0)
	request, limit := ctr.Resources.Requests.Memory(), ctr.Resources.Limits.Memory()
	if c.LimitedSwap && pod.QOSClass(p) == v1.PodQOSBurstable && !critical(p) && !request.IsZero() && request.Cmp(*limit) != 0 && c.Node.Memory > 0 {
		swap = int64(math.Round(float64(request.Value()) / float64(c.Node.Memory) * float64(c.Node.Swap)))
	}
	if r.Unified == nil {
		r.Unified = map[string]string{}
	}
	r.Unified[swapMax] = strconv.FormatInt(swap, 10)
}

// swapMax is the file of cgroup v2 that limits swap alone.
const swapMax = "memory.swap.max"

const systemCritical = 2000000000 // the priority from which a pod is critical

func critical(p *v1.Pod) bool {
	return p.Spec.Priority != nil && *p.Spec.Priority >= systemCritical
}

// oomScore is low for containers that asked for much of the node's memory. What
// the pod asks for beyond its containers counts for each of them equally.
func (c Config) oomScore(p *v1.Pod, ctr *v1.Container) int64 {
	if p.Spec.PriorityClassName == "system-node-critical" {
		return oomGuaranteed
	}
	switch pod.QOSClass(p) {
	case v1.PodQOSGuaranteed:
		return oomGuaranteed
	case v1.PodQOSBestEffort:
		return oomBestEffort
	}
	if c.Node.Memory <= 0 {
		return 999
	}
	rest := remainder(p)
	score := 1000 - 1000*(ctr.Resources.Requests.Memory().Value()+rest)/c.Node.Memory
	if isSidecar(p, ctr.Name) { // a sidecar is not killed before the container it serves
		smallest := int64(-1)
		for i := range p.Spec.Containers {
			if m := p.Spec.Containers[i].Resources.Requests.Memory().Value(); smallest < 0 || m < smallest {
				smallest = m
			}
		}
		score = min(score, 1000-1000*(max(smallest, 0)+rest)/c.Node.Memory)
	}
	return max(3, min(999, score))
}

// remainder is each container's part of the memory that the pod itself requests
// and its containers do not.
func remainder(p *v1.Pod) int64 {
	n := int64(len(p.Spec.Containers) + len(p.Spec.InitContainers))
	if p.Spec.Resources == nil || p.Spec.Resources.Requests.Memory().IsZero() || n == 0 {
		return 0
	}
	asked := resource.AggregateContainerRequests(p, resource.PodResourcesOptions{})
	return (p.Spec.Resources.Requests.Memory().Value() - asked.Memory().Value()) / n
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

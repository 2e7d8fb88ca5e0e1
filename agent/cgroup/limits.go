package cgroup

import (
	"reflect"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	units "k8s.io/apimachinery/pkg/api/resource"
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
	// HugePages limits huge pages, in bytes, by size ("2MB"); sizes of the node
	// that are not in it get none.
	HugePages map[string]uint64
}

// none says that there is nothing to write.
func (l Limits) none() bool { return reflect.DeepEqual(l, Limits{}) }

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

// podRequestMilliCPU is what p asks for, overhead included.
func podRequestMilliCPU(p *v1.Pod) int64 {
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	return requests.Cpu().MilliValue()
}

// PodLimits computes what p's group is given. cpu and memory are limited for a
// Burstable pod only if every container declares that limit, or the pod does.
func (c Config) PodLimits(p *v1.Pod) Limits {
	limits, declared := podLimits(p)
	requests := resource.PodRequests(p, resource.PodResourcesOptions{})
	l := Limits{Pids: max(c.PodPidsLimit, 0), HugePages: hugePages(requests)}
	cpu, memory := limits.Cpu().MilliValue(), limits.Memory().Value()
	quota := int64(-1)
	if !c.NoCPUQuota {
		quota = MilliCPUToQuota(cpu, c.period())
	}
	switch pod.QOSClass(p) {
	case v1.PodQOSGuaranteed:
		l.CPUShares, l.CPUQuota, l.Memory = MilliCPUToShares(requests.Cpu().MilliValue()), quota, memory
	case v1.PodQOSBurstable:
		l.CPUShares = MilliCPUToShares(requests.Cpu().MilliValue())
		if declared.cpu {
			l.CPUQuota = quota
		}
		if declared.memory {
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

// declared says which limits hold for the whole of a pod.
type declared struct{ cpu, memory bool }

// podLimits sums up p's limits, overhead included.
func podLimits(p *v1.Pod) (v1.ResourceList, declared) {
	all := declared{true, true}
	limits := resource.PodLimits(p, resource.PodResourcesOptions{ContainerFn: func(r v1.ResourceList, _ resource.ContainerType) {
		all.cpu = all.cpu && !r.Cpu().IsZero()
		all.memory = all.memory && !r.Memory().IsZero()
	}})
	if r := p.Spec.Resources; r != nil {
		all.cpu = all.cpu || !r.Limits.Cpu().IsZero()
		all.memory = all.memory || !r.Limits.Memory().IsZero()
	}
	return limits, all
}

// hugePages are the huge pages among requests, by size.
func hugePages(requests v1.ResourceList) map[string]uint64 {
	var pages map[string]uint64
	for name, q := range requests {
		size, ok := strings.CutPrefix(string(name), v1.ResourceHugePagesPrefix)
		if !ok {
			continue
		}
		bytes, err := units.ParseQuantity(size)
		if err != nil {
			continue // validation lets none through
		}
		if pages == nil {
			pages = map[string]uint64{}
		}
		pages[pageSize(bytes.Value())] = uint64(q.Value())
	}
	return pages
}

// pageSize spells a size as the kernel's files of hugetlb do: 2MB, 1GB.
func pageSize(bytes int64) string {
	unit := 0
	for ; bytes >= 1024 && bytes%1024 == 0 && unit < 3; unit++ {
		bytes /= 1024
	}
	return strconv.FormatInt(bytes, 10) + []string{"B", "KB", "MB", "GB"}[unit]
}

package report

import (
	"github.com/berthd/berth/stats"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func cpu(s sampled) *runtimeapi.CpuUsage {
	if s.CPU == nil {
		return nil
	}
	out := &runtimeapi.CpuUsage{Timestamp: s.At.UnixNano(), UsageCoreNanoSeconds: value(uint64(s.CPU.Usage)), Psi: pressure(s.CPU.Pressure)}
	if s.nanos != nil {
		out.UsageNanoCores = value(*s.nanos)
	}
	return out
}

func memory(s sampled) *runtimeapi.MemoryUsage {
	m := s.Memory
	if m == nil {
		return nil
	}
	out := &runtimeapi.MemoryUsage{
		Timestamp: s.At.UnixNano(), UsageBytes: value(m.Usage), WorkingSetBytes: value(m.WorkingSet), RssBytes: value(m.RSS),
		PageFaults: value(m.PageFaults), MajorPageFaults: value(m.MajorPageFaults), Psi: pressure(m.Pressure),
	}
	if n, ok := m.Available(); ok {
		out.AvailableBytes = value(n)
	}
	return out
}

func swap(s sampled) *runtimeapi.SwapUsage {
	if s.Memory == nil || s.Memory.Swap == nil {
		return nil
	}
	out := &runtimeapi.SwapUsage{Timestamp: s.At.UnixNano(), SwapUsageBytes: value(*s.Memory.Swap)}
	if n, ok := s.Memory.SwapAvailable(); ok {
		out.SwapAvailableBytes = value(n)
	}
	return out
}

// io is nil where there is no pressure to tell: CRI has nothing else of it.
func io(s sampled) *runtimeapi.IoUsage {
	if s.IO == nil || s.IO.Pressure == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: s.At.UnixNano(), Psi: pressure(s.IO.Pressure)}
}

func pressure(p *stats.Pressure) *runtimeapi.PsiStats {
	if p == nil {
		return nil
	}
	stall := func(s stats.Stall) *runtimeapi.PsiData {
		return &runtimeapi.PsiData{Total: uint64(s.Total), Avg10: s.Avg10, Avg60: s.Avg60, Avg300: s.Avg300}
	}
	return &runtimeapi.PsiStats{Full: stall(p.Full), Some: stall(p.Some)}
}

// sum adds up what containers use, for a pod whose cgroup holds others as well.
func sum(at int64, containers []*runtimeapi.ContainerStats) (*runtimeapi.CpuUsage, *runtimeapi.MemoryUsage) {
	if len(containers) == 0 {
		return nil, nil
	}
	c := &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(0)}
	m := &runtimeapi.MemoryUsage{Timestamp: at, UsageBytes: value(0), WorkingSetBytes: value(0), RssBytes: value(0), PageFaults: value(0), MajorPageFaults: value(0)}
	for _, s := range containers {
		c.UsageCoreNanoSeconds.Value += s.GetCpu().GetUsageCoreNanoSeconds().GetValue()
		if n := s.GetCpu().GetUsageNanoCores(); n != nil {
			if c.UsageNanoCores == nil {
				c.UsageNanoCores = value(0)
			}
			c.UsageNanoCores.Value += n.GetValue()
		}
		for _, add := range [][2]*runtimeapi.UInt64Value{
			{m.UsageBytes, s.GetMemory().GetUsageBytes()}, {m.WorkingSetBytes, s.GetMemory().GetWorkingSetBytes()}, {m.RssBytes, s.GetMemory().GetRssBytes()},
			{m.PageFaults, s.GetMemory().GetPageFaults()}, {m.MajorPageFaults, s.GetMemory().GetMajorPageFaults()},
		} {
			add[0].Value += add[1].GetValue()
		}
	}
	return c, m
}

package server

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// drain reads a stream to its end.
func drain[T any](t *testing.T, s grpc.ServerStreamingClient[T], err error) (out []*T) {
	t.Helper()
	for err == nil {
		var m *T
		if m, err = s.Recv(); err == nil {
			out = append(out, m)
		}
	}
	if !errors.Is(err, io.EOF) {
		t.Fatal(err)
	}
	return out
}

// statsNode has one pod with a container that computes, writes and has a limit,
// and one that has exited.
func statsNode(t *testing.T) (n *node, c runtimeapi.RuntimeServiceClient, box, id string) {
	n = newNode(t)
	n.importBusybox(n.berthClient())
	c, _ = n.raw()
	pod := n.pod("stats")
	pod.Linux.CgroupParent += "/pod"
	pod.Annotations = map[string]string{"note": "one"}
	box = n.sandbox(c, pod, "")
	cfg := containerConfig("busy", "sh", "-c", "head -c 3000000 /dev/zero > /data; while :; do :; done")
	cfg.Annotations = map[string]string{"note": "two"}
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100, CpuQuota: 5000, CpuPeriod: 100000}
	id = n.begin(c, box, cfg, pod)
	n.exited(c, n.begin(c, box, containerConfig("over", "true"), pod))
	return n, c, box, id
}

// TestStats reads a container and its pod by every RPC that has stats.
func TestStats(t *testing.T) {
	n, c, box, id := statsNode(t)
	ctx := t.Context()
	var s *runtimeapi.ContainerStats
	eventually(t, "there is a rate, and the file has been written", func() bool {
		r, err := c.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: id[:20]})
		if err != nil {
			t.Fatal(err)
		}
		s = r.GetStats()
		return s.GetCpu().GetUsageNanoCores().GetValue() > 0 && s.GetWritableLayer().GetUsedBytes().GetValue() >= 3000000
	})
	if got := s.GetCpu().GetUsageNanoCores().GetValue(); got > 1_000_000_000 || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetCpu().GetTimestamp() == 0 {
		t.Errorf("cpu %v: a quota of a twentieth of a core was set", s.GetCpu())
	}
	m := s.GetMemory()
	if m.GetUsageBytes().GetValue() == 0 || m.GetWorkingSetBytes().GetValue() > m.GetUsageBytes().GetValue() || m.GetRssBytes().GetValue() == 0 ||
		m.GetPageFaults().GetValue() == 0 || m.GetAvailableBytes().GetValue() != 64<<20-m.GetWorkingSetBytes().GetValue() {
		t.Errorf("memory %v", m)
	}
	if a := s.GetAttributes(); a.GetId() != id || a.GetMetadata().GetName() != "busy" || a.GetLabels()["name"] != "busy" || a.GetAnnotations()["note"] != "two" {
		t.Errorf("attributes %v", a)
	}
	if w := s.GetWritableLayer(); w.GetInodesUsed().GetValue() < 2 || w.GetFsId().GetMountpoint() == "" || w.GetTimestamp() == 0 {
		t.Errorf("writable layer %v", w)
	}
	if counted := container.DetectHost(false).SwapAccounting; counted != (s.GetSwap().GetSwapAvailableBytes() != nil) {
		t.Errorf("swap %v, counted here: %v", s.GetSwap(), counted)
	}
	n.checkPodStats(c, box, id)
	for filter, want := range map[*runtimeapi.ContainerStatsFilter]int{
		nil: 1, {Id: id}: 1, {Id: id[:9]}: 1, {PodSandboxId: box}: 1, {PodSandboxId: box[:9]}: 1, {LabelSelector: map[string]string{"name": "busy"}}: 1,
		{LabelSelector: map[string]string{"name": "over"}}: 0, {Id: "zz"}: 0,
	} {
		l, err := c.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{Filter: filter})
		if err != nil || len(l.GetStats()) != want {
			t.Errorf("%v: %d containers, %v; want %d", filter, len(l.GetStats()), err, want)
		}
		stream, err := c.StreamContainerStats(ctx, &runtimeapi.StreamContainerStatsRequest{Filter: filter})
		if got := drain(t, stream, err); len(got) != want || want == 1 && got[0].GetContainerStats()[0].GetAttributes().GetId() != id {
			t.Errorf("%v: stream %v", filter, got)
		}
	}
	_, err := c.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "nothing"})
	wantCode(t, "stats of what is not there", err, codes.NotFound)
	over, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"name": "over"}}})
	if err != nil || len(over.GetContainers()) != 1 {
		t.Fatal(over, err)
	}
	if r, err := c.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: over.GetContainers()[0].GetId()}); err != nil || r.GetStats().GetCpu() != nil || r.GetStats().GetWritableLayer() == nil {
		t.Errorf("stats of an exited container: %v, %v", r, err)
	}
}

// checkPodStats reads the one pod by its three RPCs.
func (n *node) checkPodStats(c runtimeapi.RuntimeServiceClient, box, id string) {
	t, ctx := n.t, n.t.Context()
	r, err := c.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: box[:20]})
	if err != nil {
		t.Fatal(err)
	}
	l := r.GetStats().GetLinux()
	if l.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || l.GetMemory().GetUsageBytes().GetValue() == 0 || l.GetProcess().GetProcessCount().GetValue() != 1 {
		t.Errorf("pod: cpu %v, memory %v, processes %v", l.GetCpu(), l.GetMemory(), l.GetProcess())
	}
	if len(l.GetContainers()) != 1 || l.GetContainers()[0].GetAttributes().GetId() != id {
		t.Errorf("containers of the pod: %v", l.GetContainers())
	}
	if nw := l.GetNetwork(); nw.GetDefaultInterface().GetName() != "eth0" || len(nw.GetInterfaces()) != 1 || nw.GetInterfaces()[0].GetName() != "eth1" || nw.GetDefaultInterface().GetRxBytes() == nil {
		t.Errorf("network of the pod: %v", nw)
	}
	if a := r.GetStats().GetAttributes(); a.GetMetadata().GetUid() != "uid-stats" || a.GetLabels()["app"] != "stats" || a.GetAnnotations()["note"] != "one" || a.GetId() != box {
		t.Errorf("attributes %v", a)
	}
	for filter, want := range map[*runtimeapi.PodSandboxStatsFilter]int{nil: 1, {Id: box}: 1, {Id: "zz"}: 0, {LabelSelector: map[string]string{"app": "stats"}}: 1, {LabelSelector: map[string]string{"app": "x"}}: 0} {
		l, err := c.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{Filter: filter})
		if err != nil || len(l.GetStats()) != want {
			t.Errorf("%v: %d pods, %v; want %d", filter, len(l.GetStats()), err, want)
		}
		stream, err := c.StreamPodSandboxStats(ctx, &runtimeapi.StreamPodSandboxStatsRequest{Filter: filter})
		if got := drain(t, stream, err); len(got) != want {
			t.Errorf("%v: stream %v", filter, got)
		}
	}
	_, err = c.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{PodSandboxId: "nothing"})
	wantCode(t, "stats of a pod that is not there", err, codes.NotFound)
}

// TestMetrics holds metrics to their descriptors, and five scrapers to one reading.
func TestMetrics(t *testing.T) {
	_, c, box, id := statsNode(t)
	ctx := t.Context()
	d, err := c.ListMetricDescriptors(ctx, &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	keys := map[string][]string{}
	for _, m := range d.GetDescriptors() {
		if keys[m.GetName()] != nil || m.GetHelp() == "" {
			t.Errorf("descriptor %v", m)
		}
		keys[m.GetName()] = m.GetLabelKeys()
	}
	var all *runtimeapi.ListPodSandboxMetricsResponse
	eventually(t, "the quota has been felt", func() bool {
		if all, err = c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{}); err != nil {
			t.Fatal(err)
		}
		return len(all.GetPodMetrics()) == 1 && len(all.GetPodMetrics()[0].GetContainerMetrics()) == 1 &&
			valueOf(all.GetPodMetrics()[0].GetContainerMetrics()[0].GetMetrics(), "container_cpu_cfs_throttled_periods_total") > 0 &&
			valueOf(all.GetPodMetrics()[0].GetContainerMetrics()[0].GetMetrics(), "container_processes") == 1 // head has ended
	})
	pod := all.GetPodMetrics()[0]
	of := pod.GetContainerMetrics()[0]
	if pod.GetPodSandboxId() != box || of.GetContainerId() != id {
		t.Errorf("metrics of %s, %s", pod.GetPodSandboxId(), of.GetContainerId())
	}
	told := map[string]bool{}
	for _, m := range slices.Concat(pod.GetMetrics(), of.GetMetrics()) {
		told[m.GetName()] = true
		if len(m.GetLabelValues()) != len(keys[m.GetName()]) || len(m.GetLabelValues()) < 5 {
			t.Errorf("%s: labels %q for %q", m.GetName(), m.GetLabelValues(), keys[m.GetName()])
		}
		if v := m.GetLabelValues(); v[0] != "stats" || v[1] != "test" || v[2] != "" && (v[2] != "busy" || v[3] != id || v[4] == "") {
			t.Errorf("%s: labels %q", m.GetName(), v)
		}
	}
	for name := range keys {
		// A container that does no I/O has no device, and a limit may be infinite.
		if !told[name] && !strings.HasPrefix(name, "container_fs_reads") && !strings.HasPrefix(name, "container_fs_writes") && name != "container_blkio_device_usage_total" && name != "container_ulimits_soft" {
			t.Errorf("%s is described and not told", name)
		}
	}
	for name, want := range map[string]uint64{"container_spec_memory_limit_bytes": 64 << 20, "container_spec_cpu_period": 100000, "container_spec_cpu_shares": 100, "container_processes": 1, "container_threads": 1} {
		if got := valueOf(of.GetMetrics(), name); got != want {
			t.Errorf("%s is %d, want %d", name, got, want)
		}
	}
	if at := valueOf(of.GetMetrics(), "container_start_time_seconds"); time.Since(time.Unix(int64(at), 0)) > time.Hour {
		t.Errorf("started at %d", at)
	}
	stream, err := c.StreamPodSandboxMetrics(ctx, &runtimeapi.StreamPodSandboxMetricsRequest{})
	if pages := drain(t, stream, err); len(pages) != 1 || len(pages[0].GetPodSandboxMetrics()) != 1 {
		t.Errorf("stream %v", pages)
	}
	shared := 0
	for range 5 {
		a, err := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
		b, err2 := c.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
		if err == nil && err2 == nil && proto.Equal(a, b) {
			shared++
		}
	}
	if shared < 3 {
		t.Errorf("only %d of 5 pairs of scrapers shared a reading", shared)
	}
}

func valueOf(all []*runtimeapi.Metric, name string) uint64 {
	for _, m := range all {
		if m.GetName() == name {
			return m.GetValue().GetValue()
		}
	}
	return 0
}

package runtime

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (f *fakeCRI) UpdateContainerResources(ctx context.Context, r *cri.UpdateContainerResourcesRequest) (*cri.UpdateContainerResourcesResponse, error) {
	leave, err := f.enter(ctx, fmt.Sprintf("update %s cpu=%d/%d memory=%d", r.ContainerId, r.Linux.CpuShares, r.Linux.CpuQuota, r.Linux.MemoryLimitInBytes))
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.containers[r.ContainerId] == nil {
		return nil, notFound(r.ContainerId)
	}
	return &cri.UpdateContainerResourcesResponse{}, nil
}

func (f *fakeCRI) UpdatePodSandboxResources(ctx context.Context, r *cri.UpdatePodSandboxResourcesRequest) (*cri.UpdatePodSandboxResourcesResponse, error) {
	leave, err := f.enter(ctx, "UpdatePodSandboxResources")
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.UpdatePodSandboxResourcesResponse{}, nil
}

// usage is what every fake container uses.
const usage = 50 << 20

func (f *fakeCRI) ContainerStats(ctx context.Context, r *cri.ContainerStatsRequest) (*cri.ContainerStatsResponse, error) {
	leave, err := f.enter(ctx, "ContainerStats")
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.ContainerStatsResponse{Stats: &cri.ContainerStats{Memory: &cri.MemoryUsage{UsageBytes: &cri.UInt64Value{Value: usage}}}}, nil
}

// podCgroup notes its steps among the calls, asking first.
type podCgroup struct {
	fakeCgroup
	cri        *fakeCRI
	want, have int64
}

func (c podCgroup) Resize(ctx context.Context, _ *v1.Pod, what v1.ResourceName, up bool, before func(context.Context) error) error {
	if err := before(ctx); err != nil {
		return err
	}
	leave, err := c.cri.enter(ctx, fmt.Sprintf("cgroup %s up=%v", what, up))
	if err == nil {
		leave()
	}
	return err
}

func (c podCgroup) Memory(*v1.Pod) (want, have, used int64, ok bool) {
	return c.want, c.have, 2 * usage, true
}

func (c fakeCgroup) Resize(context.Context, *v1.Pod, v1.ResourceName, bool, func(context.Context) error) error {
	return nil
}
func (c fakeCgroup) Memory(*v1.Pod) (want, have, used int64, ok bool) { return 0, 0, 0, false }

// resizing is a bench with two containers that run, and the pod as it is to be.
func resizing(t *testing.T) *bench {
	b := newBench(t)
	b.up()
	b.Cgroup = podCgroup{fakeCgroup: fakeCgroup{b.host}, cri: b.cri, want: 400 << 20, have: 200 << 20}
	second := *b.pod.Spec.Containers[0].DeepCopy()
	second.Name = "second"
	b.pod.Spec.Containers = append(b.pod.Spec.Containers, second)
	asking := func(cpu, memory string) v1.ResourceRequirements {
		q := quantities(cpu, memory)
		return v1.ResourceRequirements{Requests: q, Limits: q}
	}
	b.pod.Spec.Containers[0].Resources = asking("500m", "200Mi")
	b.pod.Spec.Containers[1].Resources = asking("250m", "80Mi")
	b.seen.Containers[0].Limits = &pod.Limits{CPUShares: 256, CPUQuota: 25000, CPUPeriod: 100000, Memory: 100 << 20}
	b.cri.containers["second"] = &cri.CreateContainerRequest{}
	b.seen.Containers = append(b.seen.Containers, pod.Container{ID: "second", Name: "second", State: pod.Running, SandboxID: b.seen.Sandboxes[0].ID,
		Limits: &pod.Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 100 << 20}})
	b.cri.calls = nil
	return b
}

func (b *bench) resize() pod.Result {
	return b.do(pod.Action{Slot: pod.SlotResize, Op: pod.OpResize, SandboxID: b.seen.Sandboxes[0].ID, Generation: 2})
}

func TestResizeOrder(t *testing.T) {
	b := resizing(t)
	r := b.resize()
	if r.Err != nil {
		t.Fatal(r.Err)
	}
	main := string(b.seen.Containers[0].ID)
	want := []string{
		"ContainerStats",
		"UpdatePodSandboxResources", "cgroup memory up=true",
		"update second cpu=0/0 memory=83886080", "update " + main + " cpu=0/0 memory=209715200",
		"UpdatePodSandboxResources", "cgroup memory up=false",
		"UpdatePodSandboxResources", "cgroup cpu up=true",
		"update second cpu=256/25000 memory=0", "update " + main + " cpu=512/50000 memory=0",
		"UpdatePodSandboxResources", "cgroup cpu up=false",
	}
	if !slices.Equal(b.cri.calls, want) {
		t.Errorf("calls\n%s\nwant\n%s", strings.Join(b.cri.calls, "\n"), strings.Join(want, "\n"))
	}
	if a := r.Actuated; a == nil || a.Generation != 2 || len(a.Containers) != 2 {
		t.Errorf("actuated %+v", a)
	}
}

func TestResizeAgainChangesNothing(t *testing.T) {
	b := resizing(t)
	b.seen.Containers[0].Limits = &pod.Limits{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, Memory: 200 << 20}
	b.seen.Containers[1].Limits = &pod.Limits{CPUShares: 256, CPUQuota: 25000, CPUPeriod: 100000, Memory: 80 << 20}
	if r := b.resize(); r.Err != nil {
		t.Fatal(r.Err)
	}
	for _, c := range b.cri.calls {
		if strings.HasPrefix(c, "update ") {
			t.Errorf("%s, although it is in force", c)
		}
	}
}

func TestResizeBelowUsage(t *testing.T) {
	b := resizing(t)
	b.pod.Spec.Containers[1].Resources.Limits[v1.ResourceMemory] = resource.MustParse("40Mi")
	r := b.resize()
	if r.Err == nil || r.Err.Error() != `resize pod: cannot decrease memory limits: attempting to set container "second" memory limit (41943040) below current usage (52428800)` {
		t.Errorf("err %v", r.Err)
	}
	b.Cgroup = podCgroup{fakeCgroup: fakeCgroup{b.host}, cri: b.cri, want: 90 << 20, have: 200 << 20}
	r = b.resize()
	if r.Err == nil || !strings.HasSuffix(r.Err.Error(), `cannot decrease memory limits: [attempting to set pod memory limit (94371840) below current usage (104857600), attempting to set container "second" memory limit (41943040) below current usage (52428800)]`) {
		t.Errorf("err %v", r.Err)
	}
	if pod.KindOf(r.Err) != pod.Unavailable || r.Actuated != nil || b.cri.count("UpdatePodSandboxResources") > 0 {
		t.Errorf("something was done: %v", b.cri.calls)
	}
}

func TestResizeRefusedByRuntime(t *testing.T) {
	b := resizing(t)
	b.cri.fail["UpdatePodSandboxResources"] = status.Error(codes.Unimplemented, "older than that")
	if r := b.resize(); r.Err != nil {
		t.Errorf("a runtime without the call: %v", r.Err)
	}
	b.cri.fail["UpdatePodSandboxResources"] = status.Error(codes.Internal, "no")
	b.cri.calls = nil
	if r := b.resize(); r.Err == nil || slices.Contains(b.cri.calls, "cgroup memory up=true") {
		t.Errorf("err %v, calls %v", r.Err, b.cri.calls)
	}
}

func TestResourcesSurviveInAnnotations(t *testing.T) {
	c := &v1.Container{Resources: v1.ResourceRequirements{Requests: quantities("100m", "1Mi"), Limits: quantities("", "2Mi")}}
	var got pod.Container
	resourcesFrom(&got, &cri.ContainerStatus{Annotations: map[string]string{annotationResources: resourcesAnnotation(c)},
		Resources: &cri.ContainerResources{Linux: &cri.LinuxContainerResources{CpuShares: 102, MemoryLimitInBytes: 2 << 20}}})
	if got.Resources == nil || !(pod.Resources{Containers: map[pod.ContainerName]v1.ResourceRequirements{"c": *got.Resources}}).Same(pod.Resources{Containers: map[pod.ContainerName]v1.ResourceRequirements{"c": c.Resources}}) {
		t.Errorf("created with %+v", got.Resources)
	}
	if got.Limits == nil || got.Limits.CPUShares != 102 || got.Limits.Memory != 2<<20 {
		t.Errorf("limits %+v", got.Limits)
	}
	got = pod.Container{}
	resourcesFrom(&got, &cri.ContainerStatus{Annotations: map[string]string{annotationResources: "{"}})
	if got.Resources != nil || got.Limits != nil {
		t.Errorf("made up: %+v", got)
	}
}

func TestPodLevelAndSwap(t *testing.T) {
	cfg := New(Config{Node: Node{Memory: 4 << 30, Swap: 1 << 30, SwapAccounting: true, CgroupV2: true}}, Deps{}).cfg
	cfg.pageSizes = []string{"1GB", "2MB"}
	p := &v1.Pod{Spec: v1.PodSpec{
		Resources: &v1.ResourceRequirements{Requests: quantities("1", "3Gi"), Limits: quantities("2", "4Gi")},
		Containers: []v1.Container{
			{Name: "a", Resources: v1.ResourceRequirements{Requests: quantities("", "1Gi"), Limits: v1.ResourceList{"hugepages-2Mi": resource.MustParse("4Mi")}}},
			{Name: "b", Resources: v1.ResourceRequirements{Limits: quantities("500m", "512Mi"), Requests: quantities("250m", "512Mi")}},
		},
	}}
	// The pod asks for 1.5 GiB beyond its containers: 768 MiB for each.
	for name, want := range map[pod.ContainerName]string{
		"a": "shares 2048 quota 200000 memory 4294967296 oom 563 swap 0 pages 1GB=0 2MB=4194304",
		"b": "shares 256 quota 50000 memory 536870912 oom 688 swap 0 pages 1GB=0 2MB=0",
	} {
		if got := show(cfg.containerResources(p, containerOf(p, name))); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	cfg.LimitedSwap = true
	for name, want := range map[pod.ContainerName]string{"a": "268435456", "b": "0"} { // a quarter of memory, a quarter of swap; b asks for all it may have
		if got := cfg.containerResources(p, containerOf(p, name)).Unified["memory.swap.max"]; got != want {
			t.Errorf("LimitedSwap %s: %s, want %s", name, got, want)
		}
	}
	if got := cfg.containerResources(p, containerOf(p, "a")).Unified["memory.oom.group"]; got != "1" {
		t.Errorf("memory.oom.group %q", got)
	}
	cfg.SingleProcessOOMKill = true
	if _, ok := cfg.containerResources(p, containerOf(p, "a")).Unified["memory.oom.group"]; ok {
		t.Error("singleProcessOOMKill is not heeded")
	}
	vip := int32(systemCritical)
	p.Spec.Priority = &vip
	if got := cfg.containerResources(p, containerOf(p, "a")).Unified["memory.swap.max"]; got != "0" {
		t.Errorf("a critical pod may swap %s", got)
	}
	p.Spec.Priority = nil
	cfg.Node.CgroupV2 = false
	if r := cfg.containerResources(p, containerOf(p, "a")); r.Unified != nil || r.MemorySwapLimitInBytes != r.MemoryLimitInBytes {
		t.Errorf("v1: %+v", r)
	}
	cfg.Node.SwapAccounting = false
	if r := cfg.containerResources(p, containerOf(p, "a")); r.MemorySwapLimitInBytes != 0 {
		t.Errorf("without swap accounting: %+v", r)
	}
}

func show(r *cri.LinuxContainerResources) string {
	var pages []string
	for _, h := range r.HugepageLimits {
		pages = append(pages, fmt.Sprintf("%s=%d", h.PageSize, h.Limit))
	}
	return fmt.Sprintf("shares %d quota %d memory %d oom %d swap %s pages %s", r.CpuShares, r.CpuQuota, r.MemoryLimitInBytes, r.OomScoreAdj, r.Unified["memory.swap.max"], strings.Join(pages, " "))
}

package cgroup

import (
	"context"
	"errors"
	"log/slog"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/berthd/berth/agent/pod"
	"github.com/opencontainers/cgroups"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// TestPodFormulas is the table of what a pod's group gets.
func TestPodFormulas(t *testing.T) {
	const mi = 1 << 20
	always := v1.ContainerRestartPolicyAlways
	sidecar := container(list("100m", "10Mi"), list("200m", "20Mi"))
	sidecar.Name, sidecar.RestartPolicy = "s", &always
	initial := container(list("1", "100Mi"), list("1", "100Mi"))
	initial.Name = "i"
	pages := list("100m", "1Mi")
	pages["hugepages-2Mi"], pages["hugepages-1Gi"] = resource.MustParse("4Mi"), resource.MustParse("1Gi")
	of := func(change func(*v1.Pod), cs ...v1.Container) *v1.Pod {
		p := podWith("1", cs...)
		if change != nil {
			change(p)
		}
		return p
	}
	level := func(requests, limits v1.ResourceList) func(*v1.Pod) {
		return func(p *v1.Pod) { p.Spec.Resources = &v1.ResourceRequirements{Requests: requests, Limits: limits} }
	}
	one := func() v1.Container { return container(list("250m", "32Mi"), list("500m", "64Mi")) }
	for what, tt := range map[string]struct {
		pod  *v1.Pod
		cfg  Config
		want Limits
	}{
		"burstable":              {of(nil, one()), Config{}, Limits{CPUShares: 256, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 * mi}},
		"two add up":             {of(nil, one(), one()), Config{}, Limits{CPUShares: 512, CPUQuota: 100000, CPUPeriod: 100000, Memory: 128 * mi}},
		"one without a limit":    {of(nil, one(), container(nil, nil)), Config{}, Limits{CPUShares: 256}},
		"short period":           {of(nil, one()), Config{CPUPeriod: 1e7}, Limits{CPUShares: 256, CPUQuota: 5000, CPUPeriod: 10000, Memory: 64 * mi}},
		"no quota":               {of(nil, one()), Config{NoCPUQuota: true}, Limits{CPUShares: 256, CPUQuota: -1, CPUPeriod: 100000, Memory: 64 * mi}},
		"pids":                   {of(nil, one()), Config{PodPidsLimit: 9}, Limits{CPUShares: 256, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 * mi, Pids: 9}},
		"pids not limited":       {of(nil, container(nil, nil)), Config{PodPidsLimit: -1}, Limits{CPUShares: 2}},
		"huge pages":             {of(nil, container(pages, nil)), Config{}, Limits{CPUShares: 102, HugePages: map[string]uint64{"2MB": 4 * mi, "1GB": 1 << 30}}},
		"quota is at least 1 ms": {of(nil, container(list("1m", "1Mi"), list("1m", "1Mi"))), Config{}, Limits{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100000, Memory: mi}},
		"a large init container": {of(func(p *v1.Pod) { p.Spec.InitContainers = []v1.Container{initial} }, one()), Config{},
			Limits{CPUShares: 1024, CPUQuota: 100000, CPUPeriod: 100000, Memory: 100 * mi}},
		"a sidecar adds up": {of(func(p *v1.Pod) { p.Spec.InitContainers = []v1.Container{sidecar} }, one()), Config{},
			Limits{CPUShares: 358, CPUQuota: 70000, CPUPeriod: 100000, Memory: 84 * mi}},
		"overhead": {of(func(p *v1.Pod) { p.Spec.Overhead = list("100m", "10Mi") }, one()), Config{},
			Limits{CPUShares: 358, CPUQuota: 60000, CPUPeriod: 100000, Memory: 74 * mi}},
		"pod level":             {of(level(list("1", "64Mi"), list("2", "128Mi")), container(nil, nil)), Config{}, Limits{CPUShares: 1024, CPUQuota: 200000, CPUPeriod: 100000, Memory: 128 * mi}},
		"pod level, cpu alone":  {of(level(list("1", ""), list("2", "")), container(nil, nil)), Config{}, Limits{CPUShares: 1024, CPUQuota: 200000, CPUPeriod: 100000}},
		"pod level, guaranteed": {of(level(list("2", "128Mi"), list("2", "128Mi")), one()), Config{}, Limits{CPUShares: 2048, CPUQuota: 200000, CPUPeriod: 100000, Memory: 128 * mi}},
		"pod level over parts":  {of(level(list("1", "64Mi"), nil), one()), Config{}, Limits{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 100000, Memory: 64 * mi}},
		"pod level and overhead": {of(func(p *v1.Pod) {
			level(list("1", "64Mi"), list("1", "64Mi"))(p)
			p.Spec.Overhead = list("1", "1Mi")
		}, one()), Config{}, Limits{CPUShares: 2048, CPUQuota: 200000, CPUPeriod: 100000, Memory: 65 * mi}},
	} {
		if got := tt.cfg.PodLimits(tt.pod); !reflect.DeepEqual(got, tt.want) {
			t.Errorf("%s: %+v, want %+v", what, got, tt.want)
		}
	}
}

func TestResizeOnThisHost(t *testing.T) {
	tree, _ := open(t, Config{})
	if tree.V2() {
		t.Skip("reads the files of cgroup v1; TestResizeV2 reads those of v2")
	}
	ctx := t.Context()
	small := podWith("r1", container(list("250m", "32Mi"), list("500m", "64Mi")))
	large := podWith("r1", container(list("500m", "64Mi"), list("1", "128Mi")))
	path, err := tree.Ensure(ctx, small)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "300") // something runs: Ensure may only raise
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	h, _ := tree.hierarchyOf("memory")
	if err := cgroups.WriteCgroupProc(h.dir(path), cmd.Process.Pid); err != nil {
		t.Fatal(err)
	}
	expect := func(when, shares, quota, memory string) {
		t.Helper()
		for file, want := range map[string]string{"cpu.shares": shares, "cpu.cfs_quota_us": quota} {
			if got := tree.read(t, path, "cpu", file); got != want {
				t.Errorf("%s: %s is %s, want %s", when, file, got, want)
			}
		}
		if got := tree.read(t, path, "memory", "memory.limit_in_bytes"); got != memory {
			t.Errorf("%s: memory limit %s, want %s", when, got, memory)
		}
	}
	asked := 0
	step := func(p *v1.Pod, what v1.ResourceName, up bool) {
		t.Helper()
		if err := tree.Resize(ctx, p, what, up, func(context.Context) error { asked++; return nil }); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		step(large, v1.ResourceMemory, true)
	}
	expect("memory raised", "256", "50000", "134217728")
	step(large, v1.ResourceMemory, false)
	step(large, v1.ResourceCPU, true)
	expect("cpu raised", "512", "100000", "134217728")
	if asked != 2 {
		t.Errorf("asked %d times before a change, want 2", asked)
	}
	if got := tree.read(t, filepath.Dir(path), "cpu", "cpu.shares"); got != "512" {
		t.Errorf("shares of burstable pods %s", got)
	}
	// A new agent, and the old size: nothing is taken away before its turn.
	again, err := Open(tree.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := again.Ensure(ctx, small); err != nil {
		t.Fatal(err)
	}
	expect("Ensure while something runs", "512", "100000", "134217728")
	step(small, v1.ResourceMemory, false)
	step(small, v1.ResourceCPU, false)
	expect("lowered", "256", "50000", "67108864")
	refused := errors.New("refused")
	err = tree.Resize(ctx, large, v1.ResourceMemory, true, func(context.Context) error { return refused })
	if !errors.Is(err, refused) {
		t.Errorf("err %v", err)
	}
	expect("refused", "256", "50000", "67108864")
	want, limit, usage, ok := tree.Memory(small)
	if !ok || want != 64<<20 || limit != 64<<20 || usage < 0 || usage > limit {
		t.Errorf("Memory: %d, %d, %d, %v", want, limit, usage, ok)
	}
}

// TestResizeV2 writes into a plain directory that looks like a v2 group.
func TestResizeV2(t *testing.T) {
	cgroups.TestMode = true
	defer func() { cgroups.TestMode = false }()
	dir := t.TempDir()
	tree := &Tree{cfg: Config{Log: slog.New(slog.DiscardHandler), Driver: Cgroupfs}, root: rootName("/"), said: map[string]bool{}, applied: map[pod.UID]state{},
		burstable: map[pod.UID]int64{}, all: []hierarchy{{mount: dir, v2: true}}, trees: []hierarchy{{mount: dir, v2: true}}}
	group := filepath.Join(dir, "kubepods/burstable/pod1")
	if err := os.MkdirAll(group, 0o755); err != nil {
		t.Fatal(err)
	}
	write := func(file, content string) {
		if err := os.WriteFile(file, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	write(filepath.Join(dir, "kubepods/burstable/cpu.weight"), "1")
	for file, content := range map[string]string{"cgroup.controllers": "cpu memory pids", "cpu.weight": "1\n", "cpu.max": "max 100000\n", "memory.max": "max\n", "memory.current": "4096\n"} {
		write(filepath.Join(group, file), content)
	}
	p := podWith("1", container(list("500m", "1Mi"), list("1", "2Mi")))
	if want, limit, usage, ok := tree.Memory(p); !ok || want != 2<<20 || limit != math.MaxInt64 || usage != 4096 {
		t.Errorf("Memory: %d, %d, %d, %v", want, limit, usage, ok)
	}
	steps := []struct {
		what                v1.ResourceName
		up                  bool
		max, weight, memory string
	}{
		{v1.ResourceMemory, true, "max 100000", "1", "max"}, // from no limit to one is lower
		{v1.ResourceMemory, false, "max 100000", "1", "2097152"},
		{v1.ResourceCPU, true, "max 100000", "20", "2097152"},
		{v1.ResourceCPU, false, "100000 100000", "20", "2097152"},
	}
	for _, s := range steps {
		if err := tree.Resize(t.Context(), p, s.what, s.up, nil); err != nil {
			t.Fatal(err)
		}
		for file, want := range map[string]string{"cpu.max": s.max, "cpu.weight": s.weight, "memory.max": s.memory} {
			if got := tree.read(t, "/kubepods/burstable/pod1", "cpu", file); got != want {
				t.Errorf("%s up=%v: %s is %q, want %q", s.what, s.up, file, got, want)
			}
		}
	}
}

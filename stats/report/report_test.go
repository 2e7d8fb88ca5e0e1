package report

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/stats"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fake is a cgroup tree of version 2 made of files.
func fake(t *testing.T, files map[string]string) *Reporter {
	t.Helper()
	root := t.TempDir()
	files["cgroup.controllers"] = "cpu io memory pids\n"
	write(t, root, files)
	r, err := stats.Open(root)
	if err != nil {
		t.Fatal(err)
	}
	return New(Config{Reader: r, Mountpoint: root, Log: slog.New(slog.DiscardHandler)})
}

func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestPressure(t *testing.T) {
	const line = "some avg10=1.50 avg60=0.25 avg300=0.05 total=9\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1\n"
	r := fake(t, map[string]string{
		"p/c/cpu.stat": "usage_usec 5\n", "p/c/cpu.pressure": line, "p/c/memory.current": "7\n", "p/c/memory.stat": "anon 1\n", "p/c/memory.pressure": line,
		"p/c/io.stat": "", "p/c/io.pressure": line, "p/cpu.stat": "usage_usec 6\n", "p/io.pressure": line, "p/cgroup.procs": "", "p/c/cgroup.procs": "1\n2\n",
	})
	c, err := r.Container(t.Context(), Container{ID: "c", Cgroup: "/p/c"}, true)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range []*runtimeapi.PsiStats{c.GetCpu().GetPsi(), c.GetMemory().GetPsi(), c.GetIo().GetPsi()} {
		if s := p.GetSome(); s.GetTotal() != 9000 || s.GetAvg10() != 1.5 || s.GetAvg60() != 0.25 || s.GetAvg300() != 0.05 || p.GetFull().GetTotal() != 1000 {
			t.Errorf("pressure %v", p)
		}
	}
	p, err := r.Pod(t.Context(), Pod{ID: "p", Cgroup: "/p"}, []*runtimeapi.ContainerStats{c})
	if err != nil || p.GetIo().GetPsi().GetSome().GetAvg10() != 1.5 || p.GetProcess().GetProcessCount().GetValue() != 2 || p.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 6000 {
		t.Errorf("pod %v, %v", p, err)
	}
	shared, err := r.Pod(t.Context(), Pod{ID: "q", Parts: []string{"/p/c"}}, []*runtimeapi.ContainerStats{c, c})
	if err != nil || shared.GetCpu().GetUsageCoreNanoSeconds().GetValue() != 10000 || shared.GetMemory().GetUsageBytes().GetValue() != 14 || shared.GetProcess().GetProcessCount().GetValue() != 2 {
		t.Errorf("pod without a cgroup of its own: %v, %v", shared, err)
	}
	if _, err := r.Container(t.Context(), Container{ID: "d", Cgroup: "/gone"}, false); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("gone: %v", err)
	}
}

// TestShared lets many callers share a reading for a second, and counts a rate
// from one to the next.
func TestShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := fake(t, map[string]string{"c/cpu.stat": "usage_usec 0\n"})
		root := r.cfg.Mountpoint
		ask := func(now bool) *runtimeapi.CpuUsage {
			c, err := r.Container(t.Context(), Container{ID: "c", Cgroup: "/c"}, now)
			if err != nil {
				t.Fatal(err)
			}
			return c.GetCpu()
		}
		if first := ask(false); first.GetUsageNanoCores() != nil {
			t.Errorf("a rate from one reading: %v", first)
		}
		write(t, root, map[string]string{"c/cpu.stat": "usage_usec 1000000\n"})
		time.Sleep(900 * time.Millisecond)
		if c := ask(false); c.GetUsageCoreNanoSeconds().GetValue() != 0 {
			t.Errorf("not shared: %v", c)
		}
		if c := ask(true); c.GetUsageCoreNanoSeconds().GetValue() != 1e9 || c.GetUsageNanoCores() != nil {
			t.Errorf("not read now, or a rate of less than a second: %v", c)
		}
		time.Sleep(1100 * time.Millisecond)
		if c := ask(false); c.GetUsageNanoCores().GetValue() != 5e8 {
			t.Errorf("one second of CPU in two: %v", c)
		}
		time.Sleep(2 * forget)
		r.samples.entry("other", time.Now())
		if len(r.samples.entries) != 1 {
			t.Errorf("%d cgroups are remembered for ever", len(r.samples.entries))
		}
	})
}

// TestLayers measures small layers at once and large ones in the background.
func TestLayers(t *testing.T) {
	r := fake(t, map[string]string{})
	dir := t.TempDir()
	write(t, dir, map[string]string{"a/b": "x", "c": "y"})
	u, ok := r.layers.usage(t.Context(), "c", dir)
	if !ok || u.Inodes != 4 || u.Bytes == 0 {
		t.Fatalf("%+v, %v", u, ok)
	}
	write(t, dir, map[string]string{"d": "z"})
	if again, ok := r.layers.usage(t.Context(), "c", dir); !ok || again.Inodes != 4 {
		t.Errorf("measured again at once: %+v", again)
	}
	r.layers.mu.Lock()
	r.layers.known["c"].at, r.layers.known["c"].took = time.Now().Add(-time.Hour), time.Second // a large one
	r.layers.mu.Unlock()
	if old, ok := r.layers.usage(t.Context(), "c", dir); !ok || old.Inodes != 4 {
		t.Errorf("a large layer is not measured while somebody waits: %+v", old)
	}
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { r.Run(ctx) })
	defer wg.Wait()
	defer stop()
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		if u, ok := r.layers.usage(t.Context(), "c", dir); ok && u.Inodes == 5 {
			return
		}
		if time.Now().After(end) {
			t.Fatal("the background does not measure")
		}
	}
}

// TestDescriptors holds names to being one thing each, with help and sorted out labels.
func TestDescriptors(t *testing.T) {
	names := map[string]bool{}
	for _, d := range Descriptors() {
		if names[d.GetName()] || d.GetHelp() == "" || len(d.GetLabelKeys()) < len(baseLabels) || fmt.Sprint(d.GetLabelKeys()[:5]) != fmt.Sprint(baseLabels) {
			t.Errorf("%v", d)
		}
		names[d.GetName()] = true
	}
	if len(names) < 45 {
		t.Errorf("only %d metrics", len(names))
	}
}

package cgroup

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/cgroups"
	v1 "k8s.io/api/core/v1"
)

// open makes a tree of its own on this host, and sees that nothing of it stays.
func open(t *testing.T, cfg Config) (*Tree, *bytes.Buffer) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes cgroups on this host")
	}
	var log bytes.Buffer
	cfg.Log = slog.New(slog.NewTextHandler(&log, nil))
	if cfg.Root == "" {
		cfg.Root = fmt.Sprintf("/berth-test-%d-%d", os.Getpid(), time.Now().UnixNano())
	}
	tree, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := tree.Purge(context.Background()); err != nil {
			t.Error(err)
		}
		for _, h := range tree.all {
			if _, err := os.Lstat(h.dir(tree.root.fsPath())); err == nil {
				t.Errorf("%s is left in %s", cfg.Root, h)
			}
		}
	})
	if len(tree.granted()) == 0 {
		t.Skip("this host grants no cgroup hierarchy: " + log.String())
	}
	return tree, &log
}

func (t *Tree) read(tb testing.TB, path, controller, file string) string {
	tb.Helper()
	h, ok := t.hierarchyOf(controller)
	if !ok {
		tb.Skipf("controller %s is not granted on this host", controller)
	}
	content, err := os.ReadFile(filepath.Join(h.dir(path), file))
	if err != nil {
		tb.Fatal(err)
	}
	return strings.TrimSpace(string(content))
}

func TestPodOnThisHost(t *testing.T) {
	tree, _ := open(t, Config{PodPidsLimit: 100})
	ctx := t.Context()
	p := podWith("0f-1", container(list("500m", "64Mi"), list("1", "64Mi")))
	for range 2 { // twice: the second finds the work done
		path, err := tree.Ensure(ctx, p)
		if err != nil {
			t.Fatal(err)
		}
		if want := tree.root.fsPath() + "/kubepods/burstable/pod0f-1"; path != want {
			t.Fatalf("path %s, want %s", path, want)
		}
	}
	path := tree.Parent(p)
	if tree.V2() {
		if got := tree.read(t, path, "cpu", "cpu.max"); got != "100000 100000" {
			t.Errorf("cpu.max %s", got)
		}
	} else {
		for file, want := range map[string]string{"cpu.shares": "512", "cpu.cfs_quota_us": "100000", "cpu.cfs_period_us": "100000"} {
			if got := tree.read(t, path, "cpu", file); got != want {
				t.Errorf("%s is %s, want %s", file, got, want)
			}
		}
		if got := tree.read(t, path, "memory", "memory.limit_in_bytes"); got != "67108864" {
			t.Errorf("memory limit %s", got)
		}
		if got := tree.read(t, path, "cpuset", "cpuset.cpus"); got == "" {
			t.Error("cpuset.cpus is empty: no process could enter")
		}
		if got := tree.read(t, filepath.Dir(path), "cpu", "cpu.shares"); got != "512" {
			t.Errorf("shares of burstable pods %s, want 512", got)
		}
	}
	if got := tree.read(t, path, "pids", "pids.max"); got != "100" {
		t.Errorf("pids.max %s", got)
	}
	found, err := tree.List(ctx)
	if err != nil || len(found) != 1 || found[0] != (Entry{"0f-1", v1.PodQOSBurstable, path}) {
		t.Errorf("List: %+v, %v", found, err)
	}
	if !tree.Exists("0f-1") || tree.Exists("0f") {
		t.Error("Exists is wrong")
	}
	// A second agent learns from the host what the first one knew.
	again, err := Open(tree.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if got := again.burstable["0f-1"]; got < 499 || got > 501 {
		t.Errorf("after a restart the pod counts for %d milli-CPU", got)
	}
	for range 2 {
		if err := again.Remove(ctx, "0f-1"); err != nil {
			t.Fatal(err)
		}
	}
	if again.Exists("0f-1") {
		t.Error("the group is still there")
	}
	if !tree.V2() {
		if got := tree.read(t, filepath.Dir(path), "cpu", "cpu.shares"); got != "2" {
			t.Errorf("shares of burstable pods %s after the last has gone, want 2", got)
		}
	}
	// Gone behind our back: made again.
	if _, err := tree.Ensure(ctx, p); err != nil || !tree.complete(tree.podName(v1.PodQOSBurstable, "0f-1")) {
		t.Errorf("not made again: %v", err)
	}
}

func TestRemoveKillsWhatIsLeft(t *testing.T) {
	tree, log := open(t, Config{})
	ctx := t.Context()
	p := podWith("k1", container(nil, nil))
	path, err := tree.Ensure(ctx, p)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("sleep", "300")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for _, h := range tree.granted() { // a container's group below the pod's
		dir := filepath.Join(h.dir(path), "container")
		if h.has("cpuset") {
			continue
		}
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := cgroups.WriteCgroupProc(dir, cmd.Process.Pid); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.Remove(ctx, "k1"); err != nil {
		t.Fatal(err)
	}
	select {
	case <-ended:
	case <-time.After(5 * time.Second):
		t.Error("the process still runs")
		cmd.Process.Kill()
	}
	if tree.Exists("k1") || !strings.Contains(log.String(), "killing processes") {
		t.Errorf("left behind, or killed in silence: %s", log.String())
	}
}

func TestBadUID(t *testing.T) {
	tree, _ := open(t, Config{})
	for _, uid := range []string{"", "../../x", "a/b"} {
		if _, err := tree.Ensure(t.Context(), podWith(uid)); err == nil {
			t.Errorf("UID %q was taken for a name", uid)
		}
	}
}

func TestWhatIsNotGrantedIsSaidOnce(t *testing.T) {
	var log bytes.Buffer
	dir := t.TempDir() // "memory" stands where nothing can be made
	file := filepath.Join(dir, "memory")
	if err := os.Symlink("/proc/self/fd", file); err != nil {
		t.Fatal(err)
	}
	cfg := Config{Root: "/x", Log: slog.New(slog.NewTextHandler(&log, nil)), hierarchies: []hierarchy{{mount: file, controllers: []string{"memory"}}}}
	tree, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		path, err := tree.Ensure(t.Context(), podWith("1", container(list("1", "1Gi"), list("1", "1Gi"))))
		if err != nil || path != "" {
			t.Fatalf("Ensure: %q, %v", path, err)
		}
	}
	if n := strings.Count(log.String(), "part=\"memory at"); n != 1 {
		t.Errorf("said %d times: %s", n, log.String())
	}
	if err := tree.Remove(t.Context(), "1"); err != nil {
		t.Error(err)
	}
}

// TestValuesV2 writes through the library into a plain directory that looks like a v2 group.
func TestValuesV2(t *testing.T) {
	cgroups.TestMode = true
	defer func() { cgroups.TestMode = false }()
	dir := t.TempDir()
	tree := &Tree{cfg: Config{Log: slog.New(slog.DiscardHandler), Driver: Cgroupfs}, root: rootName("/x"), said: map[string]bool{}, applied: map[pod.UID]state{},
		burstable: map[pod.UID]int64{}, all: []hierarchy{{mount: dir, v2: true}}, trees: []hierarchy{{mount: dir, v2: true}}}
	group := filepath.Join(dir, "x/kubepods/pod1")
	for file, content := range map[string]string{"cgroup.controllers": "cpu memory pids", "cpu.weight": "", "cpu.max": "", "memory.max": "", "memory.current": "0", "pids.max": ""} {
		if err := os.MkdirAll(group, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(group, file), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if err := tree.set(tree.podName(v1.PodQOSGuaranteed, "1"), Limits{CPUShares: 1024, CPUQuota: 50000, CPUPeriod: 100000, Memory: 1 << 20, Pids: 9}); err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]string{"cpu.weight": "39", "cpu.max": "50000 100000", "memory.max": "1048576", "pids.max": "9"} {
		if got := tree.read(t, "/x/kubepods/pod1", "cpu", file); got != want {
			t.Errorf("%s is %q, want %q", file, got, want)
		}
	}
	if got := readMilli(tree.all[0], group); got < 970 || got > 1010 {
		t.Errorf("weight reads back as %d milli-CPU", got)
	}
}

func TestPick(t *testing.T) {
	mount := func(root, at, fstype, options string) *mountinfo.Info {
		return &mountinfo.Info{Root: root, Mountpoint: at, FSType: fstype, VFSOptions: options}
	}
	got := pick([]*mountinfo.Info{
		mount("/sub", "/bind/memory", "cgroup", "rw,memory"),
		mount("/", "/sys/fs/cgroup/memory", "cgroup", "rw,memory"),
		mount("/", "/sys/fs/cgroup/cpu,cpuacct", "cgroup", "rw,cpu,cpuacct"),
		mount("/", "/sys/fs/cgroup/systemd", "cgroup", "rw,xattr,name=systemd"),
		mount("/", "/sys/fs/cgroup/unified", "cgroup2", "rw,nsdelegate"),
		mount("/", "/again", "cgroup2", "rw"),
	})
	var paths []string
	for _, h := range got {
		paths = append(paths, h.String())
	}
	want := "cpu,cpuacct at /sys/fs/cgroup/cpu,cpuacct; memory at /sys/fs/cgroup/memory; name=systemd at /sys/fs/cgroup/systemd; cgroup v2 at /sys/fs/cgroup/unified"
	if s := strings.Join(paths, "; "); s != want {
		t.Errorf("got  %s\nwant %s", s, want)
	}
}

func BenchmarkEnsureUnchanged(b *testing.B) {
	tree, err := Open(Config{Root: fmt.Sprintf("/berth-bench-%d", os.Getpid()), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		b.Fatal(err)
	}
	defer tree.Purge(b.Context())
	p := podWith("b", container(nil, nil))
	for b.Loop() {
		if _, err := tree.Ensure(b.Context(), p); err != nil {
			b.Fatal(err)
		}
	}
}

package container

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/record"
	"github.com/containerd/errdefs"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// dirRootfs binds one directory, so that each test has a mount to lose.
type dirRootfs struct{ dir string }

func (r dirRootfs) MountRootfs(_ context.Context, m RootfsMount) error {
	if m.Volume && m.Image != "volume:test" {
		return fmt.Errorf("image %s: %w", m.Image, errdefs.ErrNotFound)
	}
	tree, err := mountns.CloneTree(r.dir, false)
	if err != nil {
		return err
	}
	defer tree.Close()
	if m.Users.NS != "" {
		ns, err := os.Open(m.Users.NS)
		if err != nil {
			return err
		}
		defer ns.Close()
		if err := tree.MapIDs(ns); err != nil {
			return err
		}
	}
	if m.Volume {
		if err := tree.Restrict(unix.MOUNT_ATTR_RDONLY|unix.MOUNT_ATTR_NOEXEC, true); err != nil {
			return err
		}
	}
	return tree.Attach(m.Target)
}

func (r dirRootfs) UnmountRootfs(_ context.Context, _, target string) error {
	if err := unix.Unmount(target, unix.MNT_DETACH); err != nil && err != unix.EINVAL && err != unix.ENOENT {
		return err
	}
	return nil
}

// node is a runtime with one sandbox on the host's namespaces.
type node struct {
	t       testing.TB
	dir     string
	rtName  string
	starter ociruntime.Starter
	parent  string
	rootfs  Rootfs
	events  chan Event

	store  *Store
	mon    *monitor.Monitor
	cancel context.CancelFunc
	done   sync.WaitGroup
	log    *syncBuffer
	n      uint32
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func newNode(t testing.TB, runtime string) *node {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers are made")
	}
	for _, tool := range []string{runtime, "conmon", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("needs %s: %v", tool, err)
		}
	}
	dir := t.TempDir()
	n := &node{t: t, dir: dir, rtName: runtime, starter: ociruntime.Direct{}, events: make(chan Event, 100), log: &syncBuffer{}}
	n.parent = "/berth-test-" + filepath.Base(filepath.Dir(dir)) + "-" + fmt.Sprint(os.Getpid())
	n.parent = strings.Map(func(r rune) rune {
		if r == '/' || r == '-' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' {
			return r
		}
		return '-'
	}, n.parent)
	n.rootfs = dirRootfs{busyboxRootfs(t)}
	if mountns.Hybrid() {
		ns, err := mountns.Open(filepath.Join(dir, "ns"), n.logger())
		if err != nil {
			t.Fatal(err)
		}
		n.starter = ns
		t.Cleanup(func() {
			ns.Close()
			if err := mountns.Purge(filepath.Join(dir, "ns")); err != nil {
				t.Error(err)
			}
		})
	}
	n.up()
	t.Cleanup(n.close)
	return n
}

func (n *node) logger() *slog.Logger {
	return slog.New(slog.NewTextHandler(n.log, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// up starts an agent's worth of runtime on what is there.
func (n *node) up() {
	n.t.Helper()
	bin, err := ociruntime.Find(n.t.Context(), n.rtName)
	if err != nil {
		n.t.Fatal(err)
	}
	rt := ociruntime.New(bin, filepath.Join(n.dir, "oci"), false, n.starter)
	n.mon, err = monitor.Open(monitor.Config{
		Runtime: rt, Starter: n.starter, ExitDir: filepath.Join(n.dir, "exits"), Cgroup: n.parent + "-monitors", Log: n.logger(),
	})
	if err != nil {
		n.t.Fatal(err)
	}
	boot, err := record.BootID()
	if err != nil {
		n.t.Fatal(err)
	}
	n.store, err = Open(Config{
		Dir: filepath.Join(n.dir, "containers"), BootID: boot, Rootfs: n.rootfs, Runtime: rt, Monitor: n.mon,
		Host: DetectHost(false), Log: n.logger(), OnEvent: func(e Event) { n.events <- e },
	})
	if err != nil {
		n.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	n.cancel = cancel
	if err := n.store.Restore(ctx); err != nil {
		n.t.Fatal(err)
	}
	n.done.Go(func() { n.mon.Run(ctx) })
	n.done.Go(n.store.Run)
}

// down ends the agent, not the containers.
func (n *node) down() {
	n.cancel()
	n.done.Wait()
}

func (n *node) restart() {
	n.t.Helper()
	n.down()
	n.up()
}

// close removes everything and checks that nothing is left.
func (n *node) close() {
	ctx := context.Background()
	for _, c := range n.store.List(Filter{}) {
		if err := n.store.Remove(ctx, c.Id); err != nil {
			n.t.Errorf("remove %s: %v", c.Id, err)
		}
	}
	n.down()
	if n.t.Failed() {
		n.t.Logf("log:\n%s", n.log)
	}
	for _, d := range []string{"containers", "exits"} {
		if left, _ := os.ReadDir(filepath.Join(n.dir, d)); len(left) != 0 {
			n.t.Errorf("left in %s: %v", d, left)
		}
	}
	for _, suffix := range []string{"", "-monitors"} {
		for _, dir := range cgroupDirs(ocispec.Host{CgroupV2: DetectHost(false).CgroupV2}, n.parent+suffix) {
			if err := waitRmdir(dir); err != nil {
				n.t.Errorf("cgroup %s: %v", dir, err)
			}
		}
	}
}

func waitRmdir(dir string) error {
	var err error
	for range 50 {
		if err = unix.Rmdir(dir); err == nil || err == unix.ENOENT {
			return nil
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

var (
	busyboxOnce sync.Once
	busyboxDir  string
)

// busyboxRootfs makes a root filesystem of busybox alone, shared by all tests of the process.
func busyboxRootfs(t testing.TB) string {
	t.Helper()
	busyboxOnce.Do(func() {
		dir, err := os.MkdirTemp("", "berth-rootfs-")
		if err != nil {
			t.Fatal(err)
		}
		path, err := exec.LookPath("busybox")
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		for _, d := range []string{"bin", "etc", "tmp", "proc", "sys", "dev", "root"} {
			os.Mkdir(filepath.Join(dir, d), 0o755)
		}
		os.WriteFile(filepath.Join(dir, "bin/busybox"), b, 0o755)
		for _, a := range []string{"sh", "sleep", "echo", "cat", "ls", "stty", "id", "env", "kill", "trap", "yes", "dd", "tail", "head", "ps", "mount", "touch", "pwd", "grep", "printf", "tty", "true", "false", "nc", "test"} {
			os.Symlink("busybox", filepath.Join(dir, "bin", a))
		}
		os.WriteFile(filepath.Join(dir, "etc/passwd"), []byte("root:x:0:0::/root:/bin/sh\nweb:x:101:102::/srv:/bin/sh\n"), 0o644)
		os.WriteFile(filepath.Join(dir, "etc/group"), []byte("root:x:0:\nweb:x:102:\nextra:x:300:web\n"), 0o644)
		os.WriteFile(filepath.Join(dir, "bin/notexec"), []byte("#!/bin/sh\n"), 0o644)
		busyboxDir = dir
	})
	return busyboxDir
}

func TestMain(m *testing.M) {
	if v := victimFromEnv(); v.dir != "" {
		if err := v.live(context.Background()); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	code := m.Run()
	if busyboxDir != "" {
		os.RemoveAll(busyboxDir)
	}
	os.Exit(code)
}

// config is a container that runs args on the host's namespaces but for PIDs.
func (n *node) config(args ...string) *runtimeapi.ContainerConfig {
	n.n++
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c", Attempt: n.n},
		Image:    &runtimeapi.ImageSpec{Image: "busybox:test"},
		Command:  args, LogPath: fmt.Sprintf("c/%d.log", n.n),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Network: runtimeapi.NamespaceMode_NODE, Ipc: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER,
				},
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

func (n *node) request(cfg *runtimeapi.ContainerConfig) CreateRequest {
	return CreateRequest{
		Config: cfg,
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u-1"},
			LogDirectory: filepath.Join(n.dir, "logs"),
		},
		Sandbox:     ocispec.Sandbox{ID: "sandbox1", CgroupParent: n.parent, Hostname: "p"},
		Image:       Image{ID: "sha256:test", Ref: "busybox@sha256:test"},
		ImageConfig: imagespec.ImageConfig{Env: []string{"PATH=/bin"}},
	}
}

func (n *node) create(cfg *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id, err := n.store.Create(n.t.Context(), n.request(cfg))
	if err != nil {
		n.t.Fatalf("create: %v\nlog:\n%s", err, n.log)
	}
	return id
}

func (n *node) start(cfg *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	id := n.create(cfg)
	if err := n.store.Start(n.t.Context(), id); err != nil {
		n.t.Fatalf("start: %v\nlog:\n%s", err, n.log)
	}
	return id
}

func (n *node) status(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	st, err := n.store.Status(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return st
}

// exited waits for the end of a container.
func (n *node) exited(id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	var st *runtimeapi.ContainerStatus
	n.eventually("exit of "+id, func() bool {
		st = n.status(id)
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return st
}

func (n *node) eventually(what string, ok func() bool) {
	n.t.Helper()
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if ok() {
			return
		}
	}
	n.t.Fatalf("never: %s\nlog:\n%s", what, n.log)
}

func (n *node) logOf(id string) string {
	n.t.Helper()
	b, err := os.ReadFile(n.status(id).LogPath)
	if err != nil {
		n.t.Fatal(err)
	}
	return string(b)
}

// each runs a test with both runtimes.
func each(t *testing.T, f func(t *testing.T, n *node)) {
	for _, rt := range []string{"crun", "runc"} {
		t.Run(rt, func(t *testing.T) { f(t, newNode(t, rt)) })
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

package server

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/snapshot"
	cristream "github.com/berthd/berth/cri/stream"
	"github.com/berthd/berth/stats"
	"github.com/berthd/berth/stats/report"
	testimage "github.com/berthd/berth/test/image"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	internalapi "k8s.io/cri-api/pkg/apis"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	criclient "k8s.io/cri-client/pkg"
)

// TestMain runs the tests in a private copy of the machine's mounts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == snapshot.UnpackArg {
		snapshot.UnpackMain()
	}
	if os.Getuid() != 0 || os.Getenv("SERVER_TEST_HOST") != "" {
		if os.Getuid() == 0 {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				panic(err)
			}
		}
		os.Exit(checkSeen(m.Run()))
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "SERVER_TEST_HOST=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fakeNet gives each pod addresses that nobody reaches, and the pod "stats" a
// pair of interfaces too.
type fakeNet struct{ down *atomic.Pointer[error] }

func (fakeNet) Add(_ context.Context, r sandbox.Request) (sandbox.Result, error) {
	addresses := sandbox.Result{IPs: []string{"10.9.8.7", "fd00::7"}}
	if r.Name != "stats" {
		return addresses, nil
	}
	ns, err := netns.GetFromPath(r.NetNS)
	if err != nil {
		return sandbox.Result{}, err
	}
	defer ns.Close()
	h, err := netlink.NewHandleAt(ns)
	if err != nil {
		return sandbox.Result{}, err
	}
	defer h.Close()
	a := netlink.NewLinkAttrs()
	a.Name = "eth0"
	err = h.LinkAdd(&netlink.Veth{LinkAttrs: a, PeerName: "eth1"})
	return addresses, err
}
func (fakeNet) SetPodRanges(context.Context, []string) error  { return nil }
func (fakeNet) Delete(context.Context, sandbox.Request) error { return nil }
func (f fakeNet) Status(context.Context) error {
	if err := f.down.Load(); err != nil {
		return *err
	}
	return nil
}

const busybox = "docker.io/library/busybox:latest"

// node is a whole runtime, served on a socket.
type node struct {
	t      *testing.T
	dir    string
	parent string
	server *Server
	socket string
	boxes  *sandbox.Store
	stop   context.CancelFunc
	work   sync.WaitGroup
	shut   func() // what stop leaves open
	net    atomic.Pointer[error]
	needs  Needs
	// more are runtimes of handlers with a name, beside crun and runc.
	more map[string]string
}

type rootfs struct{ *image.Store }

func (r rootfs) MountRootfs(ctx context.Context, m container.RootfsMount) error {
	o := image.RootfsOptions{Volume: m.Volume}
	if m.Users.NS != "" {
		ns, err := os.Open(m.Users.NS)
		if err != nil {
			return err
		}
		defer ns.Close()
		o.Owner = &snapshot.Owner{UserNS: ns, UID: m.Users.UIDs.Host, GID: m.Users.GIDs.Host, Length: m.Users.UIDs.Length}
	}
	return r.Store.MountRootfs(ctx, m.ID, m.Image, m.Target, o)
}

func newNode(t *testing.T) *node { return newNodeWith(t, nil) }

// newNodeWith has more runtime handlers: name to program.
func newNodeWith(t *testing.T, more map[string]string) *node {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("containers need root")
	}
	for _, tool := range []string{"crun", "runc", "conmon"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is not installed", tool)
		}
	}
	n := &node{t: t, dir: t.TempDir(), parent: fmt.Sprintf("/berth-test-%d-%s", os.Getpid(), record.NewID()[:8])}
	// Root users of user namespaces pass through, as they do through /run.
	if err := os.Chmod(filepath.Dir(n.dir), 0o711); err != nil {
		t.Fatal(err)
	}
	n.socket = filepath.Join(n.dir, "cri.sock")
	n.more = more
	n.start()
	t.Cleanup(n.close)
	return n
}

// end ends the runtime, as its process would; pods go on.
func (n *node) end() {
	n.stop()
	n.work.Wait()
	n.boxes.Close()
	n.shut()
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// start starts the runtime over what there is.
func (n *node) start() {
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	log := slog.New(slog.NewTextHandler(n.t.Output(), nil))
	ns := must(mountns.Open(filepath.Join(n.dir, "ns"), log))
	boot := must(record.BootID())
	events := NewEvents()
	n.boxes = must(sandbox.Open(sandbox.Config{
		Dir: filepath.Join(n.dir, "sandboxes"), BootID: boot, Pins: ns, Network: fakeNet{&n.net}, Log: log, OnChange: events.OnSandbox,
	}))
	images := must(image.Open(ctx, image.Config{Root: filepath.Join(n.dir, "images"), Logger: log}))
	rt := ociruntime.New(must(ociruntime.Find(ctx, "crun")), filepath.Join(n.dir, "oci"), false, ns)
	runc := ociruntime.New(must(ociruntime.Find(ctx, "runc")), filepath.Join(n.dir, "oci"), false, ns)
	runtimes := map[string]*ociruntime.Runtime{"crun": rt, "runc": runc}
	handlers := map[string]Handler{"": {RecursiveReadOnly: true}, "crun": {RecursiveReadOnly: true}, "runc": {}, "old": {NoUserNamespaces: errors.New("it is too old")}, "gone": {Unusable: errors.New("it is not installed")}}
	for name, path := range n.more {
		runtimes[name] = ociruntime.New(must(ociruntime.FindHandler(ctx, name, path)), filepath.Join(n.dir, "oci"), false, ns)
		handlers[name] = Handler{}
	}
	mon := must(monitor.Open(monitor.Config{Runtime: rt, Starter: ns, ExitDir: filepath.Join(n.dir, "exits"), Cgroup: n.parent + "/monitors", Log: log}))
	containers := must(container.Open(container.Config{
		Dir: filepath.Join(n.dir, "containers"), BootID: boot, Rootfs: rootfs{images}, Runtime: rt, Monitor: mon,
		Runtimes: runtimes, Host: container.DetectHost(false), Log: log, OnEvent: events.OnContainer,
	}))
	if err := n.boxes.Restore(ctx); err != nil {
		n.t.Fatal(err)
	}
	if err := containers.Restore(ctx); err != nil {
		n.t.Fatal(err)
	}
	n.work.Go(func() { mon.Run(ctx) })
	n.work.Go(containers.Run)
	r := report.New(report.Config{Reader: must(stats.Open("/sys/fs/cgroup")), Mountpoint: filepath.Join(n.dir, "images"), Log: log})
	n.work.Go(func() { r.Run(ctx) })
	streams := must(cristream.Open(cristream.Config{Runtime: containers, Sandboxes: networks{n.boxes}, Log: log}))
	n.work.Go(func() { streams.Run(ctx) })
	n.needs = Needs{Programs: map[string]string{"the OCI runtime": must(exec.LookPath("crun"))}, Dirs: []string{n.dir}}
	n.server = must(New(Config{
		Sandboxes: n.boxes, Containers: containers, Images: images, Events: events, Version: "test", Log: log, Handlers: handlers,
		Streaming: streams,
		Stats:     n.stats(r, images), Ready: func(ctx context.Context) error { return n.needs.Ready(ctx) },
		Options: []grpc.ServerOption{grpc.StatsHandler(recorder{n.t.Name()})},
	}))
	n.work.Go(func() {
		if err := n.server.Serve(ctx, n.socket); err != nil {
			n.t.Error(err)
		}
	})
	n.shut = func() { images.Close(); ns.Close() }
	if !Answers(ctx, n.socket) {
		n.t.Fatal("nobody answers on the socket")
	}
}

// networks is sandbox.Store for cri/stream.
type networks struct{ *sandbox.Store }

func (b networks) NetworkNamespace(_ context.Context, id string) (*os.File, error) {
	ns, err := b.OpenNamespaces(sandbox.ID(id))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	return os.Open(ns.Path(mountns.Net))
}

// stats is stats/report for the server.
func (n *node) stats(r *report.Reporter, images *image.Store) Stats {
	of := func(f container.Facts) report.Container {
		c := report.Container{ID: f.ID, Upper: images.RootfsUpper(f.ID), PID: f.PID}
		if f.Running {
			c.Cgroup = f.CgroupsPath
		}
		return c
	}
	pod := func(f sandbox.Facts) report.Pod {
		p := report.Pod{ID: string(f.ID), Name: f.Config.GetMetadata().GetName(), Namespace: f.Config.GetMetadata().GetNamespace(), Cgroup: f.CgroupParent}
		if f.HostNetwork {
			return p
		}
		p.NetNS = func() (*os.File, error) {
			return networks{n.boxes}.NetworkNamespace(context.Background(), string(f.ID))
		}
		return p
	}
	return Stats{
		Descriptors: report.Descriptors(),
		Container: func(ctx context.Context, f container.Facts, now bool) (*runtimeapi.ContainerStats, error) {
			return r.Container(ctx, of(f), now)
		},
		Pod: func(ctx context.Context, f sandbox.Facts, containers []*runtimeapi.ContainerStats) (*runtimeapi.LinuxPodSandboxStats, error) {
			return r.Pod(ctx, pod(f), containers)
		},
		Metrics: func(ctx context.Context, f sandbox.Facts, all []Measured) (*runtimeapi.PodSandboxMetrics, error) {
			var in []report.Container
			for _, m := range all {
				c := of(m.Facts)
				c.Name, c.Image, c.StartedAt, c.Resources = m.Status.GetMetadata().GetName(), m.Status.GetImage().GetImage(), m.Status.GetStartedAt(), m.Status.GetResources().GetLinux()
				in = append(in, c)
			}
			return r.Metrics(ctx, pod(f), in)
		},
	}
}

// close removes everything through the server, and sees that nothing is left.
func (n *node) close() {
	ctx := context.Background()
	for _, b := range n.boxes.List() {
		if _, err := n.server.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: string(b.ID)}); err != nil {
			n.t.Error(err)
		}
	}
	n.end()
	if err := mountns.Purge(filepath.Join(n.dir, "ns")); err != nil {
		n.t.Error(err)
	}
	for _, d := range []string{"sandboxes", "containers", "exits"} {
		if left, err := os.ReadDir(filepath.Join(n.dir, d)); err != nil || len(left) != 0 {
			n.t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
	if _, err := os.Stat(n.socket); !os.IsNotExist(err) {
		n.t.Errorf("the socket is left: %v", err)
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*" + n.parent, "/sys/fs/cgroup" + n.parent} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			os.Remove(filepath.Join(d, "monitors"))
			os.Remove(filepath.Join(d, "pod"))
			if err := os.Remove(d); err != nil {
				n.t.Errorf("cgroups left: %v", err)
			}
		}
	}
}

// clients connects as a kubelet does.
func (n *node) clients() (internalapi.RuntimeService, internalapi.ImageManagerService) {
	n.t.Helper()
	eventually(n.t, "the socket is there", func() bool { _, err := os.Stat(n.socket); return err == nil })
	rt, err := criclient.NewRemoteRuntimeService(n.t.Context(), "unix://"+n.socket, 20*time.Second, nil, false)
	if err != nil {
		n.t.Fatal(err)
	}
	img, err := criclient.NewRemoteImageService(n.t.Context(), "unix://"+n.socket, 20*time.Second, nil, false)
	if err != nil {
		n.t.Fatal(err)
	}
	return rt, img
}

func busyboxArchive(t *testing.T) []byte {
	t.Helper()
	spec, err := testimage.BusyboxSpec(busybox)
	if err != nil {
		t.Skip(err)
	}
	var b bytes.Buffer
	if err := testimage.WriteOCI(&b, spec); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func (n *node) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name}, Hostname: name,
		LogDirectory: filepath.Join(n.dir, "logs", name), Labels: map[string]string{"app": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: n.parent, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

func containerConfig(name string, command ...string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: busybox}, Command: command, LogPath: name + ".log",
		Labels: map[string]string{"name": name},
		Linux:  &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}}},
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); !cond(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

func contains(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), want) {
		t.Errorf("error %v, want %q in it", err, want)
	}
}

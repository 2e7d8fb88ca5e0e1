package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/record"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMain runs the tests in a private copy of the machine's mounts.
func TestMain(m *testing.M) {
	if dir := os.Getenv("SANDBOX_TEST_AGENT"); dir != "" {
		if err := agent(dir, os.Getenv("SANDBOX_TEST_PARENT")); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if os.Getuid() != 0 || os.Getenv("SANDBOX_TEST_HOST") != "" {
		if os.Getuid() == 0 {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				panic(err)
			}
		}
		os.Exit(m.Run())
	}
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Env = append(os.Environ(), "SANDBOX_TEST_HOST=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Run(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	os.Exit(0)
}

// fakeNet keeps who is attached, outside the store as a plugin's files do.
type fakeNet struct {
	mu       sync.Mutex
	attached map[string]Request
	addErr   error
	delErr   error
	deletes  []Request
}

func (f *fakeNet) Add(_ context.Context, r Request) (Result, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.attached[r.SandboxID] = r
	if _, err := os.Stat(r.NetNS); err != nil {
		return Result{}, err
	}
	if f.addErr != nil {
		return Result{}, f.addErr
	}
	return Result{IPs: []string{"10.9.8.7", "fd00::7"}}, nil
}

func (f *fakeNet) Delete(_ context.Context, r Request) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.deletes = append(f.deletes, r)
	if f.delErr == nil {
		delete(f.attached, r.SandboxID)
	}
	return f.delErr
}

func (f *fakeNet) Status(context.Context) error { return nil }

// host is a machine on which stores can be opened again and again.
type host struct {
	t      testing.TB
	dir    string
	boot   string
	net    *fakeNet
	pins   *mountns.Namespaces
	parent string // of cgroups
}

func newHost(t testing.TB) *host {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	h := &host{t: t, dir: t.TempDir(), boot: "boot-1", net: &fakeNet{attached: map[string]Request{}}}
	h.parent = fmt.Sprintf("/berth-test-%d-%s", os.Getpid(), record.NewID()[:8])
	var err error
	if h.pins, err = mountns.Open(filepath.Join(h.dir, "ns"), slog.New(slog.DiscardHandler)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		h.pins.Close()
		if err := mountns.Purge(filepath.Join(h.dir, "ns")); err != nil {
			t.Error(err)
		}
		removeCgroups(h.parent)
	})
	return h
}

func (h *host) open() *Store {
	h.t.Helper()
	s, err := Open(Config{
		Dir: filepath.Join(h.dir, "sandboxes"), BootID: h.boot, Pins: h.pins, Network: h.net,
		Log: slog.New(slog.NewTextHandler(h.t.Output(), nil)),
	})
	if err != nil {
		h.t.Fatal(err)
	}
	if err := s.Restore(h.t.Context()); err != nil {
		h.t.Fatal(err)
	}
	h.t.Cleanup(s.Close)
	return s
}

// clean fails the test if anything is left on the host.
func (h *host) clean() {
	h.t.Helper()
	if pins, err := h.pins.List(); err != nil || len(pins) != 0 {
		h.t.Errorf("pins left: %v, %v", pins, err)
	}
	if len(h.net.attached) != 0 {
		h.t.Errorf("network attachments left: %v", h.net.attached)
	}
	if left, err := os.ReadDir(filepath.Join(h.dir, "sandboxes")); err != nil || len(left) != 0 {
		h.t.Errorf("directories left: %v, %v", left, err)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); strings.Contains(string(b), h.dir+"/sandboxes") {
		h.t.Error("mounts left")
	}
	leaves, _ := filepath.Glob("/sys/fs/cgroup/*" + h.parent + "/????????????????????????????????????????????????????????????????")
	if len(leaves) != 0 {
		h.t.Errorf("cgroups left: %v", leaves)
	}
}

const (
	podNS  = runtimeapi.NamespaceMode_POD
	nodeNS = runtimeapi.NamespaceMode_NODE
	contNS = runtimeapi.NamespaceMode_CONTAINER
)

func (h *host) config(name string, net, pid, ipc runtimeapi.NamespaceMode) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name},
		Hostname: name,
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    h.parent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Network: net, Pid: pid, Ipc: ipc}},
		},
	}
}

func run(t testing.TB, s *Store, c *runtimeapi.PodSandboxConfig) ID {
	t.Helper()
	id, err := s.Run(t.Context(), c, "")
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func status(t testing.TB, s *Store, id ID) Status {
	t.Helper()
	st, err := s.Get(id)
	if err != nil {
		t.Fatal(err)
	}
	return st
}

func remove(t testing.TB, s *Store, id ID) {
	t.Helper()
	for range 2 {
		if err := s.Stop(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := s.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
}

func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in ten seconds: %s", what)
		}
	}
}

// inside runs a program in a sandbox's namespaces.
func inside(t testing.TB, s *Store, id ID, script string) string {
	t.Helper()
	ns, err := s.OpenNamespaces(id)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	var args []string
	for _, k := range []mountns.Kind{mountns.Net, mountns.IPC, mountns.UTS, mountns.PID} {
		if p := ns.Path(k); p != "" {
			args = append(args, "--"+string(k)+"="+p)
		}
	}
	out, err := exec.Command("nsenter", append(args, "sh", "-c", script)...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, out)
	}
	return strings.TrimSpace(string(out))
}

func TestLife(t *testing.T) {
	h := newHost(t)
	s := h.open()
	c := h.config("web", podNS, contNS, podNS)
	c.DnsConfig = &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"a.b", "c"}, Options: []string{"ndots:5"}}
	c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "81", "kernel.shm_rmid_forced": "1"}
	c.PortMappings = []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}, {ContainerPort: 81}}
	id := run(t, s, c)
	st := status(t, s, id)
	if !st.Ready || !slices.Equal(st.IPs, []string{"10.9.8.7", "fd00::7"}) || st.InitPID != 0 {
		t.Fatalf("status %+v", st)
	}
	want := "web\n81\n1\n<LOOPBACK,UP"
	if got := inside(t, s, id, "hostname; cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; ip link show lo | grep -o '<LOOPBACK,UP'"); got != want {
		t.Errorf("inside: %q, want %q", got, want)
	}
	f, err := s.Facts(id)
	if err != nil {
		t.Fatal(err)
	}
	for path, want := range map[string]string{f.ResolvConf: "search a.b c\nnameserver 10.0.0.10\noptions ndots:5\n", f.Files.Hostname: "web\n"} {
		if got, err := os.ReadFile(path); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v; want %q", path, got, err, want)
		}
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(f.Shm, &fs); err != nil || fs.Type != unix.TMPFS_MAGIC || fs.Blocks*uint64(fs.Bsize) != 64<<20 {
		t.Errorf("shm: %+v, %v", fs, err)
	}
	r := h.net.attached[string(id)]
	if len(r.PortMappings) != 1 || r.PortMappings[0] != (PortMapping{Protocol: "tcp", ContainerPort: 80, HostPort: 8080}) || r.Name != "web" {
		t.Errorf("network was asked %+v", r)
	}
	if _, err := s.Run(t.Context(), c, ""); !errdefs.IsAlreadyExists(err) {
		t.Errorf("a second of the same name: %v", err)
	}
	if got, err := s.Resolve(string(id[:10])); err != nil || got != id {
		t.Errorf("resolve: %v, %v", got, err)
	}
	if err := s.Stop(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	if st := status(t, s, id); st.Ready || st.Why != "it was stopped" {
		t.Errorf("stopped: %+v", st)
	}
	if _, err := s.OpenNamespaces(id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("namespaces of a stopped sandbox: %v", err)
	}
	remove(t, s, id)
	if _, err := s.Get(id); !errdefs.IsNotFound(err) {
		t.Errorf("after removal: %v", err)
	}
	h.clean()
	remove(t, s, run(t, s, c)) // the name is free again
	h.clean()
}

func TestHostModes(t *testing.T) {
	h := newHost(t)
	s := h.open()
	id := run(t, s, h.config("hosty", nodeNS, nodeNS, nodeNS))
	f, err := s.Facts(id)
	name, _ := os.Hostname()
	if err != nil || !f.Ready || len(f.Join) != 0 || f.Hostname != name || f.Shm != "/dev/shm" || len(f.IPs) != 0 {
		t.Fatalf("facts %+v, %v", f, err)
	}
	if len(h.net.attached) != 0 {
		t.Error("a pod on the host's network was attached")
	}
	if !status(t, h.open(), id).Ready {
		t.Error("not ready after a restart")
	}
	remove(t, s, id)
	if len(h.net.deletes) != 0 {
		t.Error("a pod on the host's network was detached")
	}
	h.clean()
}

func TestSharedPID(t *testing.T) {
	h := newHost(t)
	s := h.open()
	id := run(t, s, h.config("shared", podNS, podNS, podNS))
	pid := status(t, s, id).InitPID
	comm, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	if err != nil || string(comm) != "berth-init\n" {
		t.Fatalf("init %d: %q, %v", pid, comm, err)
	}
	if cg, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid)); err != nil || !strings.Contains(string(cg), h.parent+"/"+string(id)) {
		t.Errorf("its cgroups: %s, %v", cg, err)
	}
	if got := inside(t, s, id, "echo $$; exit 0"); got == "" || got == fmt.Sprint(os.Getpid()) {
		t.Errorf("inside the shell has number %q", got)
	}
	// A new agent sees it alive, and sees it die.
	again := h.open()
	if !status(t, again, id).Ready {
		t.Fatal("not ready after a restart")
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, "both stores notice", func() bool { return !status(t, again, id).Ready && !status(t, s, id).Ready })
	if st := status(t, h.open(), id); st.Ready || !strings.Contains(st.Why, "init") {
		t.Errorf("after another restart: %+v", st)
	}
	remove(t, again, id)
	h.clean()
}

func TestStopEndsInit(t *testing.T) {
	h := newHost(t)
	first := h.open()
	id := run(t, first, h.config("shared", podNS, podNS, podNS))
	pid := status(t, first, id).InitPID
	s := h.open()
	remove(t, s, id)
	eventually(t, "the init has gone", func() bool { return errors.Is(unix.Kill(pid, 0), unix.ESRCH) })
	h.clean()
}

func TestNetworkFailures(t *testing.T) {
	h := newHost(t)
	s := h.open()
	h.net.addErr = errors.New("no address left")
	c := h.config("web", podNS, podNS, podNS)
	if _, err := s.Run(t.Context(), c, ""); err == nil || !strings.Contains(err.Error(), "no address left") {
		t.Fatalf("error %v", err)
	}
	h.clean()
	if l := s.List(); len(l) != 0 {
		t.Fatalf("listed: %v", l)
	}
	h.net.delErr = errors.New("plugin is stuck")
	if _, err := s.Run(t.Context(), c, ""); err == nil || !strings.Contains(err.Error(), "plugin is stuck") {
		t.Fatalf("error %v", err)
	}
	l := s.List()
	if len(l) != 1 || l[0].Ready {
		t.Fatalf("listed %v, want the half-made sandbox, not ready", l)
	}
	if pins, _ := h.pins.List(); len(pins) != 1 {
		t.Errorf("the namespaces were let go before the network: %v", pins)
	}
	h.net.delErr = nil
	if err := s.Remove(t.Context(), l[0].ID); err != nil {
		t.Fatal(err)
	}
	if last := h.net.deletes[len(h.net.deletes)-1]; last.NetNS == "" {
		t.Error("the network was not given the namespace to clean up")
	}
	h.clean()
}

func BenchmarkRun(b *testing.B) {
	h := newHost(b)
	s := h.open()
	var ids []ID
	n := 0
	for b.Loop() {
		n++
		ids = append(ids, run(b, s, h.config(fmt.Sprint("b", n), podNS, contNS, podNS)))
	}
	b.StopTimer()
	for _, id := range ids {
		remove(b, s, id)
	}
}

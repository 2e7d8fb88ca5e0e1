package security

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
	"syscall"
	"testing"

	"github.com/berthd/berth/cri/cdi"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/cri/snapshot"
	"golang.org/x/sys/unix"
)

// node is a whole runtime without a network, which all tests share: what one
// test's image or container does must not reach another's.
type node struct {
	dir    string // also holds the canaries, see canary
	parent string // cgroup
	log    *syncBuffer
	cri    *server.InProcess
	images *image.Store
	boxes  *sandbox.Store
	conts  *container.Store
	ns     *mountns.Namespaces
	stop   context.CancelFunc
	work   sync.WaitGroup
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

var (
	shared *node
	absent string // why there is none
)

// TestMain runs the tests in a private copy of the machine's mounts.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == snapshot.UnpackArg {
		snapshot.UnpackMain()
	}
	if os.Getuid() != 0 {
		absent = "containers need root"
		os.Exit(m.Run())
	}
	if os.Getenv("SECURITY_TEST_MOUNTS") == "" {
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "SECURITY_TEST_MOUNTS=1")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		err := cmd.Run()
		var exit *exec.ExitError
		switch {
		case errors.As(err, &exit):
			os.Exit(max(1, exit.ExitCode()))
		case err != nil:
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		panic(err)
	}
	code := 1
	var err error
	if shared, absent, err = openNode(); err == nil {
		code = m.Run()
		if shared != nil {
			err = shared.close()
		}
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

func openNode() (n *node, absent string, err error) {
	for _, tool := range []string{"crun", "runc", "conmon", "busybox"} {
		if _, err := exec.LookPath(tool); err != nil {
			return nil, tool + " is not installed", nil
		}
	}
	dir, err := os.MkdirTemp("", "berth-security-")
	if err != nil {
		return nil, "", err
	}
	n = &node{dir: dir, parent: fmt.Sprintf("/berth-test-security-%d", os.Getpid()), log: &syncBuffer{}}
	// Root users of user namespaces pass through, as they do through /run.
	if err := os.Chmod(dir, 0o711); err != nil {
		return nil, "", err
	}
	ctx, stop := context.WithCancel(context.Background())
	n.stop = stop
	if err := n.open(ctx); err != nil {
		return nil, "", fmt.Errorf("opening the runtime: %w\n%s", err, n.log)
	}
	return n, "", nil
}

func (n *node) state(name string) string { return filepath.Join(n.dir, "state", name) }

func (n *node) open(ctx context.Context) error {
	log := slog.New(slog.NewTextHandler(n.log, nil))
	boot, err := record.BootID()
	if err != nil {
		return err
	}
	if err := os.Mkdir(n.state(""), 0o711); err != nil {
		return err
	}
	if n.ns, err = mountns.Open(n.state("ns"), log); err != nil {
		return err
	}
	events := server.NewEvents()
	if n.boxes, err = sandbox.Open(sandbox.Config{
		Dir: n.state("sandboxes"), BootID: boot, Pins: n.ns, Network: noNetwork{}, Log: log, OnChange: events.OnSandbox,
	}); err != nil {
		return err
	}
	if n.images, err = image.Open(ctx, image.Config{Root: filepath.Join(n.dir, "images"), Logger: log}); err != nil {
		return err
	}
	runtimes := map[string]*ociruntime.Runtime{}
	for _, name := range handlers {
		b, err := ociruntime.Find(ctx, name)
		if err != nil {
			return err
		}
		runtimes[name] = ociruntime.New(b, n.state("oci"), false, n.ns)
	}
	mon, err := monitor.Open(monitor.Config{Runtime: runtimes["crun"], Starter: n.ns, ExitDir: n.state("exits"), Cgroup: n.parent + "/monitors", Log: log})
	if err != nil {
		return err
	}
	devices, err := cdi.Open([]string{n.state("cdi")})
	if err != nil {
		return err
	}
	n.conts, err = container.Open(container.Config{
		Dir: n.state("containers"), BootID: boot, Rootfs: rootfs{n.images}, Runtime: runtimes["crun"], Monitor: mon, Runtimes: runtimes, CDI: devices,
		Host: container.DetectHost(false), Log: log, OnEvent: events.OnContainer,
	})
	if err != nil {
		return err
	}
	n.work.Go(func() { mon.Run(ctx) })
	n.work.Go(n.conts.Run)
	s, err := server.New(server.Config{
		Sandboxes: n.boxes, Containers: n.conts, Images: n.images, Events: events, Version: "test", Log: log,
		Handlers: map[string]server.Handler{"": {}, "crun": {RecursiveReadOnly: true}, "runc": {RecursiveReadOnly: true}},
	})
	if err != nil {
		return err
	}
	n.cri = server.NewInProcess(s)
	n.work.Go(func() {
		if err := s.Serve(ctx, n.state("cri.sock")); err != nil {
			log.Error("serving", "err", err)
		}
	})
	return nil
}

// handlers are the OCI runtimes on which everything is tried.
var handlers = []string{"crun", "runc"}

type noNetwork struct{}

func (noNetwork) Add(context.Context, sandbox.Request) (sandbox.Result, error) {
	return sandbox.Result{}, nil
}
func (noNetwork) Delete(context.Context, sandbox.Request) error { return nil }
func (noNetwork) Status(context.Context) error                  { return nil }

type rootfs struct{ *image.Store }

// MountRootfs is as cmd wires it.
func (r rootfs) MountRootfs(ctx context.Context, m container.RootfsMount) error {
	o := image.RootfsOptions{Volume: m.Volume, Label: m.Label}
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

// close ends the runtime, and says what the tests have left.
func (n *node) close() error {
	var errs []error
	for _, b := range n.boxes.List() {
		errs = append(errs, fmt.Errorf("sandbox %s of %s is left", b.ID, b.Config.GetMetadata().GetName()))
		errs = append(errs, n.boxes.Remove(context.Background(), b.ID))
	}
	n.stop()
	n.work.Wait()
	n.boxes.Close()
	for _, d := range []string{"sandboxes", "containers", "exits"} {
		left, err := os.ReadDir(n.state(d))
		if err == nil && len(left) != 0 {
			err = fmt.Errorf("left in %s: %v", d, left)
		}
		errs = append(errs, err)
	}
	n.images.Close()
	n.ns.Close()
	errs = append(errs, mountns.Purge(n.state("ns")))
	for _, pattern := range []string{"/sys/fs/cgroup/*" + n.parent, "/sys/fs/cgroup" + n.parent} {
		dirs, _ := filepath.Glob(pattern)
		for _, d := range dirs {
			os.Remove(filepath.Join(d, "monitors"))
			errs = append(errs, os.Remove(d))
		}
	}
	err := errors.Join(errs...)
	if err != nil {
		return fmt.Errorf("%w\n%s", err, lastLines(n.log.String(), 40))
	}
	return os.RemoveAll(n.dir)
}

func lastLines(s string, most int) string {
	lines := strings.Split(strings.TrimSpace(s), "\n")
	return strings.Join(lines[max(0, len(lines)-most):], "\n")
}

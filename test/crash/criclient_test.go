package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/registry"
)

// client leads a pod through its life over CRI, as a kubelet does: it looks at
// what the runtime has and does what is missing, so that every call is one that
// may be repeated after the runtime was killed in it.
type client struct {
	*node.Agent
	image    string
	oci      string // flag --oci-runtime
	env      []string
	signal   string
	killedAt string
	ownUsers bool
	anew     bool                     // the machine had nothing of Berth before this life
	pids     runtimeapi.NamespaceMode // whose PID namespace the container is in

	conn  *grpc.ClientConn
	rt    runtimeapi.RuntimeServiceClient
	im    runtimeapi.ImageServiceClient
	berth api.BerthClient
	cmd   *exec.Cmd
	log   *os.File
	seen  seen
}

// seen is what the client knows of its pod.
type seen struct {
	box, container string
	ip             string
	started        int64 // when the container was first told to run
}

// spawn starts `berth runtime`, and connects.
func (c *client) spawn() {
	args := []string{"runtime", "--listen", "unix://" + c.CRISocket(), "--root-dir", c.Dir + "/root", "--state-dir", c.Dir + "/run", "--cgroup-root", "/" + filepath.Base(c.Dir), "--certs-dir", c.Dir + "/certs"}
	c.cmd = exec.Command(c.Binary, append(args, "--oci-runtime", c.oci)...)
	c.cmd.Env = append(os.Environ(), c.env...)
	c.cmd.Stdout, c.cmd.Stderr = c.log, c.log
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := c.cmd.Start(); err != nil {
		c.T.Fatal(err)
	}
	conn, err := grpc.NewClient("unix://"+c.CRISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		c.T.Fatal(err)
	}
	c.conn, c.rt, c.im, c.berth = conn, runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn), api.NewBerthClient(conn)
}

// kill ends the runtime by sig and reaps it.
func (c *client) kill(sig syscall.Signal) {
	if c.cmd == nil {
		return
	}
	_ = c.cmd.Process.Signal(sig) // it may have ended
	_ = c.cmd.Wait()
	c.cmd = nil
	_ = c.conn.Close()
}

func (c *client) stands() bool {
	body, err := os.ReadFile(c.signal)
	return err == nil && len(body) > 0
}

// await runs do until it says that its step is done. When the runtime stands at
// its failpoint, it is killed, and another started.
func (c *client) await(name string, do func(context.Context) error) {
	c.T.Helper()
	for end := time.Now().Add(40 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		err := c.try(name, do)
		if err == nil {
			return
		}
		if time.Now().After(end) {
			log, _ := os.ReadFile(c.log.Name())
			c.T.Fatalf("step %q, killed at %q: %v\n%s", name, c.killedAt, err, log[max(0, len(log)-6000):])
		}
	}
}

// try runs do once, and kills the runtime if it comes to stand meanwhile.
func (c *client) try(name string, do func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- do(ctx) }()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		var err error
		ended := false
		select {
		case err = <-done:
			ended = true
		case <-tick.C:
		}
		if c.killedAt == "" && len(c.env) > 0 && c.stands() {
			c.killedAt = name
			c.kill(syscall.SIGKILL)
			cancel()
			if !ended {
				<-done
			}
			c.env = nil
			c.spawn()
			return errors.New("killed in it")
		}
		if ended {
			return err
		}
	}
}

func (c *client) running() bool {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	return err == nil && !strings.Contains(string(body), ") Z ")
}

// audit asks the runtime what it has without a record.
func (c *client) audit(ctx context.Context) error {
	a, err := c.berth.Audit(ctx, &api.AuditRequest{})
	if err == nil && len(a.Leaks) > 0 {
		err = fmt.Errorf("the runtime's own audit: %v", a.Leaks)
	}
	return err
}

func (c *client) host() string { return filepath.Join(c.Dir, "host") }

// check sees that the container's process started once, and that nothing is
// left of the whole life: cgroups, mounts, namespaces, rules, files, blobs.
func (c *client) check(before node.Host) {
	starts, err := os.ReadFile(filepath.Join(c.host(), "starts"))
	if err != nil || string(starts) != "started\n" {
		c.T.Errorf("the container's process started %q, want once (%v)", starts, err)
	}
	c.removePodCgroup()
	node.Eventually(c.T, 15*time.Second, func() error {
		var left []string
		for _, x := range node.ReadHost(c.T).Added(before, c.Marks()) {
			// A network that was chosen anew has a bridge and rules of its own.
			own := strings.Contains(x, " BERTH-") || strings.HasPrefix(x, "link: berth")
			if !strings.Contains(x, c.Binary) && !(c.anew && own) {
				left = append(left, x)
			}
		}
		for _, pattern := range []string{
			"run/sandboxes/*", "run/containers/*", "run/exits/*", "run/cni/attachments/*", "root/cni/attachments/*", "root/images/rw/[^.]*",
			"root/images/content/blobs/*/*", "root/images/content/ingest/*", "root/images/layers-*/snapshots/[0-9]*",
		} {
			found, _ := filepath.Glob(filepath.Join(c.Dir, pattern)) // the patterns are valid
			left = append(left, found...)
		}
		for _, dir := range []string{"/root/cni", "/run/cni"} {
			_ = filepath.WalkDir(c.Dir+dir, func(path string, d fs.DirEntry, err error) error {
				if err == nil && strings.Count(d.Name(), ".") == 3 && !d.IsDir() { // host-local's leases are named after addresses
					left = append(left, path)
				}
				return nil
			})
		}
		if len(left) > 0 {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}

// removePodCgroup removes the pod's cgroup, which has to be empty by then.
func (c *client) removePodCgroup() {
	for _, pattern := range []string{"/sys/fs/cgroup", "/sys/fs/cgroup/*"} {
		found, _ := filepath.Glob(pattern + c.cgroupParent()) // the patterns are valid
		for _, dir := range found {
			for d := dir; filepath.Base(d) != filepath.Base(c.Dir); d = filepath.Dir(d) {
				node.Eventually(c.T, 5*time.Second, func() error { return os.Remove(d) })
			}
		}
	}
}

// reset begins another life.
func (c *client) reset() {
	c.killedAt, c.seen = "", seen{}
	if err := errors.Join(os.RemoveAll(c.host()), os.Mkdir(c.host(), 0o777), os.Chmod(c.host(), 0o777), os.RemoveAll(c.signal), os.RemoveAll(c.Dir+"/log")); err != nil {
		c.T.Fatal(err)
	}
}

// newClient makes directories, and an image in a registry.
func newClient(t *testing.T, oci string) *client {
	a := node.New(t, node.Binary(t, "BERTH_FAILPOINT_BIN", "failpoints"))
	c := &client{Agent: a, oci: oci, signal: filepath.Join(a.Dir, "signal")}
	r := registry.Start(t)
	spec, err := image.BusyboxSpec()
	if err != nil {
		t.Fatal(err)
	}
	spec.Layers = append(spec.Layers, image.Layer{"/etc/second": {Body: []byte("layer\n"), Mode: 0o644}})
	r.Push(t, "killed", "1", spec)
	c.image = r.Address + "/killed:1"
	if err := os.MkdirAll(filepath.Join(a.Dir, "certs", r.Address), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(a.Dir, "certs", r.Address, "hosts.toml"), []byte(fmt.Sprintf("server = \"http://%s\"\n", r.Address)), 0o644); err != nil {
		t.Fatal(err)
	}
	if c.log, err = os.Create(filepath.Join(a.Dir, "runtime.log")); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.kill(syscall.SIGTERM); c.log.Close() })
	return c
}

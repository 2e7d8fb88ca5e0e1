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

// live leads the pod through its life.
func (c *client) live() {
	for _, s := range []struct {
		name string
		do   func(context.Context) error
	}{
		{"answer", c.answers},
		{"PullImage", c.pull}, {"RunPodSandbox", c.runSandbox}, {"CreateContainer", c.create}, {"StartContainer", c.start}, {"serve", c.serves},
		{"ExecSync", c.exec}, {"UpdateContainerResources", c.update}, {"ReopenContainerLog", c.reopen},
		{"StopContainer", c.stopContainer}, {"RemoveContainer", c.removeContainer}, {"StopPodSandbox", c.stopSandbox}, {"RemovePodSandbox", c.removeSandbox}, {"RemoveImage", c.removeImage},
	} {
		c.await(s.name, s.do)
	}
	if c.killedAt == "" && len(c.env) > 0 { // it may stand there on its way out
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		for end := time.Now().Add(2 * time.Second); !c.stands() && c.running() && time.Now().Before(end); {
			time.Sleep(5 * time.Millisecond)
		}
		if c.stands() {
			c.killedAt = "after"
		}
		c.kill(syscall.SIGKILL)
		c.env = nil
		c.spawn()
	}
	c.await("audit", c.audit)
}

func (c *client) running() bool {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", c.cmd.Process.Pid))
	return err == nil && !strings.Contains(string(body), ") Z ")
}

func (c *client) pull(ctx context.Context) error {
	spec := &runtimeapi.ImageSpec{Image: c.image}
	if _, err := c.im.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec}); err != nil {
		return err
	}
	r, err := c.im.ImageStatus(ctx, &runtimeapi.ImageStatusRequest{Image: spec})
	if err == nil && r.Image == nil {
		err = errors.New("pulled, but not there")
	}
	return err
}

// cgroupParent is the pod's cgroup, which is the client's to make and to remove.
func (c *client) cgroupParent() string { return "/" + filepath.Base(c.Dir) + "/kubepods/pod" + podUID }

const podUID = "6a0c7c0e-0000-4000-8000-0000000000aa"

func (c *client) podConfig(attempt uint32) *runtimeapi.PodSandboxConfig {
	ns := &runtimeapi.NamespaceOption{Pid: c.pids}
	if c.ownUsers {
		ids := []*runtimeapi.IDMapping{{HostId: 7 << 16, Length: 1 << 16}}
		ns.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "killed", Namespace: "default", Uid: podUID, Attempt: attempt},
		Hostname: "killed", LogDirectory: c.Dir + "/log/killed", DnsConfig: &runtimeapi.DNSConfig{Servers: []string{"127.0.0.9"}},
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 8080, HostPort: hostPort - 1}},
		Labels:       map[string]string{"io.kubernetes.pod.uid": podUID},
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: c.cgroupParent(), Sysctls: map[string]string{"net.ipv4.ip_unprivileged_port_start": "1000"},
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: ns}},
	}
}

func (c *client) runSandbox(ctx context.Context) error {
	r, err := c.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"io.kubernetes.pod.uid": podUID}}})
	if err != nil {
		return err
	}
	for _, s := range r.Items {
		if s.State == runtimeapi.PodSandboxState_SANDBOX_READY {
			c.seen.box = s.Id
			st, err := c.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: s.Id})
			if err != nil {
				return err
			}
			if c.seen.ip = st.Status.GetNetwork().GetIp(); c.seen.ip == "" {
				return fmt.Errorf("ready sandbox %s has no address", s.Id)
			}
			return nil
		}
		// What is left of a killed attempt goes the way that everything goes.
		if _, err := c.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return err
		}
		if _, err := c.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			return err
		}
	}
	if _, err := c.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: c.podConfig(0)}); err != nil {
		return err
	}
	return errors.New("look at it once more")
}

func (c *client) list(ctx context.Context) (*runtimeapi.Container, error) {
	r, err := c.rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: c.seen.box}})
	if err != nil || len(r.Containers) == 0 {
		return nil, err
	}
	if len(r.Containers) > 1 {
		c.T.Errorf("one container was made, and %d are there", len(r.Containers))
	}
	return r.Containers[0], nil
}

func (c *client) create(ctx context.Context) error {
	l, err := c.list(ctx)
	if err != nil {
		return err
	}
	if l != nil {
		if l.State != runtimeapi.ContainerState_CONTAINER_CREATED {
			c.T.Errorf("a container that was never started is %v", l.State)
		}
		c.seen.container = l.Id
		return nil
	}
	users := c.podConfig(0).Linux.SecurityContext.NamespaceOptions
	mount := &runtimeapi.Mount{ContainerPath: "/host", HostPath: c.host()}
	if u := users.UsernsOptions; u != nil {
		mount.UidMappings, mount.GidMappings = u.Uids, u.Gids
	}
	_, err = c.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: c.seen.box, SandboxConfig: c.podConfig(0), Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: c.image}, LogPath: "main/0.log",
		Command: []string{"sh", "-c", `echo started >> /host/starts; trap "exit 3" TERM; echo one > /tmp/value; httpd -p 8080 -h /tmp; while :; do echo line; sleep 0.1 & wait $!; done`},
		Mounts:  append([]*runtimeapi.Mount{mount, {ContainerPath: "/img", Image: &runtimeapi.ImageSpec{Image: c.image}, Readonly: true}}, c.missing()...),
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources:       &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 102},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: users, Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}},
		},
	}})
	if err == nil {
		err = errors.New("look at it once more")
	}
	return err
}

// missing is a mount whose source the runtime has to make, as for a kubelet's
// hostPath volumes without a type; a user namespace could not own it.
func (c *client) missing() []*runtimeapi.Mount {
	if c.ownUsers {
		return nil
	}
	return []*runtimeapi.Mount{{ContainerPath: "/made", HostPath: c.host() + "/made/for/it"}}
}

func (c *client) status(ctx context.Context) (*runtimeapi.ContainerStatus, error) {
	r, err := c.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: c.seen.container})
	return r.GetStatus(), err
}

func (c *client) start(ctx context.Context) error {
	s, err := c.status(ctx)
	if err != nil {
		return err
	}
	switch s.State {
	case runtimeapi.ContainerState_CONTAINER_RUNNING:
		c.seen.started = s.StartedAt
		return nil
	case runtimeapi.ContainerState_CONTAINER_CREATED:
		if _, err := c.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.seen.container}); err != nil {
			return err
		}
		return errors.New("look at it once more")
	}
	c.T.Fatalf("killed at %q, the container is %v: %s %s", c.killedAt, s.State, s.Reason, s.Message)
	return nil
}

func (c *client) serves(context.Context) error {
	l := &life{}
	return l.servesAt(hostPort-1, "one\n")
}

func (c *client) exec(ctx context.Context) error {
	r, err := c.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: c.seen.container, Cmd: []string{"cat", "/tmp/value", "/img/etc/group"}, Timeout: 10})
	if err == nil && (r.ExitCode != 0 || !strings.HasPrefix(string(r.Stdout), "one\nroot:")) {
		err = fmt.Errorf("exec: %d, %q", r.ExitCode, r.Stdout)
	}
	return err
}

func (c *client) update(ctx context.Context) error {
	if _, err := c.rt.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: c.seen.container, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 80 << 20, CpuShares: 204}}); err != nil {
		return err
	}
	s, err := c.status(ctx)
	if err == nil && s.GetResources().GetLinux().GetMemoryLimitInBytes() != 80<<20 {
		err = fmt.Errorf("resources are %v", s.GetResources())
	}
	return err
}

func (c *client) reopen(ctx context.Context) error {
	log := c.Dir + "/log/killed/main/0.log"
	if err := os.Rename(log, log+".1"); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if _, err := c.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: c.seen.container}); err != nil {
		return err
	}
	_, err := os.Stat(log)
	return err
}

func (c *client) stopContainer(ctx context.Context) error {
	s, err := c.status(ctx)
	if err != nil {
		return err
	}
	if s.StartedAt != c.seen.started {
		c.T.Errorf("started at %d, and then at %d", c.seen.started, s.StartedAt)
	}
	if _, err := c.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: c.seen.container, Timeout: 10}); err != nil {
		return err
	}
	if s, err = c.status(ctx); err != nil {
		return err
	}
	if s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 3 || s.FinishedAt < s.StartedAt {
		return fmt.Errorf("stopped, and is %v with exit code %d: %s %s", s.State, s.ExitCode, s.Reason, s.Message)
	}
	return nil
}

func (c *client) removeContainer(ctx context.Context) error {
	if _, err := c.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: c.seen.container}); err != nil {
		return err
	}
	l, err := c.list(ctx)
	if err == nil && l != nil {
		err = fmt.Errorf("removed, and is still %v", l.State)
	}
	return err
}

func (c *client) stopSandbox(ctx context.Context) error {
	_, err := c.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: c.seen.box})
	return err
}

func (c *client) removeSandbox(ctx context.Context) error {
	if _, err := c.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: c.seen.box}); err != nil {
		return err
	}
	r, err := c.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err == nil && len(r.Items) > 0 {
		err = fmt.Errorf("removed, and is still %v", r.Items[0].State)
	}
	return err
}

func (c *client) removeImage(ctx context.Context) error {
	if _, err := c.im.RemoveImage(ctx, &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: c.image}}); err != nil {
		return err
	}
	r, err := c.im.ListImages(ctx, &runtimeapi.ListImagesRequest{})
	if err == nil && len(r.Images) > 0 {
		err = fmt.Errorf("removed, and still there: %v", r.Images)
	}
	return err
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

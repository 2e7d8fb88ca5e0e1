package crash

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

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

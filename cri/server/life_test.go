package server

import (
	"context"
	"math"
	"os"
	"path/filepath"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestIdempotence ends what runs, what has ended and what never was.
func TestIdempotence(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	for _, handler := range []string{"crun", "runc"} {
		pod := n.pod("idem-" + handler)
		box := n.sandbox(c, pod, handler)
		id := n.begin(c, box, containerConfig("main", sleep...), pod)
		other := n.create(c, box, containerConfig("never", sleep...), pod)
		for range 2 {
			_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: -1})
			wantCode(t, "stop", err, codes.OK)
		}
		if st := n.status(c, id); st.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || st.GetExitCode() != 137 || st.GetReason() != "Error" {
			t.Errorf("stopped: %v", st)
		}
		_, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		wantCode(t, "start of an exited container", err, codes.FailedPrecondition)
		_, err = c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 5})
		wantCode(t, "exec in an exited container", err, codes.FailedPrecondition)
		_, err = c.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		wantCode(t, "log of an exited container", err, codes.FailedPrecondition)
		_, err = c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuShares: 10}})
		wantCode(t, "limits of an exited container", err, codes.FailedPrecondition)
		running := n.begin(c, box, containerConfig("running", sleep...), pod)
		for range 2 {
			_, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: running})
			wantCode(t, "removal of a running container", err, codes.OK)
		}
		for range 2 {
			_, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: box})
			wantCode(t, "stop of a sandbox", err, codes.OK)
		}
		_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: other})
		wantCode(t, "start in a stopped sandbox", err, codes.FailedPrecondition)
		_, err = c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: containerConfig("late", sleep...), SandboxConfig: pod})
		wantCode(t, "creation in a stopped sandbox", err, codes.FailedPrecondition)
		for range 2 {
			_, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box})
			wantCode(t, "removal of a sandbox", err, codes.OK)
		}
	}
	n.notThere(c)
}

// notThere asks for what does not exist.
func (n *node) notThere(c runtimeapi.RuntimeServiceClient) {
	ctx, none := n.t.Context(), "0123456789abcdef"
	_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: none})
	wantCode(n.t, "StopContainer", err, codes.OK)
	_, err = c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: none})
	wantCode(n.t, "RemoveContainer", err, codes.OK)
	_, err = c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: none})
	wantCode(n.t, "StopPodSandbox", err, codes.OK)
	_, err = c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: none})
	wantCode(n.t, "RemovePodSandbox", err, codes.OK)
	_, err = c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: none})
	wantCode(n.t, "StartContainer", err, codes.NotFound)
	_, err = c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: none})
	wantCode(n.t, "ContainerStatus", err, codes.NotFound)
	_, err = c.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: none})
	wantCode(n.t, "PodSandboxStatus", err, codes.NotFound)
	_, err = c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: none, Cmd: []string{"true"}})
	wantCode(n.t, "ExecSync", err, codes.NotFound)
	_, err = c.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: none})
	wantCode(n.t, "ReopenContainerLog", err, codes.NotFound)
	_, err = c.UpdateContainerResources(ctx, &runtimeapi.UpdateContainerResourcesRequest{ContainerId: none, Linux: &runtimeapi.LinuxContainerResources{}})
	wantCode(n.t, "UpdateContainerResources", err, codes.NotFound)
	_, err = c.UpdatePodSandboxResources(ctx, &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: none})
	wantCode(n.t, "UpdatePodSandboxResources", err, codes.NotFound)
	_, err = c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: none, Config: containerConfig("x")})
	wantCode(n.t, "CreateContainer", err, codes.NotFound)
	_, err = c.StopContainer(ctx, &runtimeapi.StopContainerRequest{})
	wantCode(n.t, "StopContainer without an ID", err, codes.InvalidArgument)
}

// TestNames follows reservations: held by the living, free after whatever ended
// the operation that made them.
func TestNames(t *testing.T) {
	hang := filepath.Join(t.TempDir(), "hang")
	// It is itself for questions, and hangs when it is to create.
	script := "#!/bin/sh\ncase \" $* \" in *\" create \"*) exec sleep 1000;; esac\nexec crun \"$@\"\n"
	if err := os.WriteFile(hang, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	n := newNodeWith(t, map[string]string{"hang": hang})
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	pod := n.pod("names")
	box := n.sandbox(c, pod, "")
	_, err := c.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
	wantCode(t, "a sandbox of the same name", err, codes.AlreadyExists)
	again := proto.CloneOf(pod)
	again.Metadata.Attempt = 1
	second := n.sandbox(c, again, "")
	id := n.create(c, box, containerConfig("main", sleep...), pod)
	_, err = c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: containerConfig("main", sleep...), SandboxConfig: pod})
	wantCode(t, "a container of the same name", err, codes.AlreadyExists)
	cfg := containerConfig("main", sleep...)
	cfg.Metadata.Attempt = 1
	n.create(c, box, cfg, pod)
	if _, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.create(c, box, containerConfig("main", sleep...), pod)
	if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: second}); err != nil {
		t.Fatal(err)
	}
	n.sandbox(c, again, "")

	// A creation that fails, and one whose deadline ends.
	bad := containerConfig("bad", sleep...)
	bad.Mounts = []*runtimeapi.Mount{{ContainerPath: "/x", HostPath: "relative"}}
	for range 2 {
		_, err = c.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: bad, SandboxConfig: pod})
		wantCode(t, "an impossible container", err, codes.InvalidArgument)
	}
	stuck := n.pod("stuck")
	hung := n.sandbox(c, stuck, "hang")
	for range 2 {
		within, cancel := context.WithTimeout(ctx, 500*time.Millisecond)
		_, err := c.CreateContainer(within, &runtimeapi.CreateContainerRequest{PodSandboxId: hung, Config: containerConfig("main", sleep...), SandboxConfig: stuck})
		cancel()
		wantCode(t, "a creation that hangs", err, codes.DeadlineExceeded)
		begun := time.Now() // nobody else waits for it
		other := n.begin(c, box, containerConfig("beside", sleep...), pod)
		if took := time.Since(begun); took > 10*time.Second {
			t.Errorf("another container took %v", took)
		}
		if _, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: other}); err != nil {
			t.Fatal(err)
		}
		eventually(t, "nothing is left of the creation, nor its name", func() bool { return len(n.server.cfg.Containers.IDs(hung)) == 0 })
	}
}

// TestStopTimes stops by signal, after a timeout, and sooner if somebody asks for it.
func TestStopTimes(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	pod := n.pod("stop")
	box := n.sandbox(c, pod, "")
	const deaf = "trap 'echo told' TERM USR1; touch /ready; while :; do sleep 0.05; done"
	start := func(name, script string, signal runtimeapi.Signal) string {
		cfg := containerConfig(name, "sh", "-c", script)
		cfg.StopSignal = signal
		id := n.begin(c, box, cfg, pod)
		eventually(t, "the trap is set", func() bool {
			r, err := c.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"test", "-e", "/ready"}, Timeout: 5})
			return err == nil && r.GetExitCode() == 0
		})
		return id
	}
	id := start("usr1", "trap 'exit 7' USR1; touch /ready; while :; do sleep 0.05; done", runtimeapi.Signal_SIGUSR1)
	if st := n.status(c, id); st.GetStopSignal() != runtimeapi.Signal_SIGUSR1 {
		t.Errorf("stop signal %v", st.GetStopSignal())
	}
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: math.MaxInt64}); err != nil || n.status(c, id).GetExitCode() != 7 {
		t.Errorf("stop by SIGUSR1 with all the time in the world: %v, %v", err, n.status(c, id))
	}

	id = start("deaf", deaf, 0)
	begun := time.Now()
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil || time.Since(begun) < time.Second || n.status(c, id).GetExitCode() != 137 {
		t.Errorf("stop of a deaf one after %v: %v", time.Since(begun), err)
	}

	id = start("hurried", deaf, 0)
	begun, patient := time.Now(), make(chan error, 1)
	go func() {
		_, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 600})
		patient <- err
	}()
	time.Sleep(100 * time.Millisecond)
	within, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	_, err := c.StopContainer(within, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 600})
	cancel()
	wantCode(t, "a stop whose caller gives up", err, codes.DeadlineExceeded)
	if _, err := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0}); err != nil {
		t.Error(err)
	}
	if err := <-patient; err != nil || time.Since(begun) > 30*time.Second {
		t.Errorf("the patient one was told after %v: %v", time.Since(begun), err)
	}
}

// TestPrefixes shortens IDs as far as they say one thing.
func TestPrefixes(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	pod := n.pod("prefix")
	box := n.sandbox(c, pod, "")
	byFirst := map[byte]string{}
	var shared string
	for i := range 17 { // of 17 IDs two begin alike
		cfg := containerConfig("c", sleep...)
		cfg.Metadata.Attempt = uint32(i)
		id := n.create(c, box, cfg, pod)
		if byFirst[id[0]] != "" {
			shared = id[:1]
		}
		byFirst[id[0]] = id
	}
	_, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: shared})
	wantCode(t, "an ambiguous ID", err, codes.InvalidArgument)
	for _, id := range byFirst {
		if r, err := c.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id[:40]}); err != nil || r.GetStatus().GetId() != id {
			t.Errorf("%s: %v", id[:40], err)
		}
	}
	l, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: box}})
	if err != nil || len(l.GetContainers()) != 17 {
		t.Fatal(len(l.GetContainers()), err)
	}
	for i, m := range l.GetContainers() {
		if int(m.GetMetadata().GetAttempt()) != i {
			t.Errorf("container %d of the list is attempt %d: oldest first", i, m.GetMetadata().GetAttempt())
		}
	}
}

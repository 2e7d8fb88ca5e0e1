package server

import (
	"context"
	"errors"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// listen collects events until the test ends.
func (n *node) listen(c runtimeapi.RuntimeServiceClient) <-chan *runtimeapi.ContainerEventResponse {
	ctx, stop := context.WithCancel(n.t.Context())
	n.t.Cleanup(stop)
	s, err := c.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		n.t.Fatal(err)
	}
	out := make(chan *runtimeapi.ContainerEventResponse, 1000)
	go func() {
		defer close(out)
		for {
			e, err := s.Recv()
			if err != nil {
				return
			}
			out <- e
		}
	}()
	return out
}

// await returns the first event of an object that is of a kind.
func (n *node) await(events <-chan *runtimeapi.ContainerEventResponse, id string, kind runtimeapi.ContainerEventType) *runtimeapi.ContainerEventResponse {
	n.t.Helper()
	late := time.After(20 * time.Second)
	for {
		select {
		case e, ok := <-events:
			if !ok {
				n.t.Fatalf("the events ended before %s of %s", kind, id)
			}
			if e.GetContainerId() == id && e.GetContainerEventType() == kind {
				return e
			}
		case <-late:
			n.t.Fatalf("no %s of %s", kind, id)
		}
	}
}

const (
	created = runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT
	started = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
)

// TestEventsOfALife follows a container's life on two streams, in order, and
// then ends one while no runtime is there to tell.
func TestEventsOfALife(t *testing.T) {
	n := newNode(t)
	n.importBusybox(n.berthClient())
	c, _ := n.raw()
	ctx := t.Context()
	one, two := n.listen(c), n.listen(c)
	time.Sleep(100 * time.Millisecond) // until both are subscribed
	pod := n.pod("events")
	pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	box := n.sandbox(c, pod, "")
	id := n.create(c, box, containerConfig("main", sleep...), pod)
	for _, events := range []<-chan *runtimeapi.ContainerEventResponse{one, two} {
		n.await(events, box, started)
		e := n.await(events, id, created)
		if s := e.GetContainersStatuses(); len(s) != 1 || s[0].GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || e.GetCreatedAt() == 0 ||
			e.GetPodSandboxStatus().GetMetadata().GetUid() != "uid-events" || e.GetPodSandboxStatus().GetNetwork().GetIp() != "10.9.8.7" {
			t.Errorf("created: %v", e)
		}
	}
	if _, err := c.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	n.await(one, id, started)
	n.await(two, id, started)
	brief := n.begin(c, box, containerConfig("brief", "true"), pod)
	n.await(one, brief, started)
	if e := n.await(one, brief, stopped); len(e.GetContainersStatuses()) != 2 {
		t.Errorf("stopped: %v", e)
	}
	if _, err := c.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: brief}); err != nil {
		t.Fatal(err)
	}
	if e := n.await(one, brief, deleted); len(e.GetContainersStatuses()) != 1 {
		t.Errorf("deleted: %v", e)
	}
	pid, initPID := n.pid(id), n.initPID(box)
	n.end()
	for _, p := range []int{pid, initPID} {
		if err := unix.Kill(p, unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
	}
	n.start()
	after, later := n.listen(c), n.listen(c)
	for _, events := range []<-chan *runtimeapi.ContainerEventResponse{after, later} {
		e := n.await(events, id, stopped)
		if s := e.GetContainersStatuses(); len(s) != 1 || s[0].GetExitCode() != 137 || e.GetPodSandboxStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
			t.Errorf("what ended meanwhile: %v", e)
		}
	}
	if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
		t.Fatal(err)
	}
	n.await(after, id, deleted)
	n.await(after, box, deleted)
}

func (n *node) pid(id string) int {
	f, err := n.server.cfg.Containers.Facts(id)
	if err != nil || f.PID == 0 {
		n.t.Fatal(f, err)
	}
	return f.PID
}

func (n *node) initPID(box string) int {
	st := n.boxes.List()
	for _, s := range st {
		if string(s.ID) == box && s.InitPID > 0 {
			return s.InitPID
		}
	}
	n.t.Fatal("no init")
	return 0
}

// TestStatusIsTrue takes away what pods need, and gives it back.
func TestStatusIsTrue(t *testing.T) {
	n := newNode(t)
	c, _ := n.raw()
	ask := func() *runtimeapi.StatusResponse {
		t.Helper()
		r, err := c.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
		if err != nil {
			t.Fatal(err)
		}
		return r
	}
	ready := func(what string, runtime, network bool, why string) {
		t.Helper()
		got := ask().GetStatus().GetConditions()
		if got[0].GetType() != "RuntimeReady" || got[0].GetStatus() != runtime || got[1].GetType() != "NetworkReady" || got[1].GetStatus() != network {
			t.Errorf("%s: %v", what, got)
		}
		for _, g := range got {
			if !g.GetStatus() && g.GetReason() == "" {
				t.Errorf("%s: no reason in %v", what, g)
			}
			if !g.GetStatus() {
				contains(t, errors.New(g.GetMessage()), why)
			}
		}
	}
	ready("at first", true, true, "")
	good := n.needs
	n.needs = Needs{Programs: map[string]string{"the monitor": "/nonexistent/conmon"}, Dirs: good.Dirs}
	ready("without a monitor", false, true, "the monitor is gone")
	for what, flags := range map[string]struct {
		flags uintptr
		data  string
		why   string
	}{"read-only": {unix.MS_RDONLY, "", "read-only"}, "full": {0, "size=64k", "full"}, "out of inodes": {0, "nr_inodes=1", "no free inodes"}} {
		dir := t.TempDir()
		if err := unix.Mount("tmpfs", dir, "tmpfs", flags.flags, flags.data); err != nil {
			t.Fatal(err)
		}
		n.needs = Needs{Programs: good.Programs, Dirs: []string{dir}}
		ready(what, false, true, flags.why)
		unix.Unmount(dir, unix.MNT_DETACH)
	}
	n.needs = good
	down := errors.New("no plugin answers")
	n.net.Store(&down)
	ready("without network", true, false, "no plugin answers")
	n.net.Store(nil)
	ready("in the end", true, true, "")

	r := ask()
	features := map[string]*runtimeapi.RuntimeHandlerFeatures{}
	for _, h := range r.GetRuntimeHandlers() {
		features[h.GetName()] = h.GetFeatures()
	}
	if len(features) != 4 || !features[""].GetRecursiveReadOnlyMounts() || !features["crun"].GetUserNamespaces() || features["old"].GetUserNamespaces() || features["runc"].GetRecursiveReadOnlyMounts() {
		t.Errorf("handlers %v", r.GetRuntimeHandlers())
	}
	if !r.GetFeatures().GetSupplementalGroupsPolicy() {
		t.Errorf("features %v", r.GetFeatures())
	}
	for _, want := range []string{`"unusableRuntimes":{"gone":"it is not installed"}`, `"noUserNamespaces":{"old":"it is too old"}`, `"containers":0`} {
		contains(t, errors.New(r.GetInfo()["info"]), want)
	}
	if brief, err := c.Status(t.Context(), &runtimeapi.StatusRequest{}); err != nil || len(brief.GetInfo()) != 0 {
		t.Errorf("not verbose: %v, %v", brief.GetInfo(), err)
	}
	if rc, err := c.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{}); err != nil || rc.GetLinux().GetCgroupDriver() != runtimeapi.CgroupDriver_CGROUPFS {
		t.Errorf("runtime configuration %v, %v", rc, err)
	}
}

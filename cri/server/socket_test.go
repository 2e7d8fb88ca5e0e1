package server

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func (n *node) berthClient() api.BerthClient {
	conn, err := grpc.NewClient("unix://"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return api.NewBerthClient(conn)
}

// importBusybox imports over the socket, in chunks.
func (n *node) importBusybox(c api.BerthClient) *api.Image {
	n.t.Helper()
	s, err := c.ImportImages(n.t.Context())
	if err != nil {
		n.t.Fatal(err)
	}
	archive := bytes.NewReader(busyboxArchive(n.t))
	for chunk := make([]byte, maxChunk); ; {
		k, err := archive.Read(chunk)
		if k > 0 {
			if err := s.Send(&api.ImportImagesRequest{Chunk: chunk[:k]}); err != nil {
				n.t.Fatal(err)
			}
		}
		if errors.Is(err, io.EOF) {
			break
		}
	}
	s.CloseSend()
	reports := 0
	for {
		m, err := s.Recv()
		if err != nil {
			n.t.Fatal(err)
		}
		if m.GetProgress() != nil {
			reports++
		}
		if len(m.GetImages()) == 1 {
			if reports == 0 {
				n.t.Error("no progress was reported")
			}
			return m.GetImages()[0]
		}
	}
}

// TestOverTheSocket walks through a pod's life as a kubelet and crictl do.
func TestOverTheSocket(t *testing.T) {
	n := newNode(t)
	rt, images := n.clients()
	ctx := t.Context()
	if st, err := os.Stat(n.socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("socket %v, %v", st, err)
	}
	if v, err := rt.Version(ctx, "0.1.0"); err != nil || v.GetRuntimeName() != "berth" || v.GetRuntimeApiVersion() != "v1" {
		t.Fatalf("version %v, %v", v, err)
	}
	st, err := rt.Status(ctx, true)
	if err != nil || len(st.GetStatus().GetConditions()) != 2 || !st.GetStatus().GetConditions()[0].GetStatus() || st.GetInfo()["info"] == "" {
		t.Fatalf("status %v, %v", st, err)
	}
	img := n.importBusybox(n.berthClient())
	got, err := images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: "busybox"}, false)
	if err != nil || got.GetImage().GetId() != img.GetId() {
		t.Fatalf("image %v, %v; want %s", got, err, img.GetId())
	}
	if none, err := images.ImageStatus(ctx, &runtimeapi.ImageSpec{Image: "nothing"}, false); err != nil || none.GetImage() != nil {
		t.Errorf("a missing image: %v, %v", none, err)
	}

	pod := n.pod("web")
	box, err := rt.RunPodSandbox(ctx, pod, "")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rt.RunPodSandbox(ctx, n.pod("other"), "kata"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("unknown runtime handler: %v", err)
	}
	id, err := rt.CreateContainer(ctx, box, containerConfig("main", "sh", "-c", "echo hello; hostname; trap 'exit 3' TERM; while :; do sleep 0.05; done"), pod)
	if err != nil {
		t.Fatal(err)
	}
	if err := rt.StartContainer(ctx, id); err != nil {
		t.Fatal(err)
	}
	logFile := filepath.Join(n.dir, "logs", "web", "main.log")
	eventually(t, "the container writes its log", func() bool {
		b, _ := os.ReadFile(logFile)
		return strings.Contains(string(b), "stdout F hello\n") && strings.Contains(string(b), "stdout F web\n")
	})
	out, _, err := rt.ExecSync(ctx, id, []string{"sh", "-c", "echo $((6*7)); df /dev/shm | tail -1"}, 10*time.Second)
	if err != nil || !strings.HasPrefix(string(out), "42\n") || !strings.Contains(string(out), "65536") {
		t.Errorf("exec: %q, %v", out, err)
	}
	_, _, err = rt.ExecSync(ctx, id, []string{"sleep", "30"}, time.Second)
	contains(t, err, "timed out") // the client's word for DeadlineExceeded
	n.checkLists(box, id)

	if err := rt.StopContainer(ctx, id[:12], 10); err != nil {
		t.Fatal(err)
	}
	if cs, err := rt.ContainerStatus(ctx, id, true); err != nil || cs.GetStatus().GetExitCode() != 3 || cs.GetInfo()["info"] == "" {
		t.Errorf("after stop: %v, %v", cs, err)
	}
	if err := rt.RemovePodSandbox(ctx, box); err != nil {
		t.Fatal(err)
	}
	for _, gone := range []error{rt.RemovePodSandbox(ctx, box), rt.StopPodSandbox(ctx, box), rt.StopContainer(ctx, id, 0), rt.RemoveContainer(ctx, id)} {
		if gone != nil {
			t.Errorf("ending what is gone: %v", gone)
		}
	}
	if _, err := rt.ContainerStatus(ctx, id, false); status.Code(err) != codes.NotFound {
		t.Errorf("status of what is gone: %v", err)
	}
	if a, err := n.berthClient().Audit(ctx, &api.AuditRequest{}); err != nil || len(a.GetLeaks()) != 0 {
		t.Errorf("audit: %v, %v", a, err)
	}
}

// checkLists asks for the one pod and its one running container by all filters.
func (n *node) checkLists(box, id string) {
	n.t.Helper()
	rt, _ := n.clients()
	ctx := n.t.Context()
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	notReady := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	for _, test := range []struct {
		filter *runtimeapi.PodSandboxFilter
		want   int
	}{
		{nil, 1}, {&runtimeapi.PodSandboxFilter{Id: box}, 1}, {&runtimeapi.PodSandboxFilter{Id: box[:8]}, 1}, {&runtimeapi.PodSandboxFilter{Id: "zz"}, 0},
		{&runtimeapi.PodSandboxFilter{State: ready}, 1}, {&runtimeapi.PodSandboxFilter{State: notReady}, 0},
		{&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "web"}}, 1}, {&runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "x"}}, 0},
	} {
		if got, err := rt.ListPodSandbox(ctx, test.filter); err != nil || len(got) != test.want {
			n.t.Errorf("sandboxes by %v: %d, %v; want %d", test.filter, len(got), err, test.want)
		}
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for _, test := range []struct {
		filter *runtimeapi.ContainerFilter
		want   int
	}{
		{nil, 1}, {&runtimeapi.ContainerFilter{Id: id[:8]}, 1}, {&runtimeapi.ContainerFilter{PodSandboxId: box, State: running}, 1},
		{&runtimeapi.ContainerFilter{LabelSelector: map[string]string{"name": "main"}}, 1}, {&runtimeapi.ContainerFilter{PodSandboxId: "zz"}, 0},
	} {
		if got, err := rt.ListContainers(ctx, test.filter); err != nil || len(got) != test.want {
			n.t.Errorf("containers by %v: %d, %v; want %d", test.filter, len(got), err, test.want)
		}
	}
	st, err := rt.PodSandboxStatus(ctx, box[:10], true)
	if err != nil || st.GetStatus().GetNetwork().GetIp() != "10.9.8.7" || len(st.GetStatus().GetNetwork().GetAdditionalIps()) != 1 || len(st.GetContainersStatuses()) != 1 {
		n.t.Errorf("sandbox status %v, %v", st, err)
	}
	if d, err := n.berthClient().ContainerDetail(ctx, &api.ContainerDetailRequest{ContainerId: id}); err != nil || d.GetPid() == 0 || d.GetSandboxId() != box {
		n.t.Errorf("container detail %v, %v", d, err)
	}
}

// TestStopKillsContainers stops and removes a sandbox whose containers run, and
// tries to bring one back into it.
func TestStopKillsContainers(t *testing.T) {
	n := newNode(t)
	n.clients()
	n.importBusybox(n.berthClient())
	p := NewInProcess(n.server)
	ctx := t.Context()
	run, err := p.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod("web")})
	if err != nil {
		t.Fatal(err)
	}
	var ids []string
	for _, name := range []string{"a", "b", "c"} {
		c, err := p.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: containerConfig(name, "sleep", "1000")})
		if err != nil {
			t.Fatal(err)
		}
		ids = append(ids, c.ContainerId)
		if name == "c" {
			continue // stays created
		}
		if _, err := p.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := p.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: run.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	for _, id := range ids[:2] {
		if st, err := p.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || st.GetStatus().GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			t.Errorf("after the sandbox was stopped: %v, %v", st, err)
		}
	}
	_, err = p.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: ids[2]})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("starting in a stopped sandbox: %v", err)
	}
	_, err = p.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: containerConfig("d", "true")})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("creating in a stopped sandbox: %v", err)
	}
	if _, err := p.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: run.PodSandboxId}); err != nil {
		t.Fatal(err)
	}
	if l, err := p.ListContainers(ctx, &runtimeapi.ListContainersRequest{}); err != nil || len(l.GetContainers()) != 0 {
		t.Errorf("containers left: %v, %v", l, err)
	}
}

// TestEventsArrive follows a container through the event stream.
func TestEventsArrive(t *testing.T) {
	n := newNode(t)
	n.clients()
	n.importBusybox(n.berthClient())
	p := NewInProcess(n.server)
	ctx, cancel := context.WithCancel(t.Context())
	got := make(chan *runtimeapi.ContainerEventResponse, 100)
	ended := make(chan error, 1)
	go func() {
		ended <- p.GetContainerEvents(&runtimeapi.GetEventsRequest{}, &LocalStream[runtimeapi.GetEventsRequest, runtimeapi.ContainerEventResponse]{
			Ctx: ctx, Deliver: func(e *runtimeapi.ContainerEventResponse) error { got <- e; return nil },
		})
	}()
	eventually(t, "somebody listens", func() bool {
		n.server.cfg.Events.mu.Lock()
		defer n.server.cfg.Events.mu.Unlock()
		return len(n.server.cfg.Events.subs) == 1
	})
	run, err := p.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: n.pod("web")})
	if err != nil {
		t.Fatal(err)
	}
	c, err := p.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: run.PodSandboxId, Config: containerConfig("main", "sh", "-c", "exit 5")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := p.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
		t.Fatal(err)
	}
	for done := false; !done; {
		select {
		case e := <-got:
			st := e.GetContainersStatuses()
			done = e.GetContainerEventType() == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && e.GetContainerId() == c.ContainerId
			if done && (len(st) != 1 || st[0].GetExitCode() != 5 || e.GetPodSandboxStatus().GetMetadata().GetUid() != "uid-web") {
				t.Errorf("event %v", e)
			}
		case <-time.After(10 * time.Second):
			t.Fatal("the exit was not told")
		}
	}
	cancel()
	if err := <-ended; status.Code(err) != codes.Canceled {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestEndsAtOnce ends the server while somebody listens for events over the socket.
func TestEndsAtOnce(t *testing.T) {
	n := newNode(t)
	rt, _ := n.clients()
	ended := make(chan error, 1)
	go func() {
		ended <- rt.GetContainerEvents(t.Context(), make(chan *runtimeapi.ContainerEventResponse, 1), nil)
	}()
	eventually(t, "somebody listens", func() bool {
		n.server.cfg.Events.mu.Lock()
		defer n.server.cfg.Events.mu.Unlock()
		return len(n.server.cfg.Events.subs) == 1
	})
	begin := time.Now()
	n.stop()
	n.work.Wait()
	if took := time.Since(begin); took > drainTime/2 {
		t.Errorf("the server took %v to end", took)
	}
	<-ended
}

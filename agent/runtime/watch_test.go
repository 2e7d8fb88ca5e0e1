package runtime

import (
	"context"
	"net"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/grpc/test/bufconn"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ear collects hints.
type ear struct {
	mu    sync.Mutex
	heard []string
}

func (e *ear) hints() Hints {
	add := func(s string) {
		e.mu.Lock()
		defer e.mu.Unlock()
		e.heard = append(e.heard, s)
	}
	return Hints{Pod: func(uid pod.UID) { add(string(uid)) }, All: func() { add("all") }}
}

func (e *ear) take() []string {
	e.mu.Lock()
	defer e.mu.Unlock()
	h := e.heard
	e.heard = nil
	return h
}

func sandboxEvent(uid string) *cri.ContainerEventResponse {
	return &cri.ContainerEventResponse{PodSandboxStatus: &cri.PodSandboxStatus{Metadata: &cri.PodSandboxMetadata{Uid: uid}}}
}

func (f *fakeCRI) addSandbox(id, uid string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.sandboxes[id] = &cri.RunPodSandboxRequest{Config: &cri.PodSandboxConfig{Metadata: &cri.PodSandboxMetadata{Uid: uid}, Labels: map[string]string{labelPodUID: uid}}}
}

func TestRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		ctx, cancel := context.WithCancel(t.Context())
		var e ear
		done := make(chan error, 1)
		b.cri.events = make(chan *cri.ContainerEventResponse)
		go func() { done <- b.Run(ctx, e.hints()) }()
		b.cri.events <- sandboxEvent("u1")
		b.cri.events <- &cri.ContainerEventResponse{ContainersStatuses: []*cri.ContainerStatus{{Labels: map[string]string{labelPodUID: "u2"}}}}
		b.cri.events <- &cri.ContainerEventResponse{}
		synctest.Wait()
		if got := e.take(); !slices.Equal(got, []string{"u1", "u2", "all"}) {
			t.Errorf("events became %v", got)
		}
		time.Sleep(40 * time.Second) // the first list
		b.cri.addSandbox("s9", "u9")
		time.Sleep(40 * time.Second)
		if got := e.take(); !slices.Equal(got, []string{"u9"}) {
			t.Errorf("the list found %v", got)
		}
		old := b.cri.events
		b.cri.events = make(chan *cri.ContainerEventResponse)
		close(old)
		time.Sleep(time.Second)
		if got := e.take(); !slices.Equal(got, []string{"all"}) {
			t.Errorf("after the stream came back: %v", got)
		}
		cancel()
		if err := <-done; err != context.Canceled {
			t.Errorf("Run: %v", err)
		}
	})
}

func TestRunWithoutEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		b.cri.noEvents = true
		ctx, cancel := context.WithCancel(t.Context())
		var e ear
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx, e.hints()) }()
		time.Sleep(3 * time.Second)
		b.cri.addSandbox("s9", "u9")
		time.Sleep(3 * time.Second)
		if got := e.take(); !slices.Equal(got, []string{"u9"}) {
			t.Errorf("the list found %v", got)
		}
		cancel()
		<-done
	})
}

// starting is a runtime that knows no call until it is up.
type starting struct {
	CRI
	up atomic.Bool
}

var errStarting = status.Error(codes.Unimplemented, "unknown service runtime.v1.RuntimeService")

func (s *starting) Version(ctx context.Context, r *cri.VersionRequest) (*cri.VersionResponse, error) {
	if !s.up.Load() {
		return nil, errStarting
	}
	return s.CRI.Version(ctx, r)
}

func (s *starting) GetContainerEvents(r *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	if !s.up.Load() {
		return errStarting
	}
	return s.CRI.GetContainerEvents(r, to)
}

// TestRunWhileTheRuntimeStarts: one that knows no call yet is asked for its events again.
func TestRunWhileTheRuntimeStarts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t)
		early := &starting{CRI: b.cri}
		b.CRI = early
		ctx, cancel := context.WithCancel(t.Context())
		var e ear
		done := make(chan error, 1)
		go func() { done <- b.Run(ctx, e.hints()) }()
		time.Sleep(3 * time.Second)
		early.up.Store(true)
		time.Sleep(10 * time.Second)
		e.take()
		b.cri.events <- sandboxEvent("u1")
		synctest.Wait()
		if got := e.take(); !slices.Equal(got, []string{"u1"}) {
			t.Errorf("events became %v", got)
		}
		cancel()
		<-done
	})
}

func TestChanged(t *testing.T) {
	got := Changed(map[pod.UID]string{"same": "1", "other": "1", "gone": "1"}, map[pod.UID]string{"same": "1", "other": "2", "new": "1"})
	if !slices.Equal(got, []pod.UID{"gone", "new", "other"}) || Changed(nil, map[pod.UID]string{"a": "1"}) != nil {
		t.Errorf("changed: %v", got)
	}
}

// served puts the fake behind a real gRPC server.
type served struct {
	cri.UnimplementedRuntimeServiceServer
	cri.UnimplementedImageServiceServer
	f *fakeCRI
}

func (s served) ListPodSandbox(ctx context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return s.f.ListPodSandbox(ctx, r)
}
func (s served) ListContainers(ctx context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return s.f.ListContainers(ctx, r)
}
func (s served) PodSandboxStatus(ctx context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return s.f.PodSandboxStatus(ctx, r)
}
func (s served) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return s.f.ContainerStatus(ctx, r)
}
func (s served) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return s.f.ImageStatus(ctx, r)
}
func (s served) GetContainerEvents(r *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	return s.f.GetContainerEvents(r, to)
}

func TestExternal(t *testing.T) {
	b := newBench(t)
	b.up()
	lis := bufconn.Listen(1 << 20)
	server := grpc.NewServer()
	cri.RegisterRuntimeServiceServer(server, served{f: b.cri})
	cri.RegisterImageServiceServer(server, served{f: b.cri})
	go server.Serve(lis)
	defer server.Stop()
	conn, err := grpc.NewClient("passthrough:///fake", grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return lis.Dial() }))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	deps := b.Deps
	deps.CRI = External(conn)
	outside := New(b.cfg, deps)
	o, err := outside.Observe(t.Context(), "u1")
	if err != nil || len(o.Containers) != 1 || o.Containers[0].State != pod.Running {
		t.Fatalf("%+v, %v", o, err)
	}
	if _, err := deps.CRI.RunPodSandbox(t.Context(), &cri.RunPodSandboxRequest{}); kindOf(err) != pod.Invalid { // Unimplemented here
		t.Errorf("codes are lost on the way: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	heard := make(chan pod.UID, 1)
	done := make(chan error, 1)
	go func() {
		done <- outside.Run(ctx, Hints{Pod: func(uid pod.UID) { heard <- uid }, All: func() {}})
	}()
	b.cri.events <- sandboxEvent("u7")
	if uid := <-heard; uid != "u7" {
		t.Errorf("hint for %s", uid)
	}
	cancel()
	<-done
}

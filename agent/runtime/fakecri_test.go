package runtime

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeCRI keeps CRI's promises in memory: names are unique, stop and remove are
// idempotent, a removed sandbox takes its containers along.
type fakeCRI struct {
	mu         sync.Mutex
	n          int
	calls      []string
	fail       map[string]error // by RPC
	sandboxes  map[string]*cri.RunPodSandboxRequest
	stopped    map[string]bool
	containers map[string]*cri.CreateContainerRequest
	states     map[string]cri.ContainerState
	exits      map[string]*cri.ContainerStatus
	images     map[string]*cri.Image
	remote     map[string]*cri.Image
	needAuth   string // password that the registry wants
	execCode   int32
	events     chan *cri.ContainerEventResponse
	noEvents   bool
	status     *cri.StatusResponse
}

func newFake() *fakeCRI {
	return &fakeCRI{
		fail: map[string]error{}, sandboxes: map[string]*cri.RunPodSandboxRequest{}, stopped: map[string]bool{},
		containers: map[string]*cri.CreateContainerRequest{}, states: map[string]cri.ContainerState{}, exits: map[string]*cri.ContainerStatus{},
		images: map[string]*cri.Image{}, remote: map[string]*cri.Image{}, events: make(chan *cri.ContainerEventResponse),
	}
}

func (f *fakeCRI) enter(ctx context.Context, rpc string) (func(), error) {
	f.mu.Lock()
	f.calls = append(f.calls, rpc)
	if err := f.fail[rpc]; err != nil {
		f.mu.Unlock()
		return nil, err
	}
	if err := ctx.Err(); err != nil {
		f.mu.Unlock()
		return nil, status.FromContextError(err).Err()
	}
	return f.mu.Unlock, nil
}

func (f *fakeCRI) count(rpc string) (n int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, c := range f.calls {
		if c == rpc {
			n++
		}
	}
	return n
}

func (f *fakeCRI) id(kind string) string { f.n++; return fmt.Sprintf("%s%d", kind, f.n) }

func notFound(id string) error { return status.Errorf(codes.NotFound, "%s: not found", id) }

func (f *fakeCRI) Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error) {
	return &cri.VersionResponse{RuntimeName: "fake"}, nil
}

func (f *fakeCRI) Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error) {
	if f.status != nil {
		return f.status, nil
	}
	return &cri.StatusResponse{RuntimeHandlers: []*cri.RuntimeHandler{{Features: &cri.RuntimeHandlerFeatures{RecursiveReadOnlyMounts: true}}}}, nil
}

func (f *fakeCRI) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "RunPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	id := f.id("s")
	f.sandboxes[id] = r
	return &cri.RunPodSandboxResponse{PodSandboxId: id}, nil
}

func (f *fakeCRI) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "StopPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.sandboxes[r.PodSandboxId] == nil {
		return nil, notFound(r.PodSandboxId)
	}
	f.stopped[r.PodSandboxId] = true
	return &cri.StopPodSandboxResponse{}, nil
}

func (f *fakeCRI) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	leave, err := f.enter(ctx, "RemovePodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	delete(f.sandboxes, r.PodSandboxId)
	for id, c := range f.containers {
		if c.PodSandboxId == r.PodSandboxId {
			delete(f.containers, id)
		}
	}
	return &cri.RemovePodSandboxResponse{}, nil
}

func (f *fakeCRI) sandboxState(id string) cri.PodSandboxState {
	if f.stopped[id] {
		return cri.PodSandboxState_SANDBOX_NOTREADY
	}
	return cri.PodSandboxState_SANDBOX_READY
}

func (f *fakeCRI) PodSandboxStatus(ctx context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	leave, err := f.enter(ctx, "PodSandboxStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	s := f.sandboxes[r.PodSandboxId]
	if s == nil {
		return nil, notFound(r.PodSandboxId)
	}
	return &cri.PodSandboxStatusResponse{Status: &cri.PodSandboxStatus{
		Id: r.PodSandboxId, Metadata: s.Config.Metadata, State: f.sandboxState(r.PodSandboxId), CreatedAt: 1, Labels: s.Config.Labels, Annotations: s.Config.Annotations,
		Network: &cri.PodSandboxNetworkStatus{Ip: "10.1.0.2", AdditionalIps: []*cri.PodIP{{Ip: "fd00::2"}}},
		Linux:   &cri.LinuxPodSandboxStatus{Namespaces: &cri.Namespace{Options: s.Config.Linux.SecurityContext.NamespaceOptions}},
	}}, nil
}

func selected(want, have map[string]string) bool {
	for k, v := range want {
		if have[k] != v {
			return false
		}
	}
	return true
}

func (f *fakeCRI) ListPodSandbox(ctx context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	leave, err := f.enter(ctx, "ListPodSandbox")
	if err != nil {
		return nil, err
	}
	defer leave()
	out := &cri.ListPodSandboxResponse{}
	for id, s := range f.sandboxes {
		if selected(r.GetFilter().GetLabelSelector(), s.Config.Labels) {
			out.Items = append(out.Items, &cri.PodSandbox{Id: id, Metadata: s.Config.Metadata, State: f.sandboxState(id), Labels: s.Config.Labels, Annotations: s.Config.Annotations})
		}
	}
	return out, nil
}

func (f *fakeCRI) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	leave, err := f.enter(ctx, "CreateContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	for _, c := range f.containers {
		if c.PodSandboxId == r.PodSandboxId && c.Config.Metadata.Name == r.Config.Metadata.Name && c.Config.Metadata.Attempt == r.Config.Metadata.Attempt {
			return nil, status.Error(codes.AlreadyExists, "name is reserved")
		}
	}
	id := f.id("c")
	f.containers[id], f.states[id] = r, cri.ContainerState_CONTAINER_CREATED
	return &cri.CreateContainerResponse{ContainerId: id}, nil
}

func (f *fakeCRI) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	leave, err := f.enter(ctx, "StartContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.states[r.ContainerId] != cri.ContainerState_CONTAINER_CREATED {
		return nil, status.Error(codes.FailedPrecondition, "not in state created")
	}
	f.states[r.ContainerId] = cri.ContainerState_CONTAINER_RUNNING
	return &cri.StartContainerResponse{}, nil
}

func (f *fakeCRI) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	leave, err := f.enter(ctx, fmt.Sprintf("StopContainer %d", r.Timeout))
	if err != nil {
		return nil, err
	}
	defer leave()
	if f.containers[r.ContainerId] == nil {
		return nil, notFound(r.ContainerId)
	}
	f.states[r.ContainerId] = cri.ContainerState_CONTAINER_EXITED
	return &cri.StopContainerResponse{}, nil
}

func (f *fakeCRI) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	leave, err := f.enter(ctx, "RemoveContainer")
	if err != nil {
		return nil, err
	}
	defer leave()
	delete(f.containers, r.ContainerId)
	return &cri.RemoveContainerResponse{}, nil
}

func (f *fakeCRI) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	leave, err := f.enter(ctx, "ContainerStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	c := f.containers[r.ContainerId]
	if c == nil {
		return nil, notFound(r.ContainerId)
	}
	s := &cri.ContainerStatus{
		Id: r.ContainerId, Metadata: c.Config.Metadata, State: f.states[r.ContainerId], Labels: c.Config.Labels, Annotations: c.Config.Annotations,
		Image: c.Config.Image, Mounts: c.Config.Mounts, LogPath: filepath.Join(c.SandboxConfig.LogDirectory, c.Config.LogPath), CreatedAt: 5,
	}
	if e := f.exits[r.ContainerId]; e != nil {
		s.ExitCode, s.Reason, s.Message = e.ExitCode, e.Reason, e.Message
	}
	return &cri.ContainerStatusResponse{Status: s}, nil
}

func (f *fakeCRI) ListContainers(ctx context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	leave, err := f.enter(ctx, "ListContainers")
	if err != nil {
		return nil, err
	}
	defer leave()
	out := &cri.ListContainersResponse{}
	for id, c := range f.containers {
		if s := r.GetFilter().GetPodSandboxId(); (s == "" || s == c.PodSandboxId) && (r.GetFilter().GetId() == "" || r.GetFilter().GetId() == id) && selected(r.GetFilter().GetLabelSelector(), c.Config.Labels) {
			out.Containers = append(out.Containers, &cri.Container{Id: id, PodSandboxId: c.PodSandboxId, Metadata: c.Config.Metadata, State: f.states[id],
				Labels: c.Config.Labels, Annotations: c.Config.Annotations, Image: c.Config.Image})
		}
	}
	return out, nil
}

func (f *fakeCRI) ReopenContainerLog(context.Context, *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return &cri.ReopenContainerLogResponse{}, nil
}

func (f *fakeCRI) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	leave, err := f.enter(ctx, fmt.Sprintf("ExecSync %v %d", r.Cmd, r.Timeout))
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.ExecSyncResponse{ExitCode: f.execCode, Stderr: []byte("sorry\n")}, nil
}

func (f *fakeCRI) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	leave, err := f.enter(ctx, "PullImage "+r.GetAuth().GetUsername())
	if err != nil {
		return nil, err
	}
	defer leave()
	if r.GetAuth().GetPassword() != f.needAuth {
		return nil, status.Error(codes.Unauthenticated, "pull access denied")
	}
	have := f.remote[r.Image.Image]
	if have == nil {
		return nil, status.Error(codes.NotFound, "manifest unknown")
	}
	f.images[r.Image.Image], f.images[have.Id] = have, have
	return &cri.PullImageResponse{ImageRef: have.Id}, nil
}

func (f *fakeCRI) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	leave, err := f.enter(ctx, "ImageStatus")
	if err != nil {
		return nil, err
	}
	defer leave()
	return &cri.ImageStatusResponse{Image: f.images[r.Image.Image]}, nil
}

func (f *fakeCRI) GetContainerEvents(_ *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	if f.noEvents {
		return status.Error(codes.Unimplemented, "no events")
	}
	for {
		select {
		case <-to.Context().Done():
			return to.Context().Err()
		case e, ok := <-f.events:
			if !ok {
				return status.Error(codes.Unavailable, "the runtime went away")
			}
			if err := to.Send(e); err != nil {
				return err
			}
		}
	}
}

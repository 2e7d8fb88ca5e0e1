package runtime

import (
	"context"
	"errors"
	"io"

	"google.golang.org/grpc"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI is the part of CRI v1 that the agent uses, in the shape of its server
// (a protocol's own shape): the embedded runtime is called plainly, an external
// one through External. Messages are not changed by either side once passed.
type CRI interface {
	Version(context.Context, *cri.VersionRequest) (*cri.VersionResponse, error)
	Status(context.Context, *cri.StatusRequest) (*cri.StatusResponse, error)
	RunPodSandbox(context.Context, *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error)
	StopPodSandbox(context.Context, *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error)
	RemovePodSandbox(context.Context, *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error)
	PodSandboxStatus(context.Context, *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error)
	ListPodSandbox(context.Context, *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error)
	CreateContainer(context.Context, *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error)
	StartContainer(context.Context, *cri.StartContainerRequest) (*cri.StartContainerResponse, error)
	StopContainer(context.Context, *cri.StopContainerRequest) (*cri.StopContainerResponse, error)
	RemoveContainer(context.Context, *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error)
	ContainerStatus(context.Context, *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error)
	ListContainers(context.Context, *cri.ListContainersRequest) (*cri.ListContainersResponse, error)
	ExecSync(context.Context, *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error)
	ReopenContainerLog(context.Context, *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error)
	GetContainerEvents(*cri.GetEventsRequest, grpc.ServerStreamingServer[cri.ContainerEventResponse]) error
	PullImage(context.Context, *cri.PullImageRequest) (*cri.PullImageResponse, error)
	ImageStatus(context.Context, *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error)
	Resizer
}

// External speaks to a runtime in another process (containerd, CRI-O) over conn,
// which stays its caller's.
func External(conn *grpc.ClientConn) CRI { return external{conn} }

type external struct{ conn *grpc.ClientConn }

// call makes a unary call. CRI's messages are at most 16 MiB.
func call[Resp any](ctx context.Context, e external, method string, req any) (*Resp, error) {
	resp := new(Resp)
	if err := e.conn.Invoke(ctx, method, req, resp, grpc.MaxCallRecvMsgSize(16<<20)); err != nil {
		return nil, err
	}
	return resp, nil
}

func (e external) Version(ctx context.Context, r *cri.VersionRequest) (*cri.VersionResponse, error) {
	return call[cri.VersionResponse](ctx, e, cri.RuntimeService_Version_FullMethodName, r)
}
func (e external) Status(ctx context.Context, r *cri.StatusRequest) (*cri.StatusResponse, error) {
	return call[cri.StatusResponse](ctx, e, cri.RuntimeService_Status_FullMethodName, r)
}
func (e external) RunPodSandbox(ctx context.Context, r *cri.RunPodSandboxRequest) (*cri.RunPodSandboxResponse, error) {
	return call[cri.RunPodSandboxResponse](ctx, e, cri.RuntimeService_RunPodSandbox_FullMethodName, r)
}
func (e external) StopPodSandbox(ctx context.Context, r *cri.StopPodSandboxRequest) (*cri.StopPodSandboxResponse, error) {
	return call[cri.StopPodSandboxResponse](ctx, e, cri.RuntimeService_StopPodSandbox_FullMethodName, r)
}
func (e external) RemovePodSandbox(ctx context.Context, r *cri.RemovePodSandboxRequest) (*cri.RemovePodSandboxResponse, error) {
	return call[cri.RemovePodSandboxResponse](ctx, e, cri.RuntimeService_RemovePodSandbox_FullMethodName, r)
}
func (e external) PodSandboxStatus(ctx context.Context, r *cri.PodSandboxStatusRequest) (*cri.PodSandboxStatusResponse, error) {
	return call[cri.PodSandboxStatusResponse](ctx, e, cri.RuntimeService_PodSandboxStatus_FullMethodName, r)
}
func (e external) ListPodSandbox(ctx context.Context, r *cri.ListPodSandboxRequest) (*cri.ListPodSandboxResponse, error) {
	return call[cri.ListPodSandboxResponse](ctx, e, cri.RuntimeService_ListPodSandbox_FullMethodName, r)
}
func (e external) CreateContainer(ctx context.Context, r *cri.CreateContainerRequest) (*cri.CreateContainerResponse, error) {
	return call[cri.CreateContainerResponse](ctx, e, cri.RuntimeService_CreateContainer_FullMethodName, r)
}
func (e external) StartContainer(ctx context.Context, r *cri.StartContainerRequest) (*cri.StartContainerResponse, error) {
	return call[cri.StartContainerResponse](ctx, e, cri.RuntimeService_StartContainer_FullMethodName, r)
}
func (e external) StopContainer(ctx context.Context, r *cri.StopContainerRequest) (*cri.StopContainerResponse, error) {
	return call[cri.StopContainerResponse](ctx, e, cri.RuntimeService_StopContainer_FullMethodName, r)
}
func (e external) RemoveContainer(ctx context.Context, r *cri.RemoveContainerRequest) (*cri.RemoveContainerResponse, error) {
	return call[cri.RemoveContainerResponse](ctx, e, cri.RuntimeService_RemoveContainer_FullMethodName, r)
}
func (e external) ContainerStatus(ctx context.Context, r *cri.ContainerStatusRequest) (*cri.ContainerStatusResponse, error) {
	return call[cri.ContainerStatusResponse](ctx, e, cri.RuntimeService_ContainerStatus_FullMethodName, r)
}
func (e external) ListContainers(ctx context.Context, r *cri.ListContainersRequest) (*cri.ListContainersResponse, error) {
	return call[cri.ListContainersResponse](ctx, e, cri.RuntimeService_ListContainers_FullMethodName, r)
}
func (e external) ExecSync(ctx context.Context, r *cri.ExecSyncRequest) (*cri.ExecSyncResponse, error) {
	return call[cri.ExecSyncResponse](ctx, e, cri.RuntimeService_ExecSync_FullMethodName, r)
}
func (e external) ReopenContainerLog(ctx context.Context, r *cri.ReopenContainerLogRequest) (*cri.ReopenContainerLogResponse, error) {
	return call[cri.ReopenContainerLogResponse](ctx, e, cri.RuntimeService_ReopenContainerLog_FullMethodName, r)
}
func (e external) PullImage(ctx context.Context, r *cri.PullImageRequest) (*cri.PullImageResponse, error) {
	return call[cri.PullImageResponse](ctx, e, cri.ImageService_PullImage_FullMethodName, r)
}
func (e external) ImageStatus(ctx context.Context, r *cri.ImageStatusRequest) (*cri.ImageStatusResponse, error) {
	return call[cri.ImageStatusResponse](ctx, e, cri.ImageService_ImageStatus_FullMethodName, r)
}

func (e external) GetContainerEvents(r *cri.GetEventsRequest, to grpc.ServerStreamingServer[cri.ContainerEventResponse]) error {
	from, err := cri.NewRuntimeServiceClient(e.conn).GetContainerEvents(to.Context(), r)
	if err != nil {
		return err
	}
	for {
		event, err := from.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return err
		}
		if err := to.Send(event); err != nil {
			return err
		}
	}
}

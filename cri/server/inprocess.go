package server

import (
	"context"

	"github.com/berthd/berth/cri/api"
	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// InProcess is both services of CRI v1 for callers in the same process: plain
// calls, through the same chain that calls by socket pass. A message must not
// be changed any more once it has been passed, by either side.
type InProcess struct {
	runtimeapi.UnimplementedRuntimeServiceServer
	runtimeapi.UnimplementedImageServiceServer
	s     *Server
	chain *Chain
}

// NewInProcess returns s for callers in the same process.
func NewInProcess(s *Server) *InProcess { return &InProcess{s: s, chain: NewChain(s.cfg.Log)} }

// Berth returns the berth.cri.v1 service, through the chain likewise.
func (p *InProcess) Berth() api.BerthServer { return &inProcessBerth{p: p, b: p.s.berth()} }

// unary makes one call through the chain.
func unary[Req, Resp any](ctx context.Context, p *InProcess, method string, req *Req, call func(context.Context, *Req) (*Resp, error)) (*Resp, error) {
	resp, err := p.chain.Unary(ctx, req, &grpc.UnaryServerInfo{Server: p.s, FullMethod: method},
		func(ctx context.Context, req any) (any, error) { return call(ctx, req.(*Req)) })
	if err != nil {
		return nil, err
	}
	return resp.(*Resp), nil
}

// stream makes one streaming call through the chain.
func stream[Req, Resp any](p *InProcess, method string, req *Req, to grpc.ServerStreamingServer[Resp], call func(*Req, grpc.ServerStreamingServer[Resp]) error) error {
	return p.chain.Stream(p.s, to, &grpc.StreamServerInfo{FullMethod: method, IsServerStream: true},
		func(any, grpc.ServerStream) error { return call(req, to) })
}

// LocalStream is a stream whose other end is in the same process. Receive may be
// nil where the call's client sends nothing.
type LocalStream[Req, Resp any] struct {
	Ctx     context.Context
	Receive func() (*Req, error) // io.EOF at the end
	Deliver func(*Resp) error
}

// Send passes a message to the caller.
func (l *LocalStream[Req, Resp]) Send(m *Resp) error { return l.Deliver(m) }

// Recv takes a message from the caller.
func (l *LocalStream[Req, Resp]) Recv() (*Req, error) { return l.Receive() }

// Context is the caller's.
func (l *LocalStream[Req, Resp]) Context() context.Context { return l.Ctx }

// SetHeader does nothing: there is no wire.
func (l *LocalStream[Req, Resp]) SetHeader(metadata.MD) error { return nil }

// SendHeader does nothing.
func (l *LocalStream[Req, Resp]) SendHeader(metadata.MD) error { return nil }

// SetTrailer does nothing.
func (l *LocalStream[Req, Resp]) SetTrailer(metadata.MD) {}

// SendMsg passes a message to the caller.
func (l *LocalStream[Req, Resp]) SendMsg(m any) error { return l.Deliver(m.(*Resp)) }

// RecvMsg is not used by typed streams, and fails.
func (l *LocalStream[Req, Resp]) RecvMsg(any) error { return errUntyped }

// Version is the server's, through the chain.
func (p *InProcess) Version(ctx context.Context, r *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_Version_FullMethodName, r, p.s.Version)
}

// RunPodSandbox is the server's, through the chain.
func (p *InProcess) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_RunPodSandbox_FullMethodName, r, p.s.RunPodSandbox)
}

// StopPodSandbox is the server's, through the chain.
func (p *InProcess) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_StopPodSandbox_FullMethodName, r, p.s.StopPodSandbox)
}

// RemovePodSandbox is the server's, through the chain.
func (p *InProcess) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_RemovePodSandbox_FullMethodName, r, p.s.RemovePodSandbox)
}

// PodSandboxStatus is the server's, through the chain.
func (p *InProcess) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_PodSandboxStatus_FullMethodName, r, p.s.PodSandboxStatus)
}

// ListPodSandbox is the server's, through the chain.
func (p *InProcess) ListPodSandbox(ctx context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListPodSandbox_FullMethodName, r, p.s.ListPodSandbox)
}

// StreamPodSandboxes is the server's, through the chain.
func (p *InProcess) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	return stream(p, runtimeapi.RuntimeService_StreamPodSandboxes_FullMethodName, r, to, p.s.StreamPodSandboxes)
}

// CreateContainer is the server's, through the chain.
func (p *InProcess) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_CreateContainer_FullMethodName, r, p.s.CreateContainer)
}

// StartContainer is the server's, through the chain.
func (p *InProcess) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_StartContainer_FullMethodName, r, p.s.StartContainer)
}

// StopContainer is the server's, through the chain.
func (p *InProcess) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_StopContainer_FullMethodName, r, p.s.StopContainer)
}

// RemoveContainer is the server's, through the chain.
func (p *InProcess) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_RemoveContainer_FullMethodName, r, p.s.RemoveContainer)
}

// ListContainers is the server's, through the chain.
func (p *InProcess) ListContainers(ctx context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListContainers_FullMethodName, r, p.s.ListContainers)
}

// StreamContainers is the server's, through the chain.
func (p *InProcess) StreamContainers(r *runtimeapi.StreamContainersRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	return stream(p, runtimeapi.RuntimeService_StreamContainers_FullMethodName, r, to, p.s.StreamContainers)
}

// ContainerStatus is the server's, through the chain.
func (p *InProcess) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ContainerStatus_FullMethodName, r, p.s.ContainerStatus)
}

// UpdateContainerResources is the server's, through the chain.
func (p *InProcess) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_UpdateContainerResources_FullMethodName, r, p.s.UpdateContainerResources)
}

// ReopenContainerLog is the server's, through the chain.
func (p *InProcess) ReopenContainerLog(ctx context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ReopenContainerLog_FullMethodName, r, p.s.ReopenContainerLog)
}

// ExecSync is the server's, through the chain.
func (p *InProcess) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ExecSync_FullMethodName, r, p.s.ExecSync)
}

// Exec is the server's, through the chain.
func (p *InProcess) Exec(ctx context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_Exec_FullMethodName, r, p.s.Exec)
}

// Attach is the server's, through the chain.
func (p *InProcess) Attach(ctx context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_Attach_FullMethodName, r, p.s.Attach)
}

// PortForward is the server's, through the chain.
func (p *InProcess) PortForward(ctx context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_PortForward_FullMethodName, r, p.s.PortForward)
}

// ContainerStats is the server's, through the chain.
func (p *InProcess) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ContainerStats_FullMethodName, r, p.s.ContainerStats)
}

// ListContainerStats is the server's, through the chain.
func (p *InProcess) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListContainerStats_FullMethodName, r, p.s.ListContainerStats)
}

// StreamContainerStats is the server's, through the chain.
func (p *InProcess) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	return stream(p, runtimeapi.RuntimeService_StreamContainerStats_FullMethodName, r, to, p.s.StreamContainerStats)
}

// PodSandboxStats is the server's, through the chain.
func (p *InProcess) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_PodSandboxStats_FullMethodName, r, p.s.PodSandboxStats)
}

// ListPodSandboxStats is the server's, through the chain.
func (p *InProcess) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListPodSandboxStats_FullMethodName, r, p.s.ListPodSandboxStats)
}

// StreamPodSandboxStats is the server's, through the chain.
func (p *InProcess) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	return stream(p, runtimeapi.RuntimeService_StreamPodSandboxStats_FullMethodName, r, to, p.s.StreamPodSandboxStats)
}

// UpdateRuntimeConfig is the server's, through the chain.
func (p *InProcess) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_UpdateRuntimeConfig_FullMethodName, r, p.s.UpdateRuntimeConfig)
}

// Status is the server's, through the chain.
func (p *InProcess) Status(ctx context.Context, r *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_Status_FullMethodName, r, p.s.Status)
}

// CheckpointContainer is the server's, through the chain.
func (p *InProcess) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_CheckpointContainer_FullMethodName, r, p.s.CheckpointContainer)
}

// GetContainerEvents is the server's, through the chain.
func (p *InProcess) GetContainerEvents(r *runtimeapi.GetEventsRequest, to grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	return stream(p, runtimeapi.RuntimeService_GetContainerEvents_FullMethodName, r, to, p.s.GetContainerEvents)
}

// ListMetricDescriptors is the server's, through the chain.
func (p *InProcess) ListMetricDescriptors(ctx context.Context, r *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListMetricDescriptors_FullMethodName, r, p.s.ListMetricDescriptors)
}

// ListPodSandboxMetrics is the server's, through the chain.
func (p *InProcess) ListPodSandboxMetrics(ctx context.Context, r *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_ListPodSandboxMetrics_FullMethodName, r, p.s.ListPodSandboxMetrics)
}

// StreamPodSandboxMetrics is the server's, through the chain.
func (p *InProcess) StreamPodSandboxMetrics(r *runtimeapi.StreamPodSandboxMetricsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	return stream(p, runtimeapi.RuntimeService_StreamPodSandboxMetrics_FullMethodName, r, to, p.s.StreamPodSandboxMetrics)
}

// RuntimeConfig is the server's, through the chain.
func (p *InProcess) RuntimeConfig(ctx context.Context, r *runtimeapi.RuntimeConfigRequest) (*runtimeapi.RuntimeConfigResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_RuntimeConfig_FullMethodName, r, p.s.RuntimeConfig)
}

// UpdatePodSandboxResources is the server's, through the chain.
func (p *InProcess) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	return unary(ctx, p, runtimeapi.RuntimeService_UpdatePodSandboxResources_FullMethodName, r, p.s.UpdatePodSandboxResources)
}

// ListImages is the server's, through the chain.
func (p *InProcess) ListImages(ctx context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return unary(ctx, p, runtimeapi.ImageService_ListImages_FullMethodName, r, p.s.ListImages)
}

// StreamImages is the server's, through the chain.
func (p *InProcess) StreamImages(r *runtimeapi.StreamImagesRequest, to grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	return stream(p, runtimeapi.ImageService_StreamImages_FullMethodName, r, to, p.s.StreamImages)
}

// ImageStatus is the server's, through the chain.
func (p *InProcess) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	return unary(ctx, p, runtimeapi.ImageService_ImageStatus_FullMethodName, r, p.s.ImageStatus)
}

// PullImage is the server's, through the chain.
func (p *InProcess) PullImage(ctx context.Context, r *runtimeapi.PullImageRequest) (*runtimeapi.PullImageResponse, error) {
	return unary(ctx, p, runtimeapi.ImageService_PullImage_FullMethodName, r, p.s.PullImage)
}

// RemoveImage is the server's, through the chain.
func (p *InProcess) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	return unary(ctx, p, runtimeapi.ImageService_RemoveImage_FullMethodName, r, p.s.RemoveImage)
}

// ImageFsInfo is the server's, through the chain.
func (p *InProcess) ImageFsInfo(ctx context.Context, r *runtimeapi.ImageFsInfoRequest) (*runtimeapi.ImageFsInfoResponse, error) {
	return unary(ctx, p, runtimeapi.ImageService_ImageFsInfo_FullMethodName, r, p.s.ImageFsInfo)
}

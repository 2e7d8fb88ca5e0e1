package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/api"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
)

var errUntyped = fmt.Errorf("a stream within the process has typed messages only: %w", errdefs.ErrNotImplemented)

// inProcessBerth is the berth.cri.v1 service for callers in the same process.
type inProcessBerth struct {
	api.UnimplementedBerthServer
	p *InProcess
	b *berth
}

func (i *inProcessBerth) PullImage(r *api.PullImageRequest, to grpc.ServerStreamingServer[api.PullImageResponse]) error {
	return stream(i.p, api.Berth_PullImage_FullMethodName, r, to, i.b.PullImage)
}

func (i *inProcessBerth) VerifyImages(r *api.VerifyImagesRequest, to grpc.ServerStreamingServer[api.VerifyImagesResponse]) error {
	return stream(i.p, api.Berth_VerifyImages_FullMethodName, r, to, i.b.VerifyImages)
}

func (i *inProcessBerth) ImportImages(both grpc.BidiStreamingServer[api.ImportImagesRequest, api.ImportImagesResponse]) error {
	return i.p.chain.Stream(i.p.s, both, &grpc.StreamServerInfo{FullMethod: api.Berth_ImportImages_FullMethodName, IsServerStream: true, IsClientStream: true},
		func(any, grpc.ServerStream) error { return i.b.ImportImages(both) })
}

func (i *inProcessBerth) Audit(ctx context.Context, r *api.AuditRequest) (*api.AuditResponse, error) {
	return unary(ctx, i.p, api.Berth_Audit_FullMethodName, r, i.b.Audit)
}

func (i *inProcessBerth) ContainerDetail(ctx context.Context, r *api.ContainerDetailRequest) (*api.ContainerDetailResponse, error) {
	return unary(ctx, i.p, api.Berth_ContainerDetail_FullMethodName, r, i.b.ContainerDetail)
}

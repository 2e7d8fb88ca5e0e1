package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNoMetrics = fmt.Errorf("this runtime was started without metrics: %w", errdefs.ErrNotImplemented)

// ListMetricDescriptors describes the metrics there are.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	if s.cfg.Stats.Metrics == nil {
		return nil, errNoMetrics
	}
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: s.cfg.Stats.Descriptors}, nil
}

// ListPodSandboxMetrics reads the metrics of all ready pods.
func (s *Server) ListPodSandboxMetrics(ctx context.Context, _ *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	out := &runtimeapi.ListPodSandboxMetricsResponse{}
	err := s.eachPodMetrics(ctx, func(m *runtimeapi.PodSandboxMetrics) error {
		out.PodMetrics = append(out.PodMetrics, m)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics in pages.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	p := pages[*runtimeapi.PodSandboxMetrics]{send: func(page []*runtimeapi.PodSandboxMetrics) error {
		return to.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: page})
	}}
	if err := s.eachPodMetrics(to.Context(), p.add); err != nil {
		return err
	}
	return p.flush()
}

// eachPodMetrics reads one pod after the other. One that ends meanwhile is left out.
func (s *Server) eachPodMetrics(ctx context.Context, f func(*runtimeapi.PodSandboxMetrics) error) error {
	if s.cfg.Stats.Metrics == nil {
		return errNoMetrics
	}
	ready := true
	for _, st := range s.cfg.Sandboxes.Select(sandbox.Filter{Ready: &ready}) {
		m, err := s.podMetrics(ctx, st.ID)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.cfg.Log.Debug("a pod's metrics cannot be read", "sandbox", st.ID, "err", err)
			continue
		}
		if err := f(m); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) podMetrics(ctx context.Context, id sandbox.ID) (*runtimeapi.PodSandboxMetrics, error) {
	f, err := s.cfg.Sandboxes.Facts(id)
	if err != nil {
		return nil, err
	}
	var of []Measured
	running := runtimeapi.ContainerState_CONTAINER_RUNNING
	for _, c := range s.cfg.Containers.List(container.Filter{SandboxID: string(id), State: &running}) {
		cf, err := s.cfg.Containers.Facts(c.GetId())
		if err != nil {
			continue
		}
		if st, err := s.cfg.Containers.Status(c.GetId()); err == nil {
			of = append(of, Measured{Facts: cf, Status: st})
		}
	}
	return s.cfg.Stats.Metrics(ctx, f, of)
}

package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNoStats = fmt.Errorf("this runtime was started without stats: %w", errdefs.ErrNotImplemented)

// ContainerStats reads one container's counters.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	f, err := s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	all, err := s.containerStats(ctx, container.Filter{ID: f.ID})
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("container %s: %w", f.ID, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: all[0]}, nil
}

// ListContainerStats reads the counters of several containers.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	f := r.GetFilter()
	all, err := s.containerStats(ctx, container.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListContainerStatsResponse{Stats: all}, nil
}

// containerStats reads the chosen containers. One that ends or goes away while
// it is read is left out of a list, as one that went away before.
func (s *Server) containerStats(ctx context.Context, filter container.Filter) ([]*runtimeapi.ContainerStats, error) {
	if s.cfg.Stats.Container == nil {
		return nil, errNoStats
	}
	var out []*runtimeapi.ContainerStats
	for _, c := range s.cfg.Containers.List(filter) {
		f, err := s.cfg.Containers.Facts(c.GetId())
		if err != nil {
			continue
		}
		st, err := s.cfg.Stats.Container(ctx, f)
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			s.cfg.Log.Debug("a container's counters cannot be read", "container", f.ID, "err", err)
			continue
		}
		st.Attributes = &runtimeapi.ContainerAttributes{Id: f.ID, Metadata: c.GetMetadata(), Labels: c.GetLabels(), Annotations: c.GetAnnotations()}
		out = append(out, st)
	}
	return out, nil
}

// PodSandboxStats reads one pod's counters.
func (s *Server) PodSandboxStats(ctx context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	id, err := s.sandboxID(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	st, err := s.podStats(ctx, id)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: st}, nil
}

// ListPodSandboxStats reads the counters of several pods.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	all, err := s.allPodStats(ctx, r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: all}, nil
}

func (s *Server) allPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter) ([]*runtimeapi.PodSandboxStats, error) {
	if s.cfg.Stats.Pod == nil {
		return nil, errNoStats
	}
	var out []*runtimeapi.PodSandboxStats
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for _, p := range s.sandboxes(&runtimeapi.PodSandboxFilter{Id: f.GetId(), LabelSelector: f.GetLabelSelector(), State: ready}) {
		st, err := s.podStats(ctx, sandbox.ID(p.GetId()))
		if err != nil {
			if ctx.Err() != nil {
				return nil, ctx.Err()
			}
			s.cfg.Log.Debug("a pod's counters cannot be read", "sandbox", p.GetId(), "err", err)
			continue
		}
		out = append(out, st)
	}
	return out, nil
}

func (s *Server) podStats(ctx context.Context, id sandbox.ID) (*runtimeapi.PodSandboxStats, error) {
	if s.cfg.Stats.Pod == nil {
		return nil, errNoStats
	}
	f, err := s.cfg.Sandboxes.Facts(id)
	if err != nil {
		return nil, err
	}
	linux, err := s.cfg.Stats.Pod(ctx, f)
	if err != nil {
		return nil, err
	}
	if s.cfg.Stats.Container != nil {
		if linux.Containers, err = s.containerStats(ctx, container.Filter{SandboxID: string(id)}); err != nil {
			return nil, err
		}
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: string(id), Metadata: f.Config.GetMetadata(), Labels: f.Config.GetLabels(), Annotations: f.Config.GetAnnotations(),
		},
		Linux: linux,
	}, nil
}

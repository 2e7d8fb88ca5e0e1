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

var errNoStats = fmt.Errorf("this runtime was started without stats: %w", errdefs.ErrNotImplemented)

// ContainerStats reads one container's counters, as they are now. Of one that
// does not run only what it wrote is told.
func (s *Server) ContainerStats(ctx context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	f, err := s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	all := s.cfg.Containers.List(container.Filter{ID: f.ID})
	if len(all) == 0 {
		return nil, fmt.Errorf("container %s: %w", f.ID, errdefs.ErrNotFound)
	}
	st, err := s.containerStats(ctx, all[0], true)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: st}, nil
}

// ListContainerStats reads the counters of several running containers.
func (s *Server) ListContainerStats(ctx context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	out := &runtimeapi.ListContainerStatsResponse{}
	err := s.eachContainerStats(ctx, statsFilter(r.GetFilter()), func(st *runtimeapi.ContainerStats) error {
		out.Stats = append(out.Stats, st)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// StreamContainerStats is ListContainerStats in pages, each read as it is sent.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	p := pages[*runtimeapi.ContainerStats]{send: func(page []*runtimeapi.ContainerStats) error {
		return to.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: page})
	}}
	if err := s.eachContainerStats(to.Context(), statsFilter(r.GetFilter()), p.add); err != nil {
		return err
	}
	return p.flush()
}

func statsFilter(f *runtimeapi.ContainerStatsFilter) container.Filter {
	running := runtimeapi.ContainerState_CONTAINER_RUNNING
	return container.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector(), State: &running}
}

// eachContainerStats reads one chosen container after the other. One that ends
// while it is read is left out, as one that ended before.
func (s *Server) eachContainerStats(ctx context.Context, filter container.Filter, f func(*runtimeapi.ContainerStats) error) error {
	if s.cfg.Stats.Container == nil {
		return errNoStats
	}
	for _, c := range s.cfg.Containers.List(filter) {
		st, err := s.containerStats(ctx, c, false)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.cfg.Log.Debug("a container's counters cannot be read", "container", c.GetId(), "err", err)
			continue
		}
		if err := f(st); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) containerStats(ctx context.Context, c *runtimeapi.Container, now bool) (*runtimeapi.ContainerStats, error) {
	if s.cfg.Stats.Container == nil {
		return nil, errNoStats
	}
	f, err := s.cfg.Containers.Facts(c.GetId())
	if err != nil {
		return nil, err
	}
	st, err := s.cfg.Stats.Container(ctx, f, now)
	if err != nil {
		return nil, err
	}
	st.Attributes = &runtimeapi.ContainerAttributes{Id: f.ID, Metadata: c.GetMetadata(), Labels: c.GetLabels(), Annotations: c.GetAnnotations()}
	return st, nil
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

// ListPodSandboxStats reads the counters of several ready pods.
func (s *Server) ListPodSandboxStats(ctx context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	out := &runtimeapi.ListPodSandboxStatsResponse{}
	err := s.eachPodStats(ctx, r.GetFilter(), func(st *runtimeapi.PodSandboxStats) error {
		out.Stats = append(out.Stats, st)
		return nil
	})
	if err != nil {
		return nil, err
	}
	return out, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in pages, each read as it is sent.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, to grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	p := pages[*runtimeapi.PodSandboxStats]{send: func(page []*runtimeapi.PodSandboxStats) error {
		return to.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: page})
	}}
	if err := s.eachPodStats(to.Context(), r.GetFilter(), p.add); err != nil {
		return err
	}
	return p.flush()
}

func (s *Server) eachPodStats(ctx context.Context, f *runtimeapi.PodSandboxStatsFilter, do func(*runtimeapi.PodSandboxStats) error) error {
	if s.cfg.Stats.Pod == nil {
		return errNoStats
	}
	ready := true
	for _, p := range s.cfg.Sandboxes.Select(sandbox.Filter{ID: f.GetId(), Labels: f.GetLabelSelector(), Ready: &ready}) {
		st, err := s.podStats(ctx, p.ID)
		if err != nil {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			s.cfg.Log.Debug("a pod's counters cannot be read", "sandbox", p.ID, "err", err)
			continue
		}
		if err := do(st); err != nil {
			return err
		}
	}
	return nil
}

func (s *Server) podStats(ctx context.Context, id sandbox.ID) (*runtimeapi.PodSandboxStats, error) {
	if s.cfg.Stats.Pod == nil {
		return nil, errNoStats
	}
	f, err := s.cfg.Sandboxes.Facts(id)
	if err != nil {
		return nil, err
	}
	var containers []*runtimeapi.ContainerStats
	if s.cfg.Stats.Container != nil {
		err := s.eachContainerStats(ctx, statsFilter(&runtimeapi.ContainerStatsFilter{PodSandboxId: string(id)}), func(st *runtimeapi.ContainerStats) error {
			containers = append(containers, st)
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	linux, err := s.cfg.Stats.Pod(ctx, f, containers)
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStats{
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: string(id), Metadata: f.Config.GetMetadata(), Labels: f.Config.GetLabels(), Annotations: f.Config.GetAnnotations(),
		},
		Linux: linux,
	}, nil
}

package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StartContainer starts a created container.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	f, err := s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	err = s.intoSandbox(ctx, sandbox.ID(f.SandboxID),
		func() error { return s.cfg.Containers.Start(ctx, f.ID) },
		func(ctx context.Context) error { return s.cfg.Containers.Stop(ctx, f.ID, 0) })
	if err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer ends a container, gracefully for r.Timeout seconds.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, errNoContainer
	}
	if err := s.cfg.Containers.Stop(ctx, r.GetContainerId(), seconds(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer ends a container if it must, and removes it.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, errNoContainer
	}
	if err := s.cfg.Containers.Remove(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// UpdateContainerResources changes a container's limits.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	f, err := s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if r.GetLinux() == nil {
		return nil, fmt.Errorf("no Linux resources were given for container %s: %w", f.ID, errdefs.ErrInvalidArgument)
	}
	if err := s.cfg.Containers.UpdateResources(ctx, f.ID, r.GetLinux()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog makes the monitor open the log's path again, after a rotation.
func (s *Server) ReopenContainerLog(_ context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	f, err := s.containerFacts(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if err := s.cfg.Containers.ReopenLog(f.ID); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

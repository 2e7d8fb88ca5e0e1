package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/container"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNoContainer = fmt.Errorf("no container ID was given: %w", errdefs.ErrInvalidArgument)

func (s *Server) containerFacts(id string) (container.Facts, error) {
	if id == "" {
		return container.Facts{}, errNoContainer
	}
	return s.cfg.Containers.Facts(id)
}

// ContainerStatus tells about one container.
func (s *Server) ContainerStatus(_ context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	if r.GetContainerId() == "" {
		return nil, errNoContainer
	}
	st, err := s.cfg.Containers.Status(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: st}
	if !r.GetVerbose() {
		return resp, nil
	}
	f, err := s.cfg.Containers.Facts(st.GetId())
	if err != nil {
		return nil, err
	}
	resp.Info, err = verbose(map[string]any{"pid": f.PID, "sandboxID": f.SandboxID, "cgroupsPath": f.CgroupsPath})
	return resp, err
}

// ListContainers lists containers by ID prefix, sandbox, state and labels.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.containers(r.GetFilter())}, nil
}

func (s *Server) containers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	filter := container.Filter{ID: f.GetId(), SandboxID: f.GetPodSandboxId(), Labels: f.GetLabelSelector()}
	if f.GetState() != nil {
		state := f.GetState().GetState()
		filter.State = &state
	}
	return s.cfg.Containers.List(filter)
}

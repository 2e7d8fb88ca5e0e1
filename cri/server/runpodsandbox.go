package server

import (
	"context"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a sandbox.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("no sandbox configuration was given: %w", errdefs.ErrInvalidArgument)
	}
	if h := r.GetRuntimeHandler(); h != "" && !slices.Contains(s.cfg.Runtimes, h) {
		return nil, fmt.Errorf("runtime handler %q is not configured on this node; there are %q: %w", h, s.cfg.Runtimes, errdefs.ErrInvalidArgument)
	}
	id, err := s.cfg.Sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

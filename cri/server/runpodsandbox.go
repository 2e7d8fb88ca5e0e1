package server

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// RunPodSandbox makes a sandbox.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	if r.GetConfig() == nil {
		return nil, fmt.Errorf("no sandbox configuration was given: %w", errdefs.ErrInvalidArgument)
	}
	h, ok := s.cfg.Handlers[r.GetRuntimeHandler()]
	if !ok {
		return nil, fmt.Errorf("runtime handler %q is not configured on this node; there are %q: %w", r.GetRuntimeHandler(), s.handlers(), errdefs.ErrInvalidArgument)
	}
	if h.Unusable != nil {
		return nil, fmt.Errorf("runtime handler %q: %w: %w", r.GetRuntimeHandler(), h.Unusable, errdefs.ErrFailedPrecondition)
	}
	users := r.GetConfig().GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if users != nil && users.GetMode() == runtimeapi.NamespaceMode_POD && h.NoUserNamespaces != nil {
		return nil, fmt.Errorf("the pod cannot have a user namespace of its own (hostUsers: false) here: %w: %w", h.NoUserNamespaces, errdefs.ErrFailedPrecondition)
	}
	id, err := s.cfg.Sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: string(id)}, nil
}

package server

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdatePodSandboxResources puts a pod's resources on record after its cgroup
// has been changed: there is nothing to change besides, limits are on the pod's
// and the containers' cgroups.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	id, err := s.sandboxID(r.GetPodSandboxId())
	if err == nil {
		err = s.cfg.Sandboxes.UpdateResources(ctx, id, r.GetOverhead(), r.GetResources())
	}
	if err != nil {
		return nil, err
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}

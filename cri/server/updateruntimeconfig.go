package server

import (
	"context"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateRuntimeConfig gives the network the ranges of pods' addresses that are
// assigned to the node: one CIDR, or one of each family, by commas. Whether the
// network makes use of them is its own business; without any, nothing is done.
func (s *Server) UpdateRuntimeConfig(ctx context.Context, r *runtimeapi.UpdateRuntimeConfigRequest) (*runtimeapi.UpdateRuntimeConfigResponse, error) {
	ranges := strings.TrimSpace(r.GetRuntimeConfig().GetNetworkConfig().GetPodCidr())
	if ranges == "" {
		return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
	}
	if err := s.cfg.Sandboxes.SetPodRanges(ctx, strings.Split(ranges, ",")); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateRuntimeConfigResponse{}, nil
}

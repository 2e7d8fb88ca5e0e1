package server

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CheckpointContainer writes a running container's state to an archive.
func (s *Server) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r.GetContainerId() == "" {
		return nil, errNoContainer
	}
	timeout := time.Duration(max(0, r.GetTimeout())) * time.Second
	if err := s.cfg.Containers.Checkpoint(ctx, r.GetContainerId(), r.GetLocation(), timeout); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// refuseRestore refuses an archive in the place of an image: see
// container.Store.Checkpoint.
func refuseRestore(image string) error {
	if filepath.IsAbs(image) {
		return fmt.Errorf("%q is a path, not an image: containers are not restored from checkpoint archives: %w", image, errdefs.ErrNotImplemented)
	}
	return nil
}

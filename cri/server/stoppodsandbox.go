package server

import (
	"context"
	"fmt"

	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// StopPodSandbox ends a sandbox's containers at once, then the sandbox itself.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	id, err := s.sandboxID(r.GetPodSandboxId())
	if err == nil {
		err = s.endSandbox(ctx, id)
	}
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox stops a sandbox, and removes its containers and itself.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	id, err := s.sandboxID(r.GetPodSandboxId())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemovePodSandboxResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	if err := s.endSandbox(ctx, id); err != nil {
		return nil, err
	}
	if err := s.eachContainer(ctx, id, s.cfg.Containers.Remove); err != nil {
		return nil, err
	}
	if err := s.cfg.Sandboxes.Remove(ctx, id); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// endSandbox holds the order of a sandbox's end: containers, then network, init
// and namespaces. From the moment the sandbox counts as stopped nobody can bring
// another container into it (see intoSandbox); one that came before that is
// ended by the second round.
func (s *Server) endSandbox(ctx context.Context, id sandbox.ID) error {
	kill := func(ctx context.Context, container string) error { return s.cfg.Containers.Stop(ctx, container, 0) }
	if err := s.eachContainer(ctx, id, kill); err != nil {
		return err
	}
	if err := s.cfg.Sandboxes.Stop(ctx, id); err != nil {
		return err
	}
	return s.eachContainer(ctx, id, kill)
}

// eachContainer does f to all containers of a sandbox at once.
func (s *Server) eachContainer(ctx context.Context, id sandbox.ID, f func(context.Context, string) error) error {
	var g errgroup.Group // not ending the others when one fails
	for _, c := range s.cfg.Containers.IDs(string(id)) {
		g.Go(func() error { return f(ctx, c) })
	}
	return g.Wait()
}

// intoSandbox does f, which brings a container into a sandbox or to life in it,
// and takes it back by undo if the sandbox was stopped meanwhile.
func (s *Server) intoSandbox(ctx context.Context, id sandbox.ID, f func() error, undo func(context.Context) error) error {
	if err := s.sandboxReady(id); err != nil {
		return err
	}
	if err := f(); err != nil {
		return err
	}
	err := s.sandboxReady(id)
	if err == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), defaultDeadline)
	defer cancel()
	if undone := undo(ctx); undone != nil {
		err = fmt.Errorf("%w (and the container cannot be taken back: %w)", err, undone)
	}
	return err
}

func (s *Server) sandboxReady(id sandbox.ID) error {
	st, err := s.cfg.Sandboxes.Get(id)
	if err == nil && !st.Ready {
		err = fmt.Errorf("sandbox %s is not ready: %s: %w", id, st.Why, errdefs.ErrFailedPrecondition)
	}
	return err
}

// sandboxID completes an ID or a unique prefix of one.
func (s *Server) sandboxID(prefix string) (sandbox.ID, error) {
	if prefix == "" {
		return "", fmt.Errorf("no sandbox ID was given: %w", errdefs.ErrInvalidArgument)
	}
	return s.cfg.Sandboxes.Resolve(prefix)
}

package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Start lets a created container run. Starting a running one succeeds; an
// exited one is never started again. If it cannot start it becomes Exited with
// reason StartError.
func (s *Store) Start(ctx context.Context, id string) error {
	c, err := s.complete(id)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec, _ := c.snapshot()
	switch {
	case rec.State() == runtimeapi.ContainerState_CONTAINER_RUNNING:
		return nil
	case rec.State() == runtimeapi.ContainerState_CONTAINER_EXITED:
		return fmt.Errorf("container %s has exited (%s); a container is started once: %w", c.id, rec.Exit.Reason, errdefs.ErrFailedPrecondition)
	case rec.StartFailure != "":
		return s.startFailed(c, errors.New(rec.StartFailure))
	}
	if _, err := s.update(c, func(r *Record) bool {
		r.StartAt = time.Now()
		return true
	}); err != nil {
		return err
	}
	if err := s.runtime(rec).Start(ctx, c.id); err != nil && !s.startedAfterAll(ctx, c, err) {
		return s.startFailed(c, err)
	}
	// It may have exited already: then Exit is on record, or soon will be.
	if _, err := s.update(c, func(r *Record) bool {
		r.Started = true
		return true
	}); err != nil {
		return err
	}
	s.event(Started, c)
	return nil
}

// startedAfterAll asks, when a call has been given up, whether it did its work.
func (s *Store) startedAfterAll(ctx context.Context, c *container, err error) bool {
	var rt *ociruntime.Error
	if !errors.As(err, &rt) || rt.Kind != ociruntime.Timeout {
		return false
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second) // the caller's is over
	defer cancel()
	rec, _ := c.snapshot()
	st, err := s.runtime(rec).State(ctx, c.id)
	return err == nil && st.Status == "running"
}

// startFailed puts the failure on record as the container's end.
func (s *Store) startFailed(c *container, cause error) error {
	changed, err := s.update(c, func(r *Record) bool {
		if r.Exit != nil {
			return false
		}
		r.Exit = &Exit{At: time.Now(), Code: startErrorCode, Reason: reasonStartError, Message: cause.Error()}
		return true
	})
	s.endAll(c)
	if changed {
		s.event(Stopped, c)
	}
	return errors.Join(fmt.Errorf("container %s cannot be started: %w", c.id, cause), err)
}

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
// reason ContainerCannotRun (its command is missing, 127, or may not be executed,
// 126) or StartError (128).
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
		code := rec.StartCode
		if code == 0 { // a record of an earlier version
			code = startErrorCode
		}
		return s.startFailed(c, errors.New(rec.StartFailure), code)
	}
	if _, err := s.update(c, func(r *Record) bool {
		r.StartAt = time.Now()
		return true
	}); err != nil {
		return err
	}
	err = s.runtime(rec).Start(ctx, c.id)
	if err == nil {
		err = s.doubtStarted(ctx, c, s.runtime(rec))
	}
	if err != nil && !s.startedAfterAll(ctx, c, err) {
		return s.startFailed(c, err, startCode(err))
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
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTime) // the caller's is over
	defer cancel()
	rec, _ := c.snapshot()
	st, err := s.runtime(rec).State(ctx, c.id)
	return err == nil && st.Status == "running"
}

// startCode is the exit code of a container that cannot be started because of err.
func startCode(err error) int32 {
	var fault *ociruntime.Error
	if errors.As(err, &fault) {
		switch fault.Kind {
		case ociruntime.CommandNotFound:
			return notFoundCode
		case ociruntime.CommandDenied:
			return deniedCode
		}
	}
	return startErrorCode
}

// startFailed puts the failure on record as the container's end.
func (s *Store) startFailed(c *container, cause error, code int32) error {
	reason := reasonStartError
	if code == notFoundCode || code == deniedCode {
		reason = reasonCannotRun
	}
	changed, err := s.update(c, func(r *Record) bool {
		if r.Exit != nil {
			return false
		}
		r.Exit = &Exit{At: time.Now(), Code: code, Reason: reason, Message: cause.Error()}
		return true
	})
	s.endAll(c)
	if changed {
		s.event(Stopped, c)
	}
	return errors.Join(fmt.Errorf("container %s cannot be started: %w", c.id, cause), err)
}

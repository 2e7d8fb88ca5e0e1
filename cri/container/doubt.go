package container

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// What the OCI runtime of a configured handler says it has done is looked at:
// one that misbehaves costs its own pods, with an error that names it, and
// nothing of it stays when they are removed.

// stateTime bounds a question to the runtime that somebody waits for.
const stateTime = 5 * time.Second

// doubtCreated sees that what rt calls the container's first process was made by
// it, and puts on record what else it has left running: a machine of its own,
// or what it forgot.
func (s *Store) doubtCreated(c *container, rt *ociruntime.Runtime, init monitor.Identity) error {
	if !rt.Doubted() {
		return nil
	}
	rec, _ := c.snapshot()
	ours := monitor.Descendants(rec.Monitor.PID)[1:]
	if !slices.Contains(ours, init.PID) {
		return rt.Misbehaved("create", fmt.Sprintf("says that process %d is container %s, which it did not start", init.PID, c.id))
	}
	inside := monitor.Descendants(init.PID)
	var left []monitor.Identity
	for _, pid := range ours {
		if slices.Contains(inside, pid) {
			continue
		}
		if id, err := monitor.Identify(pid); err == nil {
			left = append(left, id)
		}
	}
	if len(left) == 0 {
		return nil
	}
	_, err := s.update(c, func(r *Record) bool {
		r.Left = left
		return true
	})
	return err
}

// doubtStarted sees that rt has started what it says it has.
func (s *Store) doubtStarted(ctx context.Context, c *container, rt *ociruntime.Runtime) error {
	if !rt.Doubted() {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	st, err := rt.State(ctx, c.id)
	switch {
	case ociruntime.IsNotFound(err):
		return nil // it may have ended already, and been forgotten
	case err != nil:
		return err
	case st.Status == "created" || st.Status == "creating":
		return rt.Misbehaved("start", fmt.Sprintf("says that it has started container %s, and that the container is %s", c.id, st.Status))
	}
	return nil
}

// deleteByRuntime lets rt remove what it keeps. One of a configured handler that
// does not is done without: what it left running is killed, and its files are
// removed, or nobody could ever remove its pods.
func (s *Store) deleteByRuntime(ctx context.Context, c *container, rec Record) error {
	rt := s.runtime(rec)
	err := rt.Delete(ctx, c.id)
	if !rt.Doubted() {
		return err
	}
	for _, id := range rec.Left {
		failpoint.Hit("cri/container/kill-left")
		if kerr := id.Signal(unix.SIGKILL); kerr != nil && !errors.Is(kerr, monitor.ErrGone) {
			return fmt.Errorf("killing what the runtime of container %s left running: %w", c.id, kerr)
		}
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		s.cfg.Log.Error("container is removed without its OCI runtime, which may have left something that nobody knows of", "container", c.id, "err", err)
	}
	return rt.Forget(c.id)
}

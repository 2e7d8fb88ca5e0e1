package container

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// killPatience is how long a killed container may take to be gone: only one
// stuck in the kernel (a dead NFS server) takes longer.
const killPatience = 30 * time.Second

// Stop ends a container: its stop signal, up to grace of patience, SIGKILL. It
// returns once the end is on record. Stopping what has exited or does not exist
// succeeds; a call beside another, with less patience, is heeded.
func (s *Store) Stop(ctx context.Context, id string, grace time.Duration) error {
	c, err := s.get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	rec, cfg := c.snapshot()
	if rec.Exit != nil || !rec.Complete || rec.StartFailure != "" {
		return nil // nothing of it runs
	}
	if grace > 0 && !rec.StartAt.IsZero() && !rec.Started {
		if grace, err = s.awaitStart(ctx, c, grace); err != nil {
			return err
		}
		if rec, cfg = c.snapshot(); rec.Exit != nil {
			return nil
		}
	}
	// Before its start a container's first process is the runtime's own and knows no manners.
	if grace > 0 && rec.State() == runtimeapi.ContainerState_CONTAINER_RUNNING {
		if err := s.signalOnce(c, stopSignal(cfg)); err != nil {
			return err
		}
		if ended, err := s.await(ctx, c, grace); ended || err != nil {
			return err
		}
	}
	if err := s.ours(c); err != nil {
		return err
	}
	s.endAll(c)
	ended, err := s.await(ctx, c, killPatience)
	if err == nil && !ended {
		err = fmt.Errorf("container %s has not ended %v after SIGKILL: a process of it is stuck in the kernel: %w",
			c.id, killPatience, errdefs.ErrUnavailable)
	}
	return err
}

// awaitStart waits for a start that is going on, so that what was just started
// gets its stop signal too; it returns what is left of grace, at least a moment.
func (s *Store) awaitStart(ctx context.Context, c *container, grace time.Duration) (time.Duration, error) {
	begun := time.Now()
	within, cancel := context.WithTimeout(ctx, grace)
	defer cancel()
	if err := c.lock(within); err == nil {
		c.unlock()
	} else if ctx.Err() != nil {
		return 0, err
	}
	return max(grace-time.Since(begun), time.Millisecond), nil
}

// ours puts on record that the container is ended by us, if it could else be
// taken for one that the kernel has killed for want of memory.
func (s *Store) ours(c *container) error {
	rec, _ := c.snapshot()
	if rec.Signalled || oomKills(s.cfg.Host, rec.CgroupsPath) == 0 {
		return nil
	}
	_, err := s.update(c, func(r *Record) bool {
		r.Signalled = true
		return r.Exit == nil
	})
	return err
}

// signalOnce sends the stop signal unless it has been sent, by an earlier agent
// even. An agent that was killed between sending and recording makes the next one
// send it again: twice is better than never, and then SIGKILL.
func (s *Store) signalOnce(c *container, sig unix.Signal) error {
	first, err := s.update(c, func(r *Record) bool {
		if r.SignalSent || r.sending || r.Exit != nil {
			return false
		}
		r.Signalled, r.sending = true, true
		return true
	})
	if err != nil || !first {
		return err
	}
	rec, _ := c.snapshot()
	failpoint.Hit("cri/container/signal")
	failed := rec.Init.Signal(sig)
	if errors.Is(failed, monitor.ErrGone) {
		failed = nil
	}
	failpoint.Hit("cri/container/signal-done")
	_, err = s.update(c, func(r *Record) bool {
		r.sending, r.SignalSent = false, failed == nil
		return true
	})
	if failed != nil {
		return fmt.Errorf("stopping container %s: %w", c.id, failed)
	}
	return err
}

// await waits for the end to be on record. The second look each second is for
// a hint that was lost.
func (s *Store) await(ctx context.Context, c *container, patience time.Duration) (bool, error) {
	deadline := time.NewTimer(patience)
	defer deadline.Stop()
	look := time.NewTicker(time.Second)
	defer look.Stop()
	for {
		select {
		case <-c.exited:
			return true, nil
		case <-look.C:
			s.look(c)
		case <-deadline.C:
			return false, nil
		case <-ctx.Done():
			return false, fmt.Errorf("waiting for container %s to end: %w", c.id, ctx.Err())
		}
	}
}

// endAll kills the first process and everything in the container's cgroup: with
// a PID namespace of its own the first process takes the rest along, in a
// shared one it does not.
func (s *Store) endAll(c *container) {
	rec, _ := c.snapshot()
	failpoint.Hit("cri/container/kill")
	if err := rec.Init.Signal(unix.SIGKILL); err != nil && !errors.Is(err, monitor.ErrGone) {
		s.cfg.Log.Error("container cannot be killed", "container", c.id, "err", err)
	}
	if err := killCgroup(s.cfg.Host, rec.CgroupsPath); err != nil {
		s.cfg.Log.Error("processes of a container cannot be killed", "container", c.id, "err", err)
	}
}

// stopSignal is what CRI asks for, else SIGTERM. Create has put an image's
// STOPSIGNAL there.
func stopSignal(cfg *runtimeapi.ContainerConfig) unix.Signal {
	switch sig := cfg.GetStopSignal(); sig {
	case runtimeapi.Signal_RUNTIME_DEFAULT:
		return unix.SIGTERM
	default:
		if n, ok := signalNumber(sig.String()); ok {
			return n
		}
		return unix.SIGTERM
	}
}

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
)

// Remove ends a container if it runs and removes everything of it but its log.
// Idempotent: what is gone is success, and a call after a failed or interrupted
// one goes on where that ended.
func (s *Store) Remove(ctx context.Context, id string) error {
	c, err := s.get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	c.mu.Lock()
	removed := c.removed
	c.mu.Unlock()
	if removed {
		return nil
	}
	// An end that is on record lets nobody else find one and write to it.
	if err := s.Stop(ctx, c.id, 0); err != nil {
		return fmt.Errorf("removing container %s: %w", c.id, err)
	}
	if err := s.teardown(ctx, c); err != nil {
		return err
	}
	s.event(Deleted, c)
	return nil
}

// teardown removes any prefix of a container. The record goes last: until then
// the next try knows what there may be. Every step is tried; whoever holds op
// calls it.
func (s *Store) teardown(ctx context.Context, c *container) error {
	rec, _ := c.snapshot()
	// The monitor first: one that has not yet created its container must not do so behind our back.
	failpoint.Hit("cri/container/kill-monitor")
	if err := rec.Monitor.KillAll(); err != nil && !errors.Is(err, monitor.ErrGone) {
		return fmt.Errorf("removing container %s: its monitor: %w", c.id, err)
	}
	if err := waitGone(rec.Monitor, 5*time.Second); err != nil {
		return fmt.Errorf("removing container %s: its monitor does not end: %w", c.id, err)
	}
	s.endAll(c)
	if err := waitGone(rec.Init, killPatience); err != nil {
		return fmt.Errorf("removing container %s: it does not end: %w", c.id, err)
	}
	var errs []error
	if rec.Monitor.PID != 0 { // else the runtime was never called
		errs = append(errs, s.deleteByRuntime(ctx, c, rec))
	}
	if rec.CgroupsPath != "" {
		errs = append(errs, removeCgroup(s.cfg.Host, rec.CgroupsPath))
	}
	errs = append(errs, s.cfg.Monitor.RemoveExit(c.id), s.unstage(ctx, c.id), s.unmount(ctx, c.id))
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("removing container %s: %w", c.id, err)
	}
	c.setRemoved(true)
	if err := s.records.Remove(c.id); err != nil {
		c.setRemoved(false)
		return err
	}
	s.names.Release(c.id)
	s.mu.Lock()
	s.containers.drop(c)
	s.mu.Unlock()
	return nil
}

// setRemoved bars updates, which would write the record anew.
func (c *container) setRemoved(v bool) {
	c.mu.Lock()
	c.removed = v
	c.mu.Unlock()
}

// unmount takes the root filesystem away, and makes sure of it: what follows
// removes the directory with all that is in it.
func (s *Store) unmount(ctx context.Context, id string) error {
	rootfs := s.rootfs(id)
	failpoint.Hit("cri/container/unmount-rootfs")
	if err := s.cfg.Rootfs.UnmountRootfs(ctx, id, rootfs); err != nil {
		return fmt.Errorf("unmounting the root filesystem: %w", err)
	}
	failpoint.Hit("cri/container/unmount-rootfs-done")
	var st unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, rootfs, unix.AT_SYMLINK_NOFOLLOW, 0, &st)
	if err == nil && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("%s is still a mount: %w", rootfs, errdefs.ErrFailedPrecondition)
	}
	return nil
}

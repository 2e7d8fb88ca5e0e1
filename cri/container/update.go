package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateResources changes a container's limits. Fields that are zero keep their
// value. The runtime is told first and the record written after it: cut short
// between the two, the caller finds the old values and asks again.
func (s *Store) UpdateResources(ctx context.Context, id string, want *runtimeapi.LinuxContainerResources) error {
	c, err := s.complete(id)
	if err != nil {
		return err
	}
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec, cfg := c.snapshot()
	if rec.Exit != nil {
		return fmt.Errorf("container %s has exited: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	limits, err := ocispec.Resources(want, s.cfg.Host)
	if err != nil {
		return kinded(err)
	}
	failpoint.Hit("cri/container/update-resources")
	if err := s.runtime(rec).Update(ctx, c.id, limits.Spec); err != nil {
		return err
	}
	next := proto.CloneOf(cfg)
	if next.Linux == nil {
		next.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if next.Linux.Resources == nil {
		next.Linux.Resources = &runtimeapi.LinuxContainerResources{}
	}
	mergeResources(next.Linux.Resources, want)
	failpoint.Hit("cri/container/update-resources-done")
	raw, err := proto.Marshal(next)
	if err != nil {
		return err
	}
	_, err = s.update(c, func(r *Record) bool {
		r.Config = raw
		c.config = next // under the same lock
		return true
	})
	return err
}

// mergeResources sets what want sets. proto.Merge would add lists up.
func mergeResources(have, want *runtimeapi.LinuxContainerResources) {
	hugepages, score := want.GetHugepageLimits(), have.OomScoreAdj
	if len(hugepages) > 0 {
		have.HugepageLimits = nil
	}
	proto.Merge(have, want)
	have.OomScoreAdj = score // a running process keeps its own
}

// ReopenLog makes the monitor open the log path anew; on a container that has
// exited there is nothing to reopen.
func (s *Store) ReopenLog(id string) error {
	c, err := s.complete(id)
	if err != nil {
		return err
	}
	rec, _ := c.snapshot()
	if rec.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is not running: its log is closed: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if rec.LogPath == "" {
		return nil // nothing is kept
	}
	before, _ := os.Lstat(rec.LogPath) // nil once it was renamed
	err = monitor.ReopenLog(s.bundle(c.id))
	if errors.Is(err, monitor.ErrGone) {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	if err != nil {
		return err
	}
	return s.reopened(c, rec.LogPath, before)
}

// reopenTimeout is how long a monitor may take to open a log anew.
const reopenTimeout = 10 * time.Second

// reopened waits until path is another file than before: whoever asked may look
// at it, and takes the old one to be complete.
func (s *Store) reopened(c *container, path string, before os.FileInfo) error {
	wait := time.Millisecond
	for end := time.Now().Add(reopenTimeout); ; wait = min(2*wait, 100*time.Millisecond) {
		now, err := os.Lstat(path)
		if err == nil && (before == nil || !os.SameFile(before, now)) {
			return nil
		}
		if rec, _ := c.snapshot(); rec.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
			return fmt.Errorf("container %s has exited: its log is closed: %w", c.id, errdefs.ErrFailedPrecondition)
		}
		if time.Now().After(end) {
			return fmt.Errorf("the monitor (conmon) has not opened the log %s anew within %s: %w", path, reopenTimeout, context.DeadlineExceeded)
		}
		time.Sleep(wait)
	}
}

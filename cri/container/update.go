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
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// UpdateResources changes a container's limits. Fields that are zero keep their
// value; a negative limit of memory takes it away. The score by which the kernel
// chooses what to kill stays: a running process keeps its own.
//
// The runtime is told first and the record written after it: cut short between
// the two, the caller finds the old values and asks again.
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
	if rec.Exit != nil || rec.StartFailure != "" {
		return fmt.Errorf("container %s does not run, nothing can be limited: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	next := proto.CloneOf(cfg)
	if next.Linux == nil {
		next.Linux = &runtimeapi.LinuxContainerConfig{}
	}
	if next.Linux.Resources, err = mergeResources(cfg.GetLinux().GetResources(), want); err != nil {
		return fmt.Errorf("container %s: %w", c.id, err)
	}
	if err := s.apply(ctx, c, rec, want, next.Linux.Resources); err != nil {
		return err
	}
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

// apply sets what want asks for, which leads to merged. What the kernel takes in
// pairs (memory with swap, a quota with its period) is set in pairs.
func (s *Store) apply(ctx context.Context, c *container, rec Record, want, merged *runtimeapi.LinuxContainerResources) error {
	if len(want.GetUnified()) > 0 && !s.cfg.Host.CgroupV2 {
		return fmt.Errorf("container %s: unified parameters are of cgroup v2, this host uses v1: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	set := proto.CloneOf(want)
	if set.MemoryLimitInBytes != 0 || set.MemorySwapLimitInBytes != 0 {
		set.MemoryLimitInBytes, set.MemorySwapLimitInBytes = merged.MemoryLimitInBytes, merged.MemorySwapLimitInBytes
	}
	if set.CpuQuota != 0 || set.CpuPeriod != 0 {
		set.CpuQuota, set.CpuPeriod = merged.CpuQuota, merged.CpuPeriod
	}
	limits, err := ocispec.Resources(set, s.cfg.Host)
	if err != nil {
		return kinded(err)
	}
	if want.MemoryLimitInBytes < 0 {
		none := int64(-1)
		limits.Spec.Memory = &specs.LinuxMemory{Limit: &none}
		if s.cfg.Host.SwapAccounting {
			limits.Spec.Memory.Swap = &none
		}
	}
	huge := limits.Spec.HugepageLimits
	limits.Spec.HugepageLimits = nil // runc's update passes over them
	failpoint.Hit("cri/container/update-resources")
	if err := s.runtime(rec).Update(ctx, c.id, limits.Spec); err != nil {
		return err
	}
	return limitHugePages(s.cfg.Host, rec.CgroupsPath, huge)
}

// mergeResources is have with what want sets. proto.Merge would add lists up.
func mergeResources(have, want *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	out := &runtimeapi.LinuxContainerResources{}
	if have != nil {
		out = proto.CloneOf(have)
	}
	if len(want.GetHugepageLimits()) > 0 {
		out.HugepageLimits = nil
	}
	proto.Merge(out, want)
	out.OomScoreAdj = have.GetOomScoreAdj()
	switch {
	case want.GetMemoryLimitInBytes() < 0:
		out.MemoryLimitInBytes, out.MemorySwapLimitInBytes = 0, 0
	case want.GetMemoryLimitInBytes() > 0 && want.GetMemorySwapLimitInBytes() == 0 && out.MemorySwapLimitInBytes > 0:
		// Both together were limited: what swap alone may take stays as it was.
		out.MemorySwapLimitInBytes += out.MemoryLimitInBytes - have.GetMemoryLimitInBytes()
	}
	if both := out.MemorySwapLimitInBytes; both > 0 && (out.MemoryLimitInBytes == 0 || both < out.MemoryLimitInBytes) {
		return nil, fmt.Errorf("the limit of %d bytes on memory and swap together is below the one of %d on memory alone, or there is none: %w",
			both, out.MemoryLimitInBytes, errdefs.ErrInvalidArgument)
	}
	return out, nil
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
	if err := checkLog(rec.LogPath); err != nil {
		return err
	}
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

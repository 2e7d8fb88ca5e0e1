package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkpointTime is how long a checkpoint may take if the request does not say.
const checkpointTime = 2 * time.Minute

// Checkpoint writes the state of a running container, which runs on, as an
// archive to location: an absolute path, whose directory exists. A file of that
// name is replaced, never followed. timeout 0 is two minutes. Nothing of a
// checkpoint that fails stays. The error is an errdefs.ErrNotImplemented where
// CRIU, or a runtime that can use it, is missing.
//
// Restoring is not offered: the archive of one node would say to another what a
// container's process is and holds, and no check of it can make that safe.
func (s *Store) Checkpoint(ctx context.Context, id, location string, timeout time.Duration) error {
	if !filepath.IsAbs(location) || filepath.Clean(location) != location {
		return fmt.Errorf("a checkpoint's location must be an absolute path, without dots and doubled slashes, not %q: %w", location, errdefs.ErrInvalidArgument)
	}
	c, err := s.complete(id)
	if err != nil {
		return err
	}
	if timeout <= 0 {
		timeout = checkpointTime
	}
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	if err := c.lock(ctx); err != nil {
		return err
	}
	defer c.unlock()
	rec, _ := c.snapshot()
	if rec.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if err := s.runtime(rec).CanCheckpoint(ctx); errors.Is(err, ociruntime.ErrNoCheckpoint) {
		return fmt.Errorf("%w: %w", errdefs.ErrNotImplemented, err)
	} else if err != nil {
		return err
	}
	dir, err := os.OpenRoot(filepath.Dir(location))
	if err != nil {
		return fmt.Errorf("the directory of a checkpoint: %w", err)
	}
	defer dir.Close()
	if err := s.checkpoint(ctx, c, dir, filepath.Base(location)); err != nil {
		return fmt.Errorf("checkpoint of container %s: %w", c.id, err)
	}
	return nil
}

// checkpoint makes the archive name in dir, by way of a directory beside it: a
// container's memory may be larger than ours.
func (s *Store) checkpoint(ctx context.Context, c *container, dir *os.Root, name string) (err error) {
	temporary := ".checkpoint-" + record.NewID()[:16]
	failpoint.Hit("cri/container/checkpoint-mkdir")
	if err := dir.Mkdir(temporary, 0o700); err != nil {
		return err
	}
	defer func() {
		failpoint.Hit("cri/container/checkpoint-clean")
		err = errors.Join(err, dir.RemoveAll(temporary))
	}()
	work, err := dir.OpenRoot(temporary)
	if err != nil {
		return err
	}
	defer work.Close()
	if err := work.Mkdir("images", 0o700); err != nil {
		return err
	}
	path := filepath.Join(dir.Name(), temporary)
	rec, _ := c.snapshot()
	if err := s.runtime(rec).Checkpoint(ctx, c.id, filepath.Join(path, "images"), path); err != nil {
		return err
	}
	f, err := work.OpenFile("archive", os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	err = s.writeCheckpoint(ctx, c, work, f)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	failpoint.Hit("cri/container/checkpoint-rename")
	return dir.Rename(filepath.Join(temporary, "archive"), name)
}

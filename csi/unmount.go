package csi

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berthd/berth/csi/local"
	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
)

// Unmount takes down all volumes of the pod, whatever state they are in: every
// mount below the pod's directory goes first, then the directories of volumes,
// by a walk that enters neither mounts nor links. It is idempotent, and success
// for a pod that never had any. The pod's other files stay.
func (v *Volumes) Unmount(ctx context.Context, uid string) error {
	return v.takeDown(ctx, uid, "volume-subpaths", "volumes", "plugins")
}

// Remove does what Unmount does and removes the pod's whole directory with the
// same care (hosts file, termination messages): the last step of a pod's life.
func (v *Volumes) Remove(ctx context.Context, uid string) error {
	return v.takeDown(ctx, uid, "")
}

// takeDown unmounts all and removes the given directories of the pod, in order;
// "" is the pod's own.
func (v *Volumes) takeDown(ctx context.Context, uid string, dirs ...string) error {
	dir, err := v.dir(uid, volume.OpTearDown)
	if err != nil {
		return err
	}
	return v.alone(ctx, uid, volume.OpTearDown, func() error {
		// From here on the volumes are not complete, and nobody may take them for it.
		v.forget(uid)
		if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err := v.uncover(dir); err != nil {
			return err
		}
		if err := eraseRecord(dir); err != nil {
			return err
		}
		if err := v.unmountAll(dir); err != nil {
			return err
		}
		for _, one := range dirs {
			if err := mount.RemoveTree(ctx, filepath.Join(dir, one)); err != nil {
				return err
			}
		}
		failpoint.Hit("csi/pod-rmdir")
		// Fails while somebody else's files are in it, which is as it should be.
		_ = os.Remove(dir)
		return nil
	})
}

// uncover takes off what somebody mounted over the pod's directory itself: not
// even the record may be looked for in there.
func (v *Volumes) uncover(dir string) error {
	for range 8 {
		covered, err := v.cfg.Mounter.Mounted(dir)
		if err != nil || !covered {
			return err
		}
		if err := v.cfg.Mounter.Unmount(dir); err != nil {
			return err
		}
	}
	return errors.New("mounts keep coming back on " + dir + "; find who makes them")
}

// unmountAll unmounts until nothing is mounted at or below dir. Stacked and
// propagated mounts may come to light only when others are gone, so it looks
// again, a bounded number of times; every path is tried even if one fails.
func (v *Volumes) unmountAll(dir string) error {
	var failed error
	for range 8 {
		paths, err := v.cfg.Mounter.Below(dir)
		if err != nil {
			return err
		}
		if len(paths) == 0 {
			return nil
		}
		failed = nil
		for _, path := range paths {
			if err := v.cfg.Mounter.Unmount(path); err != nil && failed == nil {
				failed = err
			}
		}
	}
	if failed == nil {
		failed = errors.New("mounts keep coming back below " + dir + "; find who makes them")
	}
	return failed
}

// classified gives every error of this package its code; those that have one keep
// their volume's name too.
func classified(op string, err error) error {
	if err == nil {
		return nil
	}
	var many volume.Errors
	var one *volume.Error
	if errors.As(err, &many) || errors.As(err, &one) {
		return err
	}
	return local.Classify(op, "", err)
}

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Kernel mounts in the mount namespace of this process.
type Kernel struct{}

// Bind mounts what source, an open file or directory (O_PATH suffices), stands
// for on target, which exists and is of the same sort. It is not idempotent: a
// second bind is stacked on the first.
func (Kernel) Bind(source *os.File, target string) error {
	failpoint.Hit("csi/mount/bind")
	err := unix.Mount(fmt.Sprintf("/proc/self/fd/%d", source.Fd()), target, "", unix.MS_BIND, "")
	failpoint.Hit("csi/mount/bind-done")
	if err != nil {
		return fmt.Errorf("bind %s on %s: %w", source.Name(), target, err)
	}
	return nil
}

// Mounted says whether target is a mount point; a target that does not exist is not.
func (Kernel) Mounted(target string) (bool, error) {
	mounted, err := mountinfo.Mounted(target)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("ask whether %s is a mount point: %w", target, err)
	}
	return mounted, nil
}

// Below returns the mount points at and below dir in the order in which they are
// to be unmounted: the last made first. A path stands there once for each mount
// stacked on it. dir must be free of symbolic links.
func (Kernel) Below(dir string) ([]string, error) {
	found, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.Mountpoint != dir && !strings.HasPrefix(m.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("list the mounts below %s: %w", dir, err)
	}
	paths := make([]string, 0, len(found))
	for i := len(found) - 1; i >= 0; i-- {
		paths = append(paths, found[i].Mountpoint)
	}
	return paths, nil
}

// Unmount takes the topmost mount off target, lazily if it is in use. It follows
// no symbolic link on the way; a target that is gone or no mount point is done.
func (Kernel) Unmount(target string) error {
	dir, err := openat2(unix.AT_FDCWD, filepath.Dir(target), unix.O_PATH|unix.O_DIRECTORY, unix.RESOLVE_NO_SYMLINKS)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s: open its directory: %w", target, err)
	}
	defer dir.Close()
	path := fmt.Sprintf("/proc/self/fd/%d/%s", dir.Fd(), filepath.Base(target))
	failpoint.Hit("csi/mount/unmount")
	err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW)
	if errors.Is(err, unix.EBUSY) {
		err = unix.Unmount(path, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
	}
	failpoint.Hit("csi/mount/unmount-done")
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", target, err)
	}
	return nil
}

// Share makes the mount that holds dir pass on what is mounted in it, so that
// volumes mounted later are seen in mount namespaces made before. Where that
// mount is private, dir is first bound on itself. Idempotent; dir must exist and
// be free of symbolic links.
func (k Kernel) Share(dir string) error {
	holding, err := holder(dir)
	if err != nil {
		return err
	}
	if strings.Contains(holding.Optional, "shared:") {
		return nil
	}
	if holding.Mountpoint != dir {
		failpoint.Hit("csi/mount/share-bind")
		if err := unix.Mount(dir, dir, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("bind %s on itself: %w", dir, err)
		}
	}
	failpoint.Hit("csi/mount/share")
	if err := unix.Mount("", dir, "", unix.MS_SHARED|unix.MS_REC, ""); err != nil {
		return fmt.Errorf("make the mount %s shared: %w", dir, err)
	}
	return nil
}

// holder returns the mount that dir lies in: the longest mount point above it,
// of several stacked there the last.
func holder(dir string) (*mountinfo.Info, error) {
	above, err := mountinfo.GetMounts(mountinfo.ParentsFilter(dir))
	if err != nil {
		return nil, fmt.Errorf("list the mounts above %s: %w", dir, err)
	}
	var best *mountinfo.Info
	for _, m := range above {
		if best == nil || len(m.Mountpoint) >= len(best.Mountpoint) {
			best = m
		}
	}
	if best == nil {
		return nil, fmt.Errorf("no mount holds %s", dir)
	}
	return best, nil
}

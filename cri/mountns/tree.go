package mountns

import (
	"errors"
	"fmt"
	"os"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Tree is a copy of mounts that is attached nowhere: it ends with its file,
// unless it has been attached. Between a clone and its attachment a kill leaves
// nothing behind.
//
//	CloneTree ─▶ detached ─MapIDs, Restrict─▶ detached ─Attach─▶ a mount like any other
//	                 └────────── Close, or the agent's end ─────▶ (none)
type Tree struct{ file *os.File }

// CloneTree copies the mount that path lies on, beginning at path; recursive
// takes the mounts below along.
func CloneTree(path string, recursive bool) (*Tree, error) {
	return cloneTree(unix.AT_FDCWD, path, 0, recursive)
}

// CloneTreeOf is CloneTree of what f, which may be opened with O_PATH, stands for.
func CloneTreeOf(f *os.File, recursive bool) (*Tree, error) {
	return cloneTree(int(f.Fd()), "", unix.AT_EMPTY_PATH, recursive)
}

func cloneTree(dir int, path string, flags uint, recursive bool) (*Tree, error) {
	flags |= unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC
	if recursive {
		flags |= unix.AT_RECURSIVE
	}
	failpoint.Hit("cri/mountns/tree-clone")
	fd, err := unix.OpenTree(dir, path, flags)
	if err != nil {
		return nil, fmt.Errorf("copying the mount of %q (open_tree, Linux 5.2 or newer is needed): %w", path, err)
	}
	return &Tree{os.NewFile(uintptr(fd), "mount")}, nil
}

// MapIDs makes the owners of files in the tree's topmost mount appear through
// the mapping of the user namespace userns. The error is an
// errdefs.ErrFailedPrecondition where the kernel or the mount's file system
// cannot do that.
func (t *Tree) MapIDs(userns *os.File) error {
	failpoint.Hit("cri/mountns/tree-map")
	err := unix.MountSetattr(int(t.file.Fd()), "", unix.AT_EMPTY_PATH, &unix.MountAttr{
		Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(userns.Fd()),
	})
	switch {
	case errors.Is(err, unix.EINVAL):
		return fmt.Errorf("its file system does not support idmapped mounts: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.EPERM):
		return fmt.Errorf("it is an idmapped mount already, which cannot be mapped once more: %w", errdefs.ErrFailedPrecondition)
	case errors.Is(err, unix.ENOSYS):
		return fmt.Errorf("this kernel has no idmapped mounts, Linux 5.19 or newer is needed: %w", errdefs.ErrFailedPrecondition)
	case err != nil:
		return fmt.Errorf("mapping the owners of a mount: %w", err)
	}
	return nil
}

// Restrict sets MOUNT_ATTR_* attributes, and takes the whole tree out of its
// peers' propagation if private.
func (t *Tree) Restrict(attributes uint64, private bool) error {
	attr := &unix.MountAttr{Attr_set: attributes}
	if private {
		attr.Propagation = unix.MS_PRIVATE
	}
	failpoint.Hit("cri/mountns/tree-restrict")
	if err := unix.MountSetattr(int(t.file.Fd()), "", unix.AT_EMPTY_PATH|unix.AT_RECURSIVE, attr); err != nil {
		return fmt.Errorf("restricting a mount (mount_setattr, Linux 5.12 or newer is needed): %w", err)
	}
	return nil
}

// Attach makes the tree visible at target, which exists and is of the same kind
// (a directory, or not). The tree stays the caller's to close.
func (t *Tree) Attach(target string) error {
	failpoint.Hit("cri/mountns/tree-attach")
	if err := unix.MoveMount(int(t.file.Fd()), "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("attaching a mount at %s: %w", target, err)
	}
	failpoint.Hit("cri/mountns/tree-attach-done")
	return nil
}

// Close lets go of the tree; where it was attached it stays mounted.
func (t *Tree) Close() {
	if t != nil {
		t.file.Close()
	}
}

// UnmountAll unmounts whatever is mounted at path itself, in this process's
// mount namespace. A path that is no mount point or is gone is success.
func UnmountAll(path string) error { return unmountAll(path) }

package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// maxDepth bounds the file descriptors a removal holds. Directories nested
// deeper are first moved up: a container can nest them without limit.
const maxDepth = 48

// RemoveTree removes path and everything below it. It never enters a mount point
// and never follows a symbolic link: either is left as it is, with an error for
// the mount (a link itself is removed, its target is not). A path that is gone
// is done; what could not be removed is reported, after everything else is gone.
func RemoveTree(ctx context.Context, path string) error {
	parent, err := openat2(unix.AT_FDCWD, filepath.Dir(path), unix.O_PATH|unix.O_DIRECTORY, 0)
	if errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("remove %s: open its directory: %w", path, err)
	}
	defer parent.Close()
	failpoint.Hit("csi/mount/remove-tree")
	r := &removal{ctx: ctx}
	if err := r.remove(parent, filepath.Base(path), filepath.Dir(path), 0); err != nil {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	failpoint.Hit("csi/mount/remove-tree-done")
	return nil
}

// removal is one RemoveTree. ctx lives exactly as long as that call.
type removal struct {
	ctx   context.Context
	top   *os.File // the first directory entered: deep ones are moved into it
	moved int
}

// remove removes the entry name of the directory parent. where is parent's path,
// for errors only.
func (r *removal) remove(parent *os.File, name, where string, depth int) error {
	if err := r.ctx.Err(); err != nil {
		return err
	}
	path := filepath.Join(where, name)
	failpoint.Hit("csi/mount/remove-entry")
	err := unix.Unlinkat(int(parent.Fd()), name, 0)
	switch {
	case err == nil || errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%s is a mount point; it is left alone, unmount it: %w", path, err)
	case !errors.Is(err, unix.EISDIR):
		return fmt.Errorf("%s: %w", path, err)
	}
	if depth > maxDepth {
		return r.moveUp(parent, name, path)
	}
	dir, err := openat2(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.ENOENT):
		return nil
	case errors.Is(err, unix.EXDEV):
		return fmt.Errorf("%s is a mount point; it is left alone, unmount it: %w", path, err)
	case err != nil:
		return fmt.Errorf("open %s: %w", path, err)
	}
	defer dir.Close()
	if r.top == nil {
		r.top = dir
	}
	if err := r.empty(dir, path, depth); err != nil {
		return err
	}
	err = unix.Unlinkat(int(parent.Fd()), name, unix.AT_REMOVEDIR)
	if err != nil && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("%s: %w", path, err)
	}
	return nil
}

// empty removes the entries of dir, pass after pass: entries may be added
// meanwhile (deep directories moved up), and reading on after removals may miss
// some. It ends when a pass finds nothing, or gets rid of nothing.
func (r *removal) empty(dir *os.File, path string, depth int) error {
	for {
		if _, err := dir.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("rewind %s: %w", path, err)
		}
		removed := 0
		var failed error
		for {
			names, err := dir.Readdirnames(256)
			for _, name := range names {
				err := r.remove(dir, name, path, depth+1)
				if err == nil {
					removed++
				} else if failed == nil {
					failed = err // one is enough to tell: there may be a million
				}
			}
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return fmt.Errorf("read %s: %w", path, err)
			}
		}
		if removed == 0 || r.ctx.Err() != nil {
			return failed
		}
	}
}

func (r *removal) moveUp(parent *os.File, name, path string) error {
	for {
		r.moved++
		to := fmt.Sprintf(".berth-deep-%d", r.moved)
		failpoint.Hit("csi/mount/move-up")
		err := unix.Renameat2(int(parent.Fd()), name, int(r.top.Fd()), to, unix.RENAME_NOREPLACE)
		if errors.Is(err, unix.EEXIST) {
			continue
		}
		if errors.Is(err, unix.EBUSY) {
			return fmt.Errorf("%s is a mount point; it is left alone, unmount it: %w", path, err)
		}
		if err != nil && !errors.Is(err, unix.ENOENT) {
			return fmt.Errorf("move %s up: %w", path, err)
		}
		return nil
	}
}

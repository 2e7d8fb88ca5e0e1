package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// SubPath resolves the relative path sub inside the volume at dir and binds what
// it finds on target, whose path it makes. Missing directories are made with the
// volume's own mode. Containers may be rearranging the volume all the while:
// every step goes from a file descriptor to what lies beneath it, and the thing
// that was checked is the thing that is mounted.
//
// It is idempotent: a target that already shows the same file stays; one that
// shows an older file (a refreshed ConfigMap) is bound anew.
func SubPath(m Mounter, dir, sub, target string) error {
	if err := checkSubPath(sub); err != nil {
		return err
	}
	fd, err := unix.Open(dir, unix.O_PATH|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: dir, Err: err}
	}
	root := os.NewFile(uintptr(fd), dir)
	defer root.Close()
	source, err := descend(root, sub)
	if err != nil {
		return err
	}
	defer source.Close()
	st, err := source.Stat()
	if err != nil {
		return err
	}
	if done, err := shown(m, st, target); done || err != nil {
		return err
	}
	if err := makeTarget(target, st.IsDir()); err != nil {
		return err
	}
	return m.Bind(source, target)
}

func checkSubPath(sub string) error {
	if sub == "" || path.IsAbs(sub) {
		return refuse("subPath %q must be a relative path", sub)
	}
	for _, element := range strings.Split(sub, "/") {
		if element == ".." {
			return refuse("subPath %q must not contain '..'", sub)
		}
	}
	return nil
}

// descend opens sub beneath root, making the directories that are missing.
func descend(root *os.File, sub string) (*os.File, error) {
	clean := path.Clean(sub)
	source, err := mount.OpenBeneath(root, clean)
	if err == nil || !errors.Is(err, unix.ENOENT) {
		return source, beneath(root, sub, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return nil, err
	}
	at := "."
	for _, element := range strings.Split(clean, "/") {
		if err := makeDir(root, at, element, st.Mode&0o7777); err != nil {
			return nil, beneath(root, sub, err)
		}
		at = path.Join(at, element)
	}
	source, err = mount.OpenBeneath(root, clean)
	return source, beneath(root, sub, err)
}

// makeDir makes the directory at/name beneath root unless something is there.
func makeDir(root *os.File, at, name string, mode uint32) error {
	parent, err := mount.OpenBeneath(root, at)
	if err != nil {
		return err
	}
	defer parent.Close()
	failpoint.Hit("csi/local/subpath-mkdir")
	err = unix.Mkdirat(int(parent.Fd()), name, 0o750)
	if errors.Is(err, unix.EEXIST) {
		return nil
	}
	if err != nil {
		return err
	}
	fd, err := unix.Openat(int(parent.Fd()), name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	return unix.Fchmod(fd, mode)
}

// beneath says what an answer of the kernel means for a person.
func beneath(root *os.File, sub string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EXDEV), errors.Is(err, unix.ELOOP):
		return refuse("subpath %q not within volume path %q: a symbolic link in it leads out of the volume", sub, root.Name())
	case errors.Is(err, unix.ENOTDIR):
		return refuse("subPath %q leads through something in %s that is not a directory", sub, root.Name())
	case errors.Is(err, unix.ENOENT):
		return &volume.Error{Code: volume.NotFound, Err: fmt.Errorf("subPath %q does not exist in %s and cannot be made: a link in it points nowhere", sub, root.Name())}
	}
	return fmt.Errorf("open subPath %q in %s: %w", sub, root.Name(), err)
}

// shown says whether target is a mount of the very file st describes. A mount of
// anything else is taken off first.
func shown(m Mounter, st fs.FileInfo, target string) (bool, error) {
	mounted, err := m.Mounted(target)
	if err != nil || !mounted {
		return false, err
	}
	have, err := os.Lstat(target)
	if err == nil && os.SameFile(st, have) {
		return true, nil
	}
	return false, m.Unmount(target)
}

// makeTarget makes target a directory or a file, as the source is. What is there
// of the other sort is an empty remainder of an earlier bind.
func makeTarget(target string, directory bool) error {
	failpoint.Hit("csi/local/subpath-target")
	if err := os.MkdirAll(filepath.Dir(target), 0o750); err != nil {
		return err
	}
	if st, err := os.Lstat(target); err == nil && st.IsDir() != directory {
		if err := os.Remove(target); err != nil {
			return err
		}
	}
	if directory {
		err := os.Mkdir(target, 0o750)
		if errors.Is(err, fs.ErrExist) {
			return nil
		}
		return err
	}
	f, err := os.OpenFile(target, os.O_CREATE|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	return f.Close()
}

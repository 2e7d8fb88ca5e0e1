package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// openLog makes the log file at path below dir, without following a symbolic
// link below dir, and returns its absolute path; "" if no log is wanted.
func openLog(dir, path string) (string, error) {
	if dir == "" || path == "" {
		return "", nil
	}
	if !filepath.IsAbs(dir) || !filepath.IsLocal(path) {
		return "", fmt.Errorf("log path %q does not lie below the log directory %q: %w", path, dir, errdefs.ErrInvalidArgument)
	}
	failpoint.Hit("cri/container/open-log")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("making the log directory: %w", err)
	}
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening log directory %s: %w", dir, err)
	}
	defer func() { unix.Close(at) }()
	how := unix.OpenHow{Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_MAGICLINKS}
	file := filepath.Clean(path)
	for parent := filepath.Dir(file); parent != "."; parent = "." {
		if err := mkdirBelow(at, parent, how); err != nil {
			return "", fmt.Errorf("making directory %s below %s: %w", parent, dir, err)
		}
	}
	how.Flags, how.Mode = unix.O_WRONLY|unix.O_APPEND|unix.O_CREAT|unix.O_CLOEXEC|unix.O_NONBLOCK, 0o640
	fd, err := unix.Openat2(at, file, &how)
	if err != nil {
		return "", fmt.Errorf("opening log file %s below %s (a symbolic link is not followed): %w", path, dir, err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFREG {
		return "", fmt.Errorf("log file %s below %s is not a regular file: %w", path, dir, errdefs.ErrFailedPrecondition)
	}
	return filepath.Join(dir, file), nil
}

// mkdirBelow makes path, part by part, below the directory at.
func mkdirBelow(at int, path string, how unix.OpenHow) error {
	how.Flags, how.Mode = unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0
	if parent := filepath.Dir(path); parent != "." {
		if err := mkdirBelow(at, parent, how); err != nil {
			return err
		}
		fd, err := unix.Openat2(at, parent, &how)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		at = fd
	}
	failpoint.Hit("cri/container/log-mkdir")
	if err := unix.Mkdirat(at, filepath.Base(path), 0o755); err != nil && !errors.Is(err, unix.EEXIST) {
		return err
	}
	fd, err := unix.Openat2(at, filepath.Base(path), &how)
	if err != nil {
		return err
	}
	return unix.Close(fd)
}

// checkLog refuses to have the monitor open path anew where something other than a
// file has come: it would follow a link, and wait for a FIFO (CVE-2026-53489). A
// file that is gone is made anew.
func checkLog(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, os.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("looking at the log: %w", err)
	case !st.Mode().IsRegular():
		return fmt.Errorf("the log %s is not a file (%s): remove what was put there: %w", path, st.Mode().Type(), errdefs.ErrFailedPrecondition)
	}
	return nil
}

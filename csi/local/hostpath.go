package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

// checkHostPath makes what the type asks to be made and checks the rest, in the
// kubelet's words. Links are followed: the path is the word of whoever may write
// manifests, and is the host's own.
func checkHostPath(s *v1.HostPathVolumeSource) error {
	if !strings.HasPrefix(s.Path, "/") {
		return refuse("hostPath %q must be an absolute path", s.Path)
	}
	if slices.Contains(strings.Split(s.Path, "/"), "..") {
		return refuse("invalid HostPath `%s`: must not contain '..'", s.Path)
	}
	if s.Type == nil || *s.Type == v1.HostPathUnset {
		return nil
	}
	st, err := os.Stat(s.Path)
	if err != nil {
		// ENOTDIR: a file where the path has a directory. What the type wants is not there either way.
		if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
			return err
		}
		st = nil
	}
	switch *s.Type {
	case v1.HostPathDirectoryOrCreate:
		if st == nil {
			return makeDirs(s.Path)
		}
		return expect(s.Path, "a directory", st.IsDir())
	case v1.HostPathDirectory:
		return expect(s.Path, "a directory", st != nil && st.IsDir())
	case v1.HostPathFileOrCreate:
		if st == nil {
			return createFile(s.Path)
		}
		return expect(s.Path, "a file", !st.IsDir())
	case v1.HostPathFile:
		return expect(s.Path, "a file", st != nil && !st.IsDir())
	case v1.HostPathSocket:
		return expect(s.Path, "a socket file", st != nil && st.Mode().Type() == fs.ModeSocket)
	case v1.HostPathCharDev:
		return expect(s.Path, "a character device", st != nil && st.Mode().Type() == fs.ModeDevice|fs.ModeCharDevice)
	case v1.HostPathBlockDev:
		return expect(s.Path, "a block device", st != nil && st.Mode().Type() == fs.ModeDevice)
	}
	return refuse("%s is an invalid volume type", *s.Type)
}

// makeDirs makes path and what is missing above it, 0755 whatever the umask.
func makeDirs(path string) error {
	failpoint.Hit("csi/local/hostpath-mkdir")
	if err := os.Mkdir(path, 0o755); !errors.Is(err, fs.ErrNotExist) {
		switch {
		case err == nil:
			return chmod(path, 0o755)
		case errors.Is(err, fs.ErrExist):
			if st, err := os.Stat(path); err == nil && st.IsDir() {
				return nil // made by somebody else meanwhile
			}
		}
		return err
	}
	parent := filepath.Dir(path)
	if parent == path {
		return &fs.PathError{Op: "mkdir", Path: path, Err: fs.ErrNotExist}
	}
	if err := makeDirs(parent); err != nil {
		return err
	}
	return makeDirs(path)
}

func createFile(path string) error {
	failpoint.Hit("csi/local/hostpath-create")
	f, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL, 0o644)
	if errors.Is(err, fs.ErrExist) {
		// Made meanwhile, or a link to nowhere: then its target is made.
		f, err = os.OpenFile(path, os.O_CREATE, 0o644)
		if err != nil {
			return err
		}
		return f.Close()
	}
	if errors.Is(err, fs.ErrNotExist) {
		return &volume.Error{Code: volume.NotFound, Err: fmt.Errorf("%w; type FileOrCreate makes the file only, its directory must exist", err)}
	}
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o644), f.Close())
}

// expect fails with NotFound: the host may still change, the pod need not.
func expect(path, what string, is bool) error {
	if is {
		return nil
	}
	return &volume.Error{Code: volume.NotFound, Err: fmt.Errorf("hostPath type check failed: %s is not %s", path, what)}
}

func refuse(format string, args ...any) error {
	return &volume.Error{Code: volume.Invalid, Err: fmt.Errorf(format, args...)}
}

package local

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"

	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
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
		return refuse("hostPath %q must not contain '..'", s.Path)
	}
	if s.Type == nil || *s.Type == v1.HostPathUnset {
		return nil
	}
	st, err := os.Stat(s.Path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err != nil {
		st = nil
	}
	switch *s.Type {
	case v1.HostPathDirectoryOrCreate:
		if st == nil {
			failpoint.Hit("csi/local/hostpath-mkdir")
			return os.MkdirAll(s.Path, 0o755)
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

func createFile(path string) error {
	failpoint.Hit("csi/local/hostpath-create")
	f, err := os.OpenFile(path, os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	return f.Close()
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

package local

import (
	"fmt"
	"github.com/berthd/berth/test/failpoint"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"
)

// access is what the pod's fsGroup may do in a volume.
type access uint32

const (
	readOnly  access = 0o440
	readWrite access = 0o660
)

// own gives dir its mode and, where the pod has an fsGroup, the group, the
// group's access and the setgid bit by which new files take the group too. It
// changes only what differs, so that a refresh of a volume writes nothing.
func (p Pod) own(dir string, mode uint32, group access) error {
	want := mode
	gid, grouped := p.fsGroup()
	if grouped {
		want |= uint32(group) | 0o110 | unix.S_ISGID
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return &fs.PathError{Op: "lstat", Path: dir, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s is not a directory; remove it", dir)
	}
	if grouped && int(st.Gid) != gid {
		failpoint.Hit("csi/local/own")
		if err := os.Lchown(dir, -1, gid); err != nil {
			return err
		}
		st.Mode = 0 // a change of owner may take mode bits away
	}
	if st.Mode&0o7777 == want {
		return nil
	}
	return chmod(dir, want)
}

// chmod sets exactly the given bits, whatever the umask.
func chmod(path string, mode uint32) error {
	if err := unix.Chmod(path, mode); err != nil {
		return &fs.PathError{Op: "chmod", Path: path, Err: err}
	}
	return nil
}

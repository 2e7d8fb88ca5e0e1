package local

import (
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// What the pod's fsGroup may do in a rendered volume, whose attributes are
// read-only.
const (
	groupReads    = 0o440
	groupSearches = 0o110
)

// How long a change of a volume's group takes before it is reported, and how
// often after that: the kubelet's times.
const (
	SlowAfter = 30 * time.Second
	SlowEvery = 60 * time.Second
)

// ownership is how the volume called name is given to the group gid.
func (p Pod) ownership(name string, gid int) mount.Ownership {
	if p.Slow == nil {
		return mount.Ownership{Group: gid}
	}
	first := true
	return mount.Ownership{Group: gid, First: p.SlowAfter, Every: p.SlowEvery, Report: func(files int64) {
		p.Slow(name, files, first)
		first = false
	}}
}

// own gives a directory of a rendered volume its mode and, where the pod has an
// fsGroup, the group, the group's access and the setgid bit. It changes only what
// differs, so that a refresh of a volume writes nothing.
func (p Pod) own(dir string, mode uint32) error {
	want := mode
	gid, grouped := p.fsGroup()
	if grouped {
		want |= groupReads | groupSearches | unix.S_ISGID
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

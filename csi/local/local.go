package local

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Mounter makes mounts in the agent's mount namespace.
type Mounter interface {
	// Tmpfs makes target a tmpfs of at least size bytes (0: the kernel's
	// choice). Idempotent.
	Tmpfs(target string, size int64) error
	// Hugetlbfs makes target a file system of huge pages of that many bytes.
	// Idempotent.
	Hugetlbfs(target string, pageSize int64) error
	// Bind mounts what source stands for on target. Not idempotent.
	Bind(source *os.File, target string) error
	// Mounted says whether target is a mount point; a missing one is not.
	Mounted(target string) (bool, error)
	// Unmount takes the topmost mount off target; none there is success.
	Unmount(target string) error
}

// Pod is where and from what the volumes of one pod are made.
type Pod struct {
	// Dir is the pod's directory; it exists.
	Dir   string
	Facts volume.Facts
	// Slow, if set, is told when giving a volume to the fsGroup takes longer than
	// SlowAfter, and after that every SlowEvery: the volume, how many files are
	// done, and whether it is the first time.
	Slow                 func(name string, files int64, first bool)
	SlowAfter, SlowEvery time.Duration
}

// fsGroup returns the group that is to own the volumes, if the pod asks for one.
func (p Pod) fsGroup() (int, bool) {
	if sc := p.Facts.Pod.Spec.SecurityContext; sc != nil && sc.FSGroup != nil {
		return int(*sc.FSGroup), true
	}
	return 0, false
}

// SetUp makes v as it is to be and returns its directory on the host. It is
// idempotent, and refreshes a rendered volume: with unchanged content it writes
// nothing. Errors are *volume.Error.
func SetUp(ctx context.Context, m Mounter, p Pod, v volume.Volume) (string, error) {
	var dir string
	err := ctx.Err()
	if err == nil {
		switch {
		case v.Kind == volume.HostPath:
			dir = v.Source.HostPath.Path
			err = checkHostPath(v.Source.HostPath)
		case v.Kind == volume.EmptyDir:
			dir = filepath.Join(p.Dir, v.Dir)
			err = p.emptyDir(ctx, m, v, dir)
		case v.Rendered:
			dir = filepath.Join(p.Dir, v.Dir)
			err = p.rendered(m, v, dir)
		default:
			err = fmt.Errorf("no way to set up a volume of kind %s", v.Kind)
		}
	}
	if err != nil {
		return "", Classify(volume.OpSetUp, v.Name, err)
	}
	return dir, nil
}

// emptyDir makes the directory once. After the marker is written its mode and
// owner belong to the pod; memory lost to a reboot is made anew.
func (p Pod) emptyDir(ctx context.Context, m Mounter, v volume.Volume, dir string) error {
	marker := filepath.Join(p.Dir, v.Marker)
	if done, err := isSetUp(m, v, dir, marker); done || err != nil {
		return err
	}
	failpoint.Hit("csi/local/emptydir-mkdir")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	mode, err := p.medium(m, v, dir)
	if err != nil {
		return err
	}
	failpoint.Hit("csi/local/emptydir-mode")
	if err := chmod(dir, mode); err != nil {
		return err
	}
	if gid, ok := p.fsGroup(); ok {
		// The change policy is for volumes that outlive the pod; this one is new.
		if err := mount.Own(ctx, dir, p.ownership(v.Name, gid)); err != nil {
			return err
		}
	}
	failpoint.Hit("csi/local/emptydir-ready")
	if err := os.MkdirAll(filepath.Dir(marker), 0o750); err != nil {
		return err
	}
	f, err := os.OpenFile(marker, os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	failpoint.Hit("csi/local/emptydir-ready-done")
	return f.Close()
}

// medium mounts what the emptyDir is to lie in, and returns the mode of its root:
// a tmpfs has the sticky bit, as the kernel's own default is.
func (p Pod) medium(m Mounter, v volume.Volume, dir string) (mode uint32, err error) {
	switch {
	case v.Huge:
		size, err := p.Facts.PageSize(v)
		if err != nil {
			return 0, err
		}
		if mounted, err := m.Mounted(dir); err == nil && !mounted {
			if err := reserved(size, mount.ReadHugePages()); err != nil {
				return 0, err
			}
		}
		return 0o777, m.Hugetlbfs(dir, size)
	case v.InMemory:
		return 0o1777, m.Tmpfs(dir, p.Facts.MemorySize(v))
	}
	return 0o777, nil
}

// reserved says why a volume of huge pages of that many bytes could not be
// written to, if there are none: the first writer would die of SIGBUS.
func reserved(size int64, have []mount.HugePages) error {
	var sizes []string
	for _, one := range have {
		if one.Size == size && one.Pages > 0 {
			return nil
		}
		if one.Size == size {
			return &volume.Error{Code: volume.Exhausted, Err: fmt.Errorf(
				"no huge pages of %s are reserved on this node; write a number to /sys/kernel/mm/hugepages/hugepages-%dkB/nr_hugepages, or boot with hugepagesz= and hugepages=",
				volume.ByteSize(size), size>>10)}
		}
		sizes = append(sizes, volume.ByteSize(one.Size))
	}
	if len(sizes) == 0 {
		return refuse("the kernel of this node has no huge pages; use an emptyDir of medium Memory")
	}
	return refuse("the kernel of this node has no huge pages of %s, only of %s", volume.ByteSize(size), strings.Join(sizes, ", "))
}

func isSetUp(m Mounter, v volume.Volume, dir, marker string) (bool, error) {
	if _, err := os.Lstat(marker); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return false, nil
		}
		return false, err
	}
	if v.InMemory {
		return m.Mounted(dir)
	}
	_, err := os.Lstat(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// rendered makes the volume's directory and brings its content up to date.
func (p Pod) rendered(m Mounter, v volume.Volume, dir string) error {
	payload, err := p.Facts.Render(v)
	if err != nil {
		return err
	}
	failpoint.Hit("csi/local/rendered-mkdir")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	if v.InMemory {
		// Old and new content are there at once while one replaces the other.
		if err := m.Tmpfs(dir, 1<<20+2*payload.Size()); err != nil {
			return err
		}
		if err := mustBeTmpfs(dir); err != nil {
			return err
		}
	}
	mode := uint32(0o777)
	if v.InMemory {
		mode = 0o1777
	}
	if err := p.own(dir, mode); err != nil {
		return err
	}
	w := writer{pod: p, now: time.Now()}
	_, err = w.write(dir, payload)
	return err
}

// mustBeTmpfs is the last check before a Secret is written: it must not reach a disk.
func mustBeTmpfs(dir string) error {
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", dir, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is not a tmpfs; nothing was written to it", dir)
	}
	return nil
}

// Present says whether an emptyDir or rendered volume that was once set up is
// still there in full: its mounts do not outlive a reboot.
func Present(m Mounter, podDir string, v volume.Volume) bool {
	dir := filepath.Join(podDir, v.Dir)
	if v.InMemory {
		if mounted, err := m.Mounted(dir); err != nil || !mounted {
			return false
		}
	}
	check := filepath.Join(dir, dataLink)
	if v.Kind == volume.EmptyDir {
		check = filepath.Join(podDir, v.Marker)
		if st, err := os.Lstat(dir); err != nil || !st.IsDir() {
			return false
		}
	}
	_, err := os.Lstat(check)
	return err == nil
}

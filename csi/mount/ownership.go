package mount

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// maxNesting bounds the file descriptors that Own holds: one for each level.
const maxNesting = 512

// Ownership is how a volume is given to a pod's fsGroup.
type Ownership struct {
	Group int
	// ReadOnly grants the group reading only.
	ReadOnly bool
	// OnRootMismatch leaves everything as it is if the volume's root is as it should be.
	OnRootMismatch bool
	// Report, if set, is told how many files are done when the work takes longer
	// than First, and after that every Every. It is not called after Own returned.
	Report       func(files int64)
	First, Every time.Duration
}

// bits are what the group may do with a file.
func (o Ownership) bits(directory bool) uint32 {
	bits := uint32(0o660)
	if o.ReadOnly {
		bits = 0o440
	}
	if directory {
		bits |= 0o110 | unix.S_ISGID // new files take the group too
	}
	return bits
}

// Own gives everything below dir, and dir itself last, to the group, adds the
// group's access to the modes and the setgid bit to directories. Links are given
// away themselves, never followed; other mounts inside are left alone. What is
// right already is not touched. dir comes last so that an interrupted change is
// one that OnRootMismatch sees. It may be called again at any time.
//
// The first failure is returned after everything else has been done.
func Own(ctx context.Context, dir string, o Ownership) error {
	root, err := openat2(unix.AT_FDCWD, dir, unix.O_PATH|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("open %s to change its group: %w", dir, err)
	}
	defer root.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(root.Fd()), &st); err != nil {
		return fmt.Errorf("stat %s: %w", dir, err)
	}
	if o.OnRootMismatch && st.Mode&unix.S_IFMT == unix.S_IFDIR && o.right(&st) {
		return nil
	}
	failpoint.Hit("csi/mount/own")
	c := &change{ctx: ctx, to: o}
	stop := c.report()
	defer stop()
	c.tree(root, &st, dir, 0)
	return c.failed
}

// right says whether st already is as o asks.
func (o Ownership) right(st *unix.Stat_t) bool {
	bits := o.bits(st.Mode&unix.S_IFMT == unix.S_IFDIR)
	return int(st.Gid) == o.Group && (st.Mode&unix.S_IFMT == unix.S_IFLNK || st.Mode&bits == bits)
}

// change is one Own. ctx lives exactly as long as that call.
type change struct {
	ctx    context.Context
	to     Ownership
	files  atomic.Int64
	failed error
}

// report starts the reports; the function it returns ends and awaits them.
func (c *change) report() (stop func()) {
	if c.to.Report == nil {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		timer := time.NewTimer(c.to.First)
		defer timer.Stop()
		for {
			select {
			case <-done:
				return
			case <-timer.C:
				c.to.Report(c.files.Load())
				timer.Reset(c.to.Every)
			}
		}
	}()
	return func() { close(done); <-ended }
}

func (c *change) fail(err error) {
	if c.failed == nil {
		c.failed = err
	}
}

// tree changes what is below at, if it is a directory, and then at itself. path
// is for errors only.
func (c *change) tree(at *os.File, st *unix.Stat_t, path string, depth int) {
	if st.Mode&unix.S_IFMT == unix.S_IFDIR {
		if depth > maxNesting {
			c.fail(fmt.Errorf("%s: more than %d directories inside each other; their group was not changed", path, maxNesting))
			return
		}
		c.below(at, path, depth)
	}
	if err := c.ctx.Err(); err != nil {
		c.fail(fmt.Errorf("change the group of %s: %w", path, err))
		return
	}
	c.files.Add(1)
	if c.to.right(st) {
		return
	}
	if err := c.one(at, st); err != nil {
		c.fail(fmt.Errorf("change the group of %s: %w", path, err))
	}
}

// one changes one file. A change of group takes setuid and setgid away, so the
// mode follows it.
func (c *change) one(at *os.File, st *unix.Stat_t) error {
	if err := unix.Fchownat(int(at.Fd()), "", -1, c.to.Group, unix.AT_EMPTY_PATH); err != nil {
		return err
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		return nil
	}
	mode := st.Mode&0o7777 | c.to.bits(st.Mode&unix.S_IFMT == unix.S_IFDIR)
	return unix.Chmod(fmt.Sprintf("/proc/self/fd/%d", at.Fd()), mode)
}

// below changes everything in the directory at.
func (c *change) below(at *os.File, path string, depth int) {
	fd, err := unix.Openat(int(at.Fd()), ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		c.fail(fmt.Errorf("open %s to change its group: %w", path, err))
		return
	}
	dir := os.NewFile(uintptr(fd), path)
	defer dir.Close()
	for {
		names, err := dir.Readdirnames(256)
		for _, name := range names {
			if c.ctx.Err() != nil {
				return
			}
			c.entry(dir, name, filepath.Join(path, name), depth)
		}
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			c.fail(fmt.Errorf("read %s: %w", path, err))
			return
		}
	}
}

func (c *change) entry(dir *os.File, name, path string, depth int) {
	entry, err := openat2(int(dir.Fd()), name, unix.O_PATH|unix.O_NOFOLLOW,
		unix.RESOLVE_BENEATH|unix.RESOLVE_NO_SYMLINKS|unix.RESOLVE_NO_XDEV)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.EXDEV): // gone meanwhile; somebody else's mount
		return
	case err != nil:
		c.fail(fmt.Errorf("open %s to change its group: %w", path, err))
		return
	}
	defer entry.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(entry.Fd()), &st); err != nil {
		c.fail(fmt.Errorf("stat %s: %w", path, err))
		return
	}
	c.tree(entry, &st, path, depth+1)
}

package disk

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"golang.org/x/sys/unix"
)

// Usage is what a tree takes, its root included.
type Usage struct {
	// Bytes are those of the blocks that are allocated, as du counts them. A file
	// with several names in the tree counts once.
	Bytes int64
	// Inodes counts files, directories and all else.
	Inodes int64
	// Partial says that there is more than was counted: the tree has more
	// directories or linked files than are remembered, or was changed so that the
	// way back was lost.
	Partial bool
}

// DefaultRate is how many files and directories are looked at each second: some
// hundredths of one CPU.
const DefaultRate = 30000

// Scanner measures trees. Its zero value is ready to use, and may be used by
// one goroutine at a time.
type Scanner struct {
	// Rate bounds the files and directories looked at each second, over all
	// calls; DefaultRate if 0.
	Rate int

	done  int       // looked at since begun
	begun time.Time // of the current stretch of work
	// remember replaces maxRemembered in tests.
	remember int
}

// maxRemembered bounds the directories still to be walked, and the inodes with
// several names, of one tree.
const maxRemembered = 1 << 20

// Usage measures the tree at root, which may take long: ctx ends it. A root that
// does not exist takes nothing. A tree that is a tmpfs of its own is asked for
// its size and not walked.
func (s *Scanner) Usage(ctx context.Context, root string) (Usage, error) {
	fd, err := unix.Open(root, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOENT) {
		return Usage{}, nil
	}
	if err != nil {
		return Usage{}, &fs.PathError{Op: "open", Path: root, Err: err}
	}
	w := walk{scanner: s, ctx: ctx, linked: map[id]bool{}, most: maxRemembered}
	if s.remember > 0 {
		w.most = s.remember
	}
	defer func() { unix.Close(w.fd) }()
	w.fd = fd
	st, err := stat(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", root, err)
	}
	if u, ok := memory(fd, st); ok {
		return u, nil
	}
	w.root, w.mount = idOf(st), st.Mnt_id
	w.add(st)
	if err := w.run(); err != nil {
		return Usage{}, fmt.Errorf("measure %s: %w", root, err)
	}
	return w.usage, nil
}

// memory tells the size of a tree that is the root of a file system in memory.
func memory(fd int, st *unix.Statx_t) (Usage, bool) {
	if st.Attributes&unix.STATX_ATTR_MOUNT_ROOT == 0 {
		return Usage{}, false
	}
	var f unix.Statfs_t
	if unix.Fstatfs(fd, &f) != nil || f.Type != unix.TMPFS_MAGIC && f.Type != unix.HUGETLBFS_MAGIC {
		return Usage{}, false
	}
	return Usage{Bytes: int64(f.Blocks-f.Bfree) * f.Bsize, Inodes: int64(f.Files - f.Ffree)}, true
}

// pace is called for each file and directory, and waits so that the rate is kept.
func (s *Scanner) pace(ctx context.Context) error {
	const stride = 256
	s.done++
	if s.done%stride != 0 {
		return nil
	}
	rate := s.Rate
	if rate == 0 {
		rate = DefaultRate
	}
	now := time.Now()
	due := time.Duration(s.done) * time.Second / time.Duration(rate)
	if early := due - now.Sub(s.begun); s.begun.IsZero() || early < -time.Second {
		s.begun, s.done = now, 0 // after a rest nothing is caught up on
	} else if early > 0 {
		select {
		case <-ctx.Done():
		case <-time.After(early):
		}
	}
	return ctx.Err()
}

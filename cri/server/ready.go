package server

import (
	"context"
	"fmt"
	"maps"
	"os"
	"slices"

	"golang.org/x/sys/unix"
)

// Needs are what a container cannot be run without.
type Needs struct {
	// Programs are the paths of programs, by what they are.
	Programs map[string]string
	// Dirs are directories that must be writable and have room.
	Dirs []string
}

// least is how much room a directory's file system must have: enough for the
// records and files of one pod.
const least = 1 << 20

// Ready says why no container can be run now; nil if nothing is in the way. It
// takes some system calls, and waits for nothing.
func (n Needs) Ready(context.Context) error {
	for _, name := range slices.Sorted(maps.Keys(n.Programs)) {
		st, err := os.Stat(n.Programs[name])
		if err != nil {
			return fmt.Errorf("%s is gone: %w; install it again", name, err)
		}
		if !st.Mode().IsRegular() || st.Mode()&0o111 == 0 {
			return fmt.Errorf("%s cannot be executed: %s; install it again", name, n.Programs[name])
		}
	}
	for _, dir := range n.Dirs {
		var st unix.Statfs_t
		if err := unix.Statfs(dir, &st); err != nil {
			return fmt.Errorf("directory %s is gone: %w; restart the runtime", dir, err)
		}
		switch {
		case st.Flags&unix.ST_RDONLY != 0:
			return fmt.Errorf("the file system of %s is read-only: mount it for writing (the kernel log may say why it became so)", dir)
		case st.Bavail*uint64(st.Bsize) < least:
			return fmt.Errorf("the file system of %s is full: make room on it", dir)
		case st.Files > 0 && st.Ffree == 0:
			return fmt.Errorf("the file system of %s has no free inodes: remove files from it", dir)
		}
	}
	return nil
}

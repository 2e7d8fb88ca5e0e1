package mount

import (
	"errors"
	"os"

	"golang.org/x/sys/unix"
)

// openat2 opens path relative to dirfd, always close-on-exec and never through
// a magic link of /proc. The kernel answers EAGAIN when a rename anywhere raced
// with its check; a bounded number of further tries gets past honest ones.
func openat2(dirfd int, path string, flags int, resolve uint64) (*os.File, error) {
	how := unix.OpenHow{Flags: uint64(flags) | unix.O_CLOEXEC, Resolve: resolve | unix.RESOLVE_NO_MAGICLINKS}
	var fd int
	var err error
	for range 128 {
		fd, err = unix.Openat2(dirfd, path, &how)
		if !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(fd), path), nil
}

// OpenBeneath opens the relative path below the directory root as O_PATH. It
// follows symbolic links that stay below root; a path that leaves it, or an
// absolute link, is unix.EXDEV.
func OpenBeneath(root *os.File, path string) (*os.File, error) {
	return openat2(int(root.Fd()), path, unix.O_PATH, unix.RESOLVE_BENEATH)
}

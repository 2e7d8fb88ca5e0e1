package disk

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"

	"golang.org/x/sys/unix"
)

// id is an inode.
type id struct {
	major, minor uint32
	inode        uint64
}

func idOf(st *unix.Statx_t) id { return id{st.Dev_major, st.Dev_minor, st.Ino} }

func stat(fd int, name string, flags int) (*unix.Statx_t, error) {
	var st unix.Statx_t
	const want = unix.STATX_TYPE | unix.STATX_NLINK | unix.STATX_INO | unix.STATX_BLOCKS | unix.STATX_MNT_ID
	err := unix.Statx(fd, name, flags|unix.AT_SYMLINK_NOFOLLOW|unix.AT_NO_AUTOMOUNT|unix.AT_STATX_DONT_SYNC, want, &st)
	return &st, err
}

// frame is a directory on the way from the root to where the walk is.
type frame struct {
	id   id
	left []string // its directories that have not been walked
}

// walk is one walk of a tree, depth first. Only the directory it is in is open:
// the way down is by name and never through a link or onto another mount, the
// way up is by "..", believed only if it is where the walk came from.
type walk struct {
	scanner *Scanner
	ctx     context.Context
	fd      int
	root    id
	mount   uint64
	stack   []frame
	held    int // names on the stack
	most    int
	linked  map[id]bool // inodes with several names that were counted
	usage   Usage
}

// add counts an inode; one that is known by another name is not.
func (w *walk) add(st *unix.Statx_t) {
	if st.Nlink > 1 && st.Mode&unix.S_IFMT != unix.S_IFDIR {
		i := idOf(st)
		if w.linked[i] {
			return
		}
		if len(w.linked) < w.most {
			w.linked[i] = true
		} else {
			w.usage.Partial = true // it may be counted twice: rather too much than forgotten
		}
	}
	w.usage.Bytes += int64(st.Blocks) * 512
	w.usage.Inodes++
}

func (w *walk) run() error {
	here := w.root
	for {
		left, err := w.list()
		if err != nil {
			return err
		}
		w.stack = append(w.stack, frame{here, left})
		w.held += len(left)
		next, ok, err := w.next()
		if err != nil || !ok {
			return err
		}
		here = next
	}
}

// next goes to the next directory that has not been walked; ok is false if
// there is none.
func (w *walk) next() (_ id, ok bool, _ error) {
	for len(w.stack) > 0 {
		if err := w.ctx.Err(); err != nil {
			return id{}, false, err
		}
		top := &w.stack[len(w.stack)-1]
		if len(top.left) == 0 {
			if w.stack = w.stack[:len(w.stack)-1]; len(w.stack) > 0 && !w.up(w.stack[len(w.stack)-1].id) {
				w.usage.Partial = true
				return id{}, false, nil
			}
			continue
		}
		name := top.left[len(top.left)-1]
		top.left, w.held = top.left[:len(top.left)-1], w.held-1
		if i, ok := w.down(name); ok {
			return i, true, nil
		}
	}
	return id{}, false, nil
}

// down enters the directory name; it is passed over if it is gone, or no longer
// a directory of this mount.
func (w *walk) down(name string) (id, bool) {
	how := unix.OpenHow{Flags: unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC, Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV}
	fd, err := unix.Openat2(w.fd, name, &how)
	if err != nil {
		return id{}, false
	}
	st, err := stat(fd, "", unix.AT_EMPTY_PATH)
	if err != nil {
		unix.Close(fd)
		return id{}, false
	}
	w.enter(fd)
	return idOf(st), true
}

// up goes back to want, which the walk came from, unless the directory was moved.
func (w *walk) up(want id) bool {
	fd, err := unix.Openat(w.fd, "..", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	st, err := stat(fd, "", unix.AT_EMPTY_PATH)
	if err != nil || idOf(st) != want {
		unix.Close(fd)
		return false
	}
	w.enter(fd)
	return true
}

func (w *walk) enter(fd int) {
	unix.Close(w.fd)
	w.fd = fd
}

// list counts what is in the directory the walk is in, and returns the names of
// its directories.
func (w *walk) list() ([]string, error) {
	var dirs []string
	buffer := make([]byte, 32<<10)
	for {
		n, err := unix.Getdents(w.fd, buffer)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case errors.Is(err, unix.ENOENT), err == nil && n == 0: // removed meanwhile, or at its end
			return dirs, nil
		case err != nil:
			return nil, err
		}
		for rest := buffer[:n]; len(rest) > 0; {
			var name string
			name, rest = entry(rest)
			if name == "" || name == "." || name == ".." {
				continue
			}
			if err := w.scanner.pace(w.ctx); err != nil {
				return nil, err
			}
			st, err := stat(w.fd, name, 0)
			if err != nil || st.Mnt_id != w.mount {
				continue // gone meanwhile, or mounted there
			}
			w.add(st)
			if st.Mode&unix.S_IFMT != unix.S_IFDIR {
				continue
			}
			if w.held+len(dirs) >= w.most {
				w.usage.Partial = true
				continue
			}
			dirs = append(dirs, name)
		}
	}
}

// entry takes the first entry of what getdents64 returned: inode and offset of 8
// bytes each, length of 2, type of 1, name up to a NUL.
func entry(b []byte) (name string, rest []byte) {
	const header = 19
	if len(b) < header {
		return "", nil
	}
	size := int(binary.NativeEndian.Uint16(b[16:]))
	if size < header || size > len(b) {
		return "", nil
	}
	raw := b[header:size]
	if i := bytes.IndexByte(raw, 0); i >= 0 {
		raw = raw[:i]
	}
	return string(raw), b[size:]
}

package layer

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// presence is what to do about directories that an entry's path goes through and
// that are not there.
type presence int

const (
	none   presence = iota // leave them out
	weak                   // make them; they go again if nothing but whiteouts is in them and the layers below lack them
	strong                 // make them
)

// directory is the one in which entries are being placed. Its times are those it
// had before, unless an entry of the layer gives it others.
type directory struct {
	fd      int
	asked   string // the path by which it was entered
	path    string // where it is, without symbolic links
	how     presence
	times   [2]unix.Timespec
	changed bool
}

// enter makes the directory named by the layer the working directory.
func (x *extractor) enter(name string, how presence) error {
	if x.at != nil && x.at.asked == name && x.at.how >= how {
		return nil
	}
	if err := x.leave(); err != nil {
		return err
	}
	found, err := x.walk(name, how)
	if err != nil || found.fd < 0 {
		return err
	}
	var st unix.Stat_t
	err = unix.Fstat(found.fd, &st)
	if err == nil {
		err = unix.Fchdir(found.fd)
	}
	if err != nil {
		unix.Close(found.fd)
		return refused("enter directory", err)
	}
	x.at = &directory{fd: found.fd, asked: name, path: found.path, how: how, times: times(st)}
	return nil
}

// leave gives the entered directory its times back.
func (x *extractor) leave() error {
	d := x.at
	if d == nil {
		return nil
	}
	x.at = nil
	defer unix.Close(d.fd)
	if !d.changed {
		return nil
	}
	return restoreTimes(d.fd, d.times)
}

// forgetPaths is called after something was removed that a path may go through.
func (x *extractor) forgetPaths() {
	if x.at != nil {
		x.at.asked = "\x00" // no name has it
	}
}

// place on the way: what walk has found so far.
type way struct {
	fd    int      // of the last directory that is there
	names []string // of all so far, without links
	have  int      // how many of names are there
	rest  []string // still to go
	links int
	size  int
	// replaced: the first that is missing was something else before.
	replaced bool
}

// found is a directory; fd is -1 if it is not there and was not to be made.
type found struct {
	fd   int
	path string
}

// walk resolves a directory's name below the root: links are followed as in a
// chroot, and what is missing is made, or taken to be there while the name is
// resolved.
func (x *extractor) walk(name string, how presence) (found, error) {
	w := &way{fd: -1, rest: split(name)}
	if err := w.restart(x.root); err != nil {
		return found{fd: -1}, err
	}
	for len(w.rest) > 0 {
		c := w.rest[0]
		w.rest = w.rest[1:]
		absent, err := x.step(w, c, how)
		if err != nil || absent {
			unix.Close(w.fd)
			return found{fd: -1}, err
		}
	}
	full := strings.Join(w.names, "/")
	if w.have < len(w.names) && how == none {
		unix.Close(w.fd)
		return found{fd: -1, path: full}, nil
	}
	if made, err := x.makeMissing(w, how); err != nil || !made {
		unix.Close(w.fd)
		return found{fd: -1}, err
	}
	return found{fd: w.fd, path: full}, nil
}

func split(name string) []string {
	return strings.FieldsFunc(name, func(r rune) bool { return r == '/' })
}

// restart goes back to the root.
func (w *way) restart(root int) error {
	if w.fd >= 0 {
		unix.Close(w.fd)
		w.fd = -1
	}
	fd, err := unix.Openat(root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return refused("open the root", err)
	}
	w.fd, w.names, w.have, w.size, w.replaced = fd, nil, 0, 0, false
	return nil
}

// up goes to the directory above.
func (w *way) up(root int) error {
	switch {
	case len(w.names) == 0:
		return nil
	case w.have < len(w.names):
		w.names = w.names[:len(w.names)-1]
		w.replaced = w.replaced && w.have < len(w.names)
		return nil
	}
	w.rest = append(append([]string(nil), w.names[:len(w.names)-1]...), w.rest...)
	return w.restart(root)
}

// step takes one component; absent says that there is no such directory.
func (x *extractor) step(w *way, c string, how presence) (absent bool, err error) {
	switch c {
	case ".":
		return false, nil
	case "..":
		return false, w.up(x.root)
	}
	if w.size += len(c) + 1; w.size > maxPath {
		return false, fmt.Errorf("%w: a path is longer than %d bytes", ErrLimit, maxPath)
	}
	if w.have < len(w.names) {
		w.names = append(w.names, c)
		return false, nil
	}
	fd, err := unix.Openat(w.fd, c, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	switch {
	case err == nil:
		unix.Close(w.fd)
		w.fd, w.names, w.have = fd, append(w.names, c), w.have+1
		x.confirm(w, how)
		return false, nil
	case errors.Is(err, unix.ENOENT):
		w.names = append(w.names, c)
		return false, nil
	case !errors.Is(err, unix.ENOTDIR) && !errors.Is(err, unix.ELOOP):
		return false, refused("open directory", err)
	}
	return x.detour(w, c, how)
}

// confirm notes that a directory that was made for whiteouts has more in it.
func (x *extractor) confirm(w *way, how presence) {
	if how == strong && x.mode == Alone && x.pending.weak > 0 {
		x.pending.strengthen(strings.Join(w.names, "/"))
	}
}

// detour follows a symbolic link, or clears away what is no directory.
func (x *extractor) detour(w *way, c string, how presence) (absent bool, err error) {
	target := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(w.fd, c, target)
	if err == nil {
		if w.links++; w.links > maxLinks {
			return false, fmt.Errorf("%w: more than %d symbolic links on the way", ErrBad, maxLinks)
		}
		w.rest = append(split(string(target[:n])), w.rest...)
		if len(w.rest) > maxPath {
			return false, fmt.Errorf("%w: symbolic links on the way grow too long", ErrBad)
		}
		if n > 0 && target[0] == '/' {
			return false, w.restart(x.root)
		}
		return false, nil
	}
	if !errors.Is(err, unix.EINVAL) {
		return false, refused("read symbolic link", err)
	}
	if how != strong {
		return true, nil // nothing of the layers below is there
	}
	var st unix.Stat_t
	if err := unix.Fstat(w.fd, &st); err != nil {
		return false, refused("look at directory", err)
	}
	if err := unix.Unlinkat(w.fd, c, 0); err != nil {
		return false, refused("replace a file by a directory", err)
	}
	w.names, w.replaced = append(w.names, c), true
	x.pending.drop(strings.Join(w.names, "/"))
	return false, restoreTimes(w.fd, times(st))
}

// makeMissing makes the directories that w lacks, unless it is only to delete in
// them and nothing from below can be there.
func (x *extractor) makeMissing(w *way, how presence) (bool, error) {
	if w.have == len(w.names) {
		return true, nil
	}
	isNew := w.replaced
	if !isNew && x.mode == Alone {
		hidden, err := x.hidden(strings.Join(w.names[:w.have], "/"))
		if err != nil || hidden && how == weak {
			return false, err
		}
		isNew = hidden
	}
	for ; w.have < len(w.names); w.have++ {
		fd, err := makeBetween(w.fd, w.names[w.have])
		if err != nil {
			return false, err
		}
		unix.Close(w.fd)
		w.fd = fd
		if x.mode != Alone {
			continue
		}
		what := how
		if isNew {
			what = fresh
		}
		if err := x.pending.add(path.Join(w.names[:w.have+1]...), what); err != nil {
			return false, err
		}
		if w.replaced {
			if err := unix.Fsetxattr(fd, opaqueXattr, []byte("y"), 0); err != nil {
				return false, refused("hide what is below", err)
			}
			w.replaced = false
		}
	}
	return true, nil
}

// makeBetween makes a directory for which the layer has no entry.
func makeBetween(parent int, name string) (int, error) {
	var st unix.Stat_t
	if err := unix.Fstat(parent, &st); err != nil {
		return -1, refused("look at directory", err)
	}
	if err := unix.Mkdirat(parent, name, 0o755); err != nil {
		return -1, refused("make a directory between", err)
	}
	fd, err := unix.Openat(parent, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, refused("open directory", err)
	}
	if err := errors.Join(restoreTimes(fd, epoch()), restoreTimes(parent, times(st))); err != nil {
		unix.Close(fd)
		return -1, err
	}
	return fd, nil
}

// removeTree removes a directory and all below it.
func (x *extractor) removeTree(base string) error {
	x.forgetPaths()
	if err := os.RemoveAll(base); err != nil {
		return refused("remove the directory that was there", err)
	}
	return nil
}

package layer

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// whiteout deletes the name base, of the layers below only, in the directory dir.
func (x *extractor) whiteout(dir, base string) error {
	if base == "" || base == "." || base == ".." {
		return fmt.Errorf("%w: it deletes %q", ErrBad, base)
	}
	switch x.mode {
	case Bottom:
		return nil // nothing is below
	case Over:
		return x.prune(dir, base)
	}
	if err := x.enter(dir, weak); err != nil || x.at == nil {
		return err
	}
	full := join(x.at.path, base)
	var st unix.Stat_t
	err := unix.Fstatat(x.at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case err == nil && x.pending.is(full, weak):
		// Made to delete something in it, which this does as well.
		x.pending.dropBelow(full)
		x.at.changed = true
		if err := x.removeTree(base); err != nil {
			return err
		}
	case err == nil && st.Mode&unix.S_IFMT == unix.S_IFDIR:
		// The layer's own content stays, all that is below goes.
		return x.hideBelow(base, full)
	case err == nil:
		return nil
	case !errors.Is(err, unix.ENOENT):
		return refused("look for what is there", err)
	}
	// In a directory that hides everything below, listings would show it.
	if hidden, err := x.hidden(x.at.path); err != nil || hidden {
		return err
	}
	if err := x.pending.add(full, gone); err != nil {
		return err
	}
	x.at.changed = true
	return refused("mark as deleted", unix.Mknodat(x.at.fd, base, unix.S_IFCHR, int(unix.Mkdev(0, 0))))
}

// opaque deletes all that the layers below have in dir.
func (x *extractor) opaque(dir string) error {
	switch x.mode {
	case Bottom:
		return nil
	case Over:
		return x.prune(dir, "")
	}
	if err := x.enter(dir, weak); err != nil || x.at == nil {
		return err
	}
	if x.at.path == "" {
		return ErrNeedsLower // overlayfs stacks the roots of layers in any case
	}
	return x.hideBelow(".", x.at.path)
}

// hideBelow makes a directory of this layer opaque, and removes the whiteouts in
// it and what was made for them.
func (x *extractor) hideBelow(name, full string) error {
	if err := unix.Lsetxattr(name, opaqueXattr, []byte("y"), 0); err != nil {
		return refused("hide what is below", err)
	}
	for _, wh := range x.pending.below(full, gone, weak) {
		rel := strings.TrimPrefix(wh, full+"/")
		if name != "." {
			rel = name + "/" + rel
		}
		if err := removeQuietly(rel); err != nil {
			return err
		}
		x.pending.drop(wh)
	}
	x.forgetPaths()
	return nil
}

// removeQuietly removes a file or empty directory and gives its directory the times back.
func removeQuietly(rel string) error {
	dir := "."
	if i := strings.LastIndexByte(rel, '/'); i >= 0 {
		dir = rel[:i]
	}
	var st unix.Stat_t
	if err := unix.Lstat(dir, &st); err != nil {
		return refused("look at directory", err)
	}
	err := unix.Unlink(rel)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Rmdir(rel)
	}
	if err != nil {
		return refused("remove a whiteout", err)
	}
	at := times(st)
	return refused("set times", unix.UtimesNanoAt(unix.AT_FDCWD, dir, at[:], unix.AT_SYMLINK_NOFOLLOW))
}

// hidden tells whether a directory of this layer hides what the layers below have
// in path.
func (x *extractor) hidden(path string) (bool, error) {
	fd, err := unix.Openat(x.root, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return false, refused("open the root", err)
	}
	defer func() { unix.Close(fd) }()
	for _, c := range split(path) {
		next, err := unix.Openat(fd, c, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return false, refused("open directory", err)
		}
		unix.Close(fd)
		fd = next
		if isOpaque(fd) {
			return true, nil
		}
	}
	return false, nil
}

func isOpaque(fd int) bool {
	b := make([]byte, 1)
	n, err := unix.Fgetxattr(fd, opaqueXattr, b)
	return err == nil && n == 1 && b[0] == 'y'
}

// touch notes that path, and all above it, are of this layer.
func (x *extractor) touch(path string) {
	if x.mode != Over {
		return
	}
	for path != "" {
		if _, ok := x.touched[path]; ok {
			return
		}
		x.touched[path] = struct{}{}
		i := strings.LastIndexByte(path, '/')
		path = path[:max(i, 0)]
	}
}

// prune removes from the merged tree what is not of this layer: base in dir, or
// with an empty base all in dir.
func (x *extractor) prune(dir, base string) error {
	if err := x.enter(dir, none); err != nil || x.at == nil {
		return err
	}
	x.forgetPaths()
	x.at.changed = true
	if base != "" {
		return x.pruneTree(x.at.fd, x.at.path, base)
	}
	return x.pruneChildren(x.at.fd, x.at.path)
}

func (x *extractor) pruneTree(parent int, parentPath, base string) error {
	full := join(parentPath, base)
	if _, ok := x.touched[full]; !ok {
		root, err := os.OpenRoot(fmt.Sprintf("/%s", parentPath))
		if err != nil {
			return refused("open directory", err)
		}
		defer root.Close()
		return refused("delete", root.RemoveAll(base))
	}
	fd, err := unix.Openat(parent, base, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	if err != nil {
		return refused("open directory", err)
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return refused("look at directory", err)
	}
	return errors.Join(x.pruneChildren(fd, full), restoreTimes(fd, times(st)))
}

func (x *extractor) pruneChildren(fd int, path string) error {
	names, err := children(fd)
	if err != nil {
		return err
	}
	for _, n := range names {
		if err := x.pruneTree(fd, path, n); err != nil {
			return err
		}
	}
	return nil
}

// children lists a directory.
func children(fd int) ([]string, error) {
	d, err := unix.Openat(fd, ".", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, refused("open directory", err)
	}
	f := os.NewFile(uintptr(d), "directory")
	defer f.Close()
	names, err := f.Readdirnames(-1)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, refused("list directory", err)
	}
	return names, nil
}

package layer

import (
	"context"
	"errors"
	"fmt"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Settle finishes a layer that was applied alone in the directory upper, above the
// settled layers in lower (topmost first): directories that it only goes through
// take the attributes they have below, and what it deletes without being there is
// no longer deleted. What it changed is synced. ErrNeedsLower leaves upper to be
// thrown away.
func Settle(ctx context.Context, upper string, lower []string, p Pending) error {
	s := &settling{upper: -1, touched: map[string]struct{}{}}
	defer s.close()
	var err error
	if s.upper, err = openDir(unix.AT_FDCWD, upper); err != nil {
		return fmt.Errorf("open layer: %w", err)
	}
	for _, l := range lower {
		fd, err := openDir(unix.AT_FDCWD, l)
		if err != nil {
			return fmt.Errorf("open layer below: %w", err)
		}
		s.lower = append(s.lower, fd)
	}
	if err := s.look(ctx, p); err != nil {
		return err
	}
	if err := s.change(ctx); err != nil {
		return err
	}
	return s.sync()
}

// settling is one layer being settled.
type settling struct {
	upper   int
	lower   []int
	remove  []string // whiteouts and directories, in order
	borrow  []string
	heirs   []openPath // those below before those above
	touched map[string]struct{}
}

func (s *settling) close() {
	for _, fd := range append(s.lower, s.upper) {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}

// kind is what the layers below have under a path.
type kind int

const (
	absent    kind = iota
	dirBelow       // a directory
	fileBelow      // something that is neither directory nor link
	linkBelow      // a symbolic link, there or on the way
)

// look asks the layers below, before anything is changed.
func (s *settling) look(ctx context.Context, p Pending) error {
	for _, o := range slices.Backward(p) {
		name := string(o.Name)
		k, err := s.ask(ctx, name)
		if err != nil {
			return err
		}
		switch {
		case o.What == gone:
			if k == absent {
				s.remove = append(s.remove, name)
			}
		case o.What == fresh:
			s.heirs = append(s.heirs, o)
		case k == dirBelow:
			s.borrow = append(s.borrow, name)
		case k == linkBelow || o.What == weak && k == fileBelow:
			return ErrNeedsLower
		case o.What == weak:
			s.remove = append(s.remove, name)
		case o.Heir > 0:
			s.heirs = append(s.heirs, o)
		}
	}
	return nil
}

func (s *settling) ask(ctx context.Context, name string) (kind, error) {
	if ctx.Err() != nil {
		return absent, context.Cause(ctx)
	}
	fd, k, err := s.find(name)
	if fd >= 0 {
		unix.Close(fd)
	}
	return k, err
}

// find looks name up as overlayfs does in the layers below; fd is that of the
// topmost directory, -1 if it is none.
func (s *settling) find(name string) (fd int, k kind, err error) {
	for _, l := range s.lower {
		fd, k, last, err := findIn(l, split(name))
		if err != nil || k != absent || last {
			return fd, k, err
		}
	}
	return -1, absent, nil
}

// findIn looks in one layer. last says that the layers below it do not count.
func findIn(layer int, comps []string) (fd int, k kind, last bool, err error) {
	fd, err = openDir(layer, ".")
	if err != nil {
		return -1, absent, false, err
	}
	for i, c := range comps {
		next, err := openDir(fd, c)
		if err == nil {
			unix.Close(fd)
			fd = next
			last = last || isOpaque(fd)
			continue
		}
		k, last, err = what(fd, c, err, i == len(comps)-1, last)
		unix.Close(fd)
		return -1, k, last, err
	}
	return fd, dirBelow, last, nil
}

// what tells what is there instead of a directory.
func what(dir int, c string, opened error, final, last bool) (kind, bool, error) {
	if errors.Is(opened, unix.ENOENT) {
		return absent, last, nil
	}
	if !errors.Is(opened, unix.ENOTDIR) && !errors.Is(opened, unix.ELOOP) {
		return absent, last, refused("look into a layer below", opened)
	}
	var st unix.Stat_t
	if err := unix.Fstatat(dir, c, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return absent, last, refused("look into a layer below", err)
	}
	switch {
	case st.Mode&unix.S_IFMT == unix.S_IFLNK:
		return linkBelow, true, nil
	case isWhiteout(st) || !final:
		return absent, true, nil
	}
	return fileBelow, true, nil
}

func openDir(at int, name string) (int, error) {
	return unix.Openat(at, name, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
}

// change does what look found to be necessary. Directories take over attributes
// last, so that their times stay.
func (s *settling) change(ctx context.Context) error {
	for _, name := range s.remove {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.unlink(name); err != nil {
			return err
		}
	}
	for _, name := range s.borrow {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err := s.takeOver(name); err != nil {
			return err
		}
	}
	for _, o := range slices.Backward(s.heirs) {
		if err := s.inherit(string(o.Name), o.open); err != nil {
			return err
		}
	}
	return nil
}

// inherit gives a new directory the group that it would have had from the first of
// the open directories above it that is below, if that hands its group on.
func (s *settling) inherit(name string, o open) error {
	from, above := -1, name
	for n := 0; n < o.Heir && from < 0; n++ {
		var err error
		above, _ = splitLast(above)
		if n < o.Skip {
			continue
		}
		if from, _, err = s.find(above); err != nil {
			return err
		}
	}
	if from < 0 {
		return nil // it was inherited when it was made
	}
	defer unix.Close(from)
	var st, own unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return refused("look at directory", err)
	}
	to, err := s.own(name)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	if err := unix.Fstat(to, &own); err != nil {
		return refused("look at directory", err)
	}
	// The kernel let it inherit from one that was made in its place.
	group, mode := 0, own.Mode&0o7777&^unix.S_ISGID
	if st.Mode&unix.S_ISGID != 0 {
		group, mode = int(st.Gid), mode|unix.S_ISGID
	}
	s.touched[name] = struct{}{}
	if err := unix.Fchown(to, int(own.Uid), group); err != nil {
		return refused("set group", err)
	}
	return refused("set mode", unix.Fchmod(to, mode))
}

// unlink removes a whiteout or an empty directory from the layer.
func (s *settling) unlink(name string) error {
	dir, base := path.Split(name)
	fd, err := s.own(dir)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return refused("look at directory", err)
	}
	err = unix.Unlinkat(fd, base, 0)
	if errors.Is(err, unix.EISDIR) || errors.Is(err, unix.EPERM) {
		err = unix.Unlinkat(fd, base, unix.AT_REMOVEDIR)
	}
	if err != nil {
		return refused("remove what deletes nothing", err)
	}
	s.touched[strings.TrimSuffix(dir, "/")] = struct{}{}
	return restoreTimes(fd, times(st))
}

// own opens a directory of the layer itself.
func (s *settling) own(name string) (int, error) {
	fd, k, _, err := findIn(s.upper, split(name))
	if err == nil && k != dirBelow {
		err = fmt.Errorf("layer lacks its directory %q", name)
	}
	return fd, err
}

// takeOver gives a directory of the layer the attributes it has below.
func (s *settling) takeOver(name string) error {
	from, k, err := s.find(name)
	if err != nil || k != dirBelow {
		return errors.Join(err, fmt.Errorf("directory %q below is gone", name))
	}
	defer unix.Close(from)
	to, err := s.own(name)
	if err != nil {
		return err
	}
	defer unix.Close(to)
	s.touched[name] = struct{}{}
	return CopyAttributes(from, to)
}

// CopyAttributes gives the directory to the owner, mode, extended attributes and
// times of the directory from. What overlayfs keeps in attributes is left alone.
func CopyAttributes(from, to int) error {
	var st unix.Stat_t
	if err := unix.Fstat(from, &st); err != nil {
		return refused("look at directory", err)
	}
	if err := unix.Fchown(to, int(st.Uid), int(st.Gid)); err != nil {
		return refused("set owner", err)
	}
	if err := unix.Fchmod(to, st.Mode&0o7777); err != nil {
		return refused("set mode", err)
	}
	if err := CopyXattrs(from, to); err != nil {
		return err
	}
	return restoreTimes(to, times(st))
}

// CopyXattrs gives to the extended attributes of from that came from an image.
func CopyXattrs(from, to int) error {
	names, err := listXattrs(func(b []byte) (int, error) { return unix.Flistxattr(from, b) })
	if err != nil {
		return err
	}
	value := make([]byte, 64<<10)
	for _, n := range names {
		if own(n) {
			continue
		}
		size, err := unix.Fgetxattr(from, n, value)
		if err != nil {
			return refused("read attribute", err)
		}
		if err := unix.Fsetxattr(to, n, value[:size], 0); err != nil {
			return refused("set attribute", err)
		}
	}
	return nil
}

// sync writes what was changed to disk.
func (s *settling) sync() error {
	if len(s.touched) > 64 {
		return refused("write the layer to disk", unix.Syncfs(s.upper))
	}
	for name := range s.touched {
		fd, err := s.own(name)
		if err != nil {
			continue // removed after it was changed
		}
		err = unix.Fsync(fd)
		unix.Close(fd)
		if err != nil {
			return refused("write a directory to disk", err)
		}
	}
	return nil
}

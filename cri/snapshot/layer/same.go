package layer

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Difference tells the first thing in which the layer in the directory have is not
// the one in want, empty if they are the same: names, types, content, owners,
// modes, times and attributes.
func Difference(ctx context.Context, want, have string) (string, error) {
	a, err := openDir(unix.AT_FDCWD, want)
	if err != nil {
		return "", refused("open layer", err)
	}
	defer unix.Close(a)
	b, err := openDir(unix.AT_FDCWD, have)
	if err != nil {
		return "", refused("open layer", err)
	}
	defer unix.Close(b)
	c := comparison{ctx: ctx, a: make([]byte, 128<<10), b: make([]byte, 128<<10)}
	return c.directories(a, b, "")
}

type comparison struct {
	ctx  context.Context
	a, b []byte
}

// directories compares two open directories.
func (c *comparison) directories(want, have int, at string) (string, error) {
	if c.ctx.Err() != nil {
		return "", context.Cause(c.ctx)
	}
	if d, err := c.attributes(want, have, at); d != "" || err != nil {
		return d, err
	}
	names, err := children(want)
	if err != nil {
		return "", err
	}
	others, err := children(have)
	if err != nil {
		return fmt.Sprintf("%q cannot be read: %v", "/"+at, err), nil
	}
	slices.Sort(names)
	slices.Sort(others)
	if !slices.Equal(names, others) {
		return fmt.Sprintf("%q has other files in it", "/"+at), nil
	}
	for _, n := range names {
		if d, err := c.entry(want, have, n, join(at, n)); d != "" || err != nil {
			return d, err
		}
	}
	return "", nil
}

func (c *comparison) entry(want, have int, name, at string) (string, error) {
	var a, b unix.Stat_t
	if err := unix.Fstatat(want, name, &a, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return "", refused("look at a file", err)
	}
	if err := unix.Fstatat(have, name, &b, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return fmt.Sprintf("%q cannot be looked at: %v", "/"+at, err), nil
	}
	if d := stats(a, b, at); d != "" {
		return d, nil
	}
	flags := unix.O_RDONLY | unix.O_NOFOLLOW | unix.O_CLOEXEC
	switch a.Mode & unix.S_IFMT {
	case unix.S_IFLNK:
		return c.links(want, have, name, at)
	case unix.S_IFREG, unix.S_IFDIR:
	default:
		return "", nil
	}
	x, err := unix.Openat(want, name, flags, 0)
	if err != nil {
		return "", refused("open a file", err)
	}
	defer unix.Close(x)
	y, err := unix.Openat(have, name, flags, 0)
	if errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		return "", refused("open a file", err)
	}
	if err != nil {
		return fmt.Sprintf("%q cannot be opened: %v", "/"+at, err), nil
	}
	defer unix.Close(y)
	if a.Mode&unix.S_IFMT == unix.S_IFDIR {
		return c.directories(x, y, at)
	}
	if d, err := c.attributes(x, y, at); d != "" || err != nil {
		return d, err
	}
	return c.contents(x, y, at)
}

func stats(a, b unix.Stat_t, at string) string {
	switch {
	case isWhiteout(a) && isWhiteout(b):
		return "" // made by overlayfs itself, or here: nobody sees the rest
	case a.Mode != b.Mode:
		return fmt.Sprintf("%q has mode %o instead of %o", "/"+at, b.Mode, a.Mode)
	case a.Uid != b.Uid || a.Gid != b.Gid:
		return fmt.Sprintf("%q has owner %d:%d instead of %d:%d", "/"+at, b.Uid, b.Gid, a.Uid, a.Gid)
	case a.Rdev != b.Rdev:
		return fmt.Sprintf("%q is another device", "/"+at)
	case a.Mode&unix.S_IFMT == unix.S_IFREG && a.Size != b.Size:
		return fmt.Sprintf("%q has %d bytes instead of %d", "/"+at, b.Size, a.Size)
	case a.Mode&unix.S_IFMT != unix.S_IFDIR && a.Nlink != b.Nlink:
		return fmt.Sprintf("%q has %d names instead of %d", "/"+at, b.Nlink, a.Nlink)
	case a.Mtim != b.Mtim:
		return fmt.Sprintf("%q has another time", "/"+at)
	}
	return ""
}

func (c *comparison) links(want, have int, name, at string) (string, error) {
	n, err := unix.Readlinkat(want, name, c.a)
	if err != nil {
		return "", refused("read a link", err)
	}
	m, err := unix.Readlinkat(have, name, c.b)
	if err != nil || !bytes.Equal(c.a[:n], c.b[:m]) {
		return fmt.Sprintf("%q links elsewhere (%v)", "/"+at, err), nil
	}
	return "", nil
}

func (c *comparison) contents(want, have int, at string) (string, error) {
	for off := int64(0); ; {
		if c.ctx.Err() != nil {
			return "", context.Cause(c.ctx)
		}
		n, err := unix.Pread(want, c.a, off)
		if err != nil {
			return "", refused("read a file", err)
		}
		m, err := unix.Pread(have, c.b, off)
		if err != nil {
			return fmt.Sprintf("%q cannot be read: %v", "/"+at, err), nil
		}
		if n != m || !bytes.Equal(c.a[:n], c.b[:m]) {
			return fmt.Sprintf("%q has other content", "/"+at), nil
		}
		if n == 0 {
			return "", nil
		}
		off += int64(n)
	}
}

// attributes compares extended attributes, but for those that the host and
// overlayfs add on their own.
func (c *comparison) attributes(want, have int, at string) (string, error) {
	a, err := attributesOf(want)
	if err != nil {
		return "", err
	}
	b, err := attributesOf(have)
	if err != nil {
		return fmt.Sprintf("attributes of %q cannot be read: %v", "/"+at, err), nil
	}
	if a != b {
		return fmt.Sprintf("%q has other attributes", "/"+at), nil
	}
	return "", nil
}

func attributesOf(fd int) (string, error) {
	names, err := listXattrs(func(b []byte) (int, error) { return unix.Flistxattr(fd, b) })
	if err != nil {
		return "", err
	}
	slices.Sort(names)
	var out strings.Builder
	value := make([]byte, 64<<10)
	for _, n := range names {
		if own(n) && n != opaqueXattr {
			continue
		}
		size, err := unix.Fgetxattr(fd, n, value)
		if err != nil {
			return "", refused("read attribute", err)
		}
		fmt.Fprintf(&out, "%q=%q;", n, value[:size])
	}
	return out.String(), nil
}

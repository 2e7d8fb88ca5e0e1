package layer

import (
	"archive/tar"
	"crypto/rand"
	"errors"
	"fmt"
	"path"

	"golang.org/x/sys/unix"
)

// hardLink makes base another name of what h links to. Links below the root of
// the layer only, and never to directories.
func (x *extractor) hardLink(base string, h *tar.Header) error {
	dir, name := path.Split(clean(h.Linkname))
	if name == "" {
		return fmt.Errorf("%w: it links to the root", ErrBad)
	}
	to, err := x.walk(dir, none)
	if err != nil {
		return err
	}
	if to.fd < 0 {
		return x.noTarget(h)
	}
	defer unix.Close(to.fd)
	var st unix.Stat_t
	err = unix.Fstatat(to.fd, name, &st, unix.AT_SYMLINK_NOFOLLOW)
	switch {
	case errors.Is(err, unix.ENOENT) || err == nil && x.mode == Alone && (isWhiteout(st) || x.pending.is(join(to.path, name), weak, strong)):
		return x.noTarget(h)
	case err != nil:
		return refused("look for what it links to", err)
	case st.Mode&unix.S_IFMT == unix.S_IFDIR:
		return fmt.Errorf("%w: it links to the directory %q", ErrBad, shortened(h.Linkname))
	}
	target, full := join(to.path, name), join(x.at.path, base)
	if target == full {
		return fmt.Errorf("%w: it links to itself", ErrBad)
	}
	var others []string
	if x.mode == Over && st.Nlink > 1 {
		if others, err = x.aliasesOf(st.Ino); err != nil {
			return err
		}
	}
	if _, err := x.clear(base, false); err != nil {
		return err
	}
	x.at.changed = true
	if err := unix.Linkat(to.fd, name, x.at.fd, base, 0); err != nil {
		return refused(fmt.Sprintf("link to %q", shortened(h.Linkname)), err)
	}
	return x.joinAliases(to.fd, name, st.Ino, target, others)
}

func (x *extractor) noTarget(h *tar.Header) error {
	if x.mode == Alone {
		return ErrNeedsLower
	}
	return fmt.Errorf("%w: it links to %q, which is not there", ErrBad, shortened(h.Linkname))
}

func isWhiteout(st unix.Stat_t) bool {
	return st.Mode&unix.S_IFMT == unix.S_IFCHR && st.Rdev == 0
}

// aliasesOf lists the names of a file below, found when they are first needed:
// overlayfs copies a file up under one name and leaves the others behind.
func (x *extractor) aliasesOf(inode uint64) ([]string, error) {
	if x.aliases == nil {
		x.aliases = map[uint64][]string{}
		if err := x.findAliases(x.root, ""); err != nil {
			return nil, err
		}
	}
	return x.aliases[inode], nil
}

func (x *extractor) findAliases(dir int, at string) error {
	names, err := children(dir)
	if err != nil {
		return err
	}
	for _, n := range names {
		var st unix.Stat_t
		if err := unix.Fstatat(dir, n, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
			return refused("look at a file below", err)
		}
		full := join(at, n)
		if st.Mode&unix.S_IFMT != unix.S_IFDIR {
			if st.Nlink > 1 {
				x.aliases[st.Ino] = append(x.aliases[st.Ino], full)
			}
			continue
		}
		fd, err := unix.Openat(dir, n, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
		if err != nil {
			return refused("open directory", err)
		}
		err = x.findAliases(fd, full)
		unix.Close(fd)
		if err != nil {
			return err
		}
	}
	return nil
}

// joinAliases makes the other names of a copied-up file names of the copy.
func (x *extractor) joinAliases(dir int, name string, inode uint64, target string, others []string) error {
	for _, o := range others {
		if o == target {
			continue
		}
		d, base := path.Split(o)
		at, err := x.walk(d, none)
		if err != nil {
			return err
		}
		if at.fd < 0 {
			continue
		}
		err = x.joinAlias(dir, name, inode, at.fd, base)
		unix.Close(at.fd)
		if err != nil {
			return err
		}
	}
	return nil
}

func (x *extractor) joinAlias(dir int, name string, inode uint64, to int, base string) error {
	var st, above, now unix.Stat_t
	if err := unix.Fstatat(to, base, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil || st.Ino != inode {
		return nil //nolint:nilerr // replaced by this layer since
	}
	if err := unix.Fstatat(dir, name, &now, unix.AT_SYMLINK_NOFOLLOW); err != nil || now.Ino == st.Ino && now.Dev == st.Dev {
		return refused("look at the linked file", err)
	}
	if err := unix.Fstat(to, &above); err != nil {
		return refused("look at directory", err)
	}
	tmp := ".berth-" + rand.Text()
	if err := unix.Linkat(dir, name, to, tmp, 0); err != nil {
		return refused("link another name", err)
	}
	if err := unix.Renameat(to, tmp, to, base); err != nil {
		return refused("link another name", err)
	}
	return restoreTimes(to, times(above))
}

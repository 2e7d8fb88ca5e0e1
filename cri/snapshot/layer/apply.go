package layer

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"

	"golang.org/x/sys/unix"
)

// Mode says on what a layer is applied.
type Mode string

// The modes.
const (
	// Bottom: nothing is below.
	Bottom Mode = "bottom"
	// Alone: layers are below, but are not to be seen; Settle follows.
	Alone Mode = "alone"
	// Over: the root is an overlay mounted over the layers below.
	Over Mode = "over"
)

// ErrNeedsLower says that a layer cannot be applied without the layers below it.
var ErrNeedsLower = errors.New("layer cannot be applied without the layers below it")

// Errors of a layer's content, by what is to be said of it.
var (
	// ErrBad: the layer is not what a layer may be.
	ErrBad = errors.New("invalid layer")
	// ErrLimit: the layer goes beyond what is taken, or beyond the file system.
	ErrLimit = errors.New("layer exceeds a limit")
)

const (
	whiteoutPrefix = ".wh."
	opaqueName     = ".wh..wh..opq"
	aufsPrefix     = ".wh..wh." // AUFS' own, which mean nothing elsewhere
	opaqueXattr    = "trusted.overlay.opaque"
	// maxPath bounds a path after links were resolved: longer ones cannot be named.
	maxPath = unix.PathMax - 1
	// maxLinks bounds the symbolic links followed on the way to one entry.
	maxLinks = 255
)

// extractor applies one layer.
type extractor struct {
	root    int
	mode    Mode
	at      *directory
	pending pending
	// touched are the paths of this layer and all directories above them; Over only.
	touched map[string]struct{}
	aliases map[uint64][]string // of files with several names, by inode; Over only
	buf     []byte
}

// Apply applies the tar stream r to the root of this process. admit is asked about
// each entry first. Pending is empty but for Alone.
func Apply(ctx context.Context, r io.Reader, mode Mode, admit func(*tar.Header) error) (Pending, error) {
	root, err := unix.Open("/", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open the layer's root: %w", err)
	}
	defer unix.Close(root)
	x := &extractor{root: root, mode: mode, pending: newPending(), touched: map[string]struct{}{}, buf: make([]byte, 256<<10)}
	if err := x.begin(); err != nil {
		return nil, err
	}
	tr := tar.NewReader(r)
	for {
		h, err := tr.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("%w: %w", ErrBad, err)
		}
		if ctx.Err() != nil {
			return nil, context.Cause(ctx)
		}
		if err := admit(h); err != nil {
			return nil, err
		}
		if err := x.entry(h, tr); err != nil {
			return nil, fmt.Errorf("entry %q: %w", shortened(h.Name), err)
		}
	}
	if err := x.leave(); err != nil {
		return nil, err
	}
	return x.pending.list(), nil
}

// begin gives the root what it has when the layer does not mention it.
func (x *extractor) begin() error {
	if x.mode == Over {
		return nil
	}
	if x.mode == Alone {
		if err := x.pending.add("", strong); err != nil {
			return err
		}
	}
	return restoreTimes(x.root, epoch())
}

func shortened(name string) string {
	if len(name) > 200 {
		return name[:200] + "..."
	}
	return name
}

// clean makes a name relative to the root and keeps it below: "/" and ".." at its
// beginning mean the root, as they would in a chroot.
func clean(name string) string { return strings.TrimPrefix(path.Clean("/"+name), "/") }

func (x *extractor) entry(h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeXGlobalHeader {
		return nil // comments, such as git archive writes
	}
	name := clean(h.Name)
	if name == "" {
		return x.rootEntry(h)
	}
	dir, base := path.Split(name)
	switch {
	case base == opaqueName:
		return x.opaque(dir)
	case strings.HasPrefix(base, aufsPrefix):
		return nil
	case strings.HasPrefix(base, whiteoutPrefix):
		return x.whiteout(dir, strings.TrimPrefix(base, whiteoutPrefix))
	case h.Typeflag == tar.TypeChar && h.Devmajor == 0 && h.Devminor == 0:
		// What overlayfs takes for a whiteout, and tools that pack its
		// directories forget to translate.
		return x.whiteout(dir, base)
	}
	if err := x.enter(dir, strong); err != nil {
		return err
	}
	if err := x.place(base, h, r); err != nil {
		return err
	}
	x.touch(join(x.at.path, base))
	return nil
}

// rootEntry takes what the layer says of its root.
func (x *extractor) rootEntry(h *tar.Header) error {
	if h.Typeflag != tar.TypeDir {
		return fmt.Errorf("%w: the root would be no directory", ErrBad)
	}
	if err := x.enter("", strong); err != nil {
		return err
	}
	x.pending.drop("")
	if err := x.dress(".", h, true); err != nil {
		return err
	}
	x.at.times = headerTimes(h)
	return nil
}

// place makes what h describes under the name base in the entered directory.
func (x *extractor) place(base string, h *tar.Header, r io.Reader) error {
	if h.Typeflag == tar.TypeLink {
		return x.hardLink(base, h)
	}
	cleared, err := x.clear(base, h.Typeflag == tar.TypeDir)
	if err != nil {
		return err
	}
	x.at.changed = true
	fd := x.at.fd
	switch h.Typeflag {
	case tar.TypeReg, tar.TypeCont, tar.TypeGNUSparse, '\x00':
		return x.file(base, h, r)
	case tar.TypeDir:
		if cleared == kept {
			return x.dress(base, h, true)
		}
		err = unix.Mkdirat(fd, base, 0o700)
		if err == nil && cleared == removed && x.mode == Alone {
			// What is below the removed one's name must not come back.
			err = unix.Lsetxattr(base, opaqueXattr, []byte("y"), 0)
		}
	case tar.TypeSymlink:
		err = unix.Symlinkat(h.Linkname, fd, base)
	case tar.TypeChar:
		err = unix.Mknodat(fd, base, unix.S_IFCHR|0o600, device(h))
	case tar.TypeBlock:
		err = unix.Mknodat(fd, base, unix.S_IFBLK|0o600, device(h))
	case tar.TypeFifo:
		err = unix.Mknodat(fd, base, unix.S_IFIFO|0o600, 0)
	default:
		return fmt.Errorf("%w: entries of type %q are unknown", ErrBad, h.Typeflag)
	}
	if err != nil {
		return refused("make it", err)
	}
	return x.dress(base, h, false)
}

func device(h *tar.Header) int {
	return int(unix.Mkdev(uint32(h.Devmajor), uint32(h.Devminor)))
}

// clearing is what was found under a name.
type clearing int

const (
	nothing clearing = iota
	kept             // a directory, and a directory is to be there
	removed          // something else
)

// clear makes room for an entry.
func (x *extractor) clear(base string, directory bool) (clearing, error) {
	var st unix.Stat_t
	err := unix.Fstatat(x.at.fd, base, &st, unix.AT_SYMLINK_NOFOLLOW)
	if errors.Is(err, unix.ENOENT) {
		return nothing, nil
	}
	if err != nil {
		return nothing, refused("look for what is there", err)
	}
	is := st.Mode & unix.S_IFMT
	full := join(x.at.path, base)
	if directory && is == unix.S_IFDIR {
		x.pending.drop(full)
		return kept, nil
	}
	x.at.changed = true
	if is != unix.S_IFDIR {
		x.pending.drop(full)
		return removed, refused("remove what was there", unix.Unlinkat(x.at.fd, base, 0))
	}
	x.pending.dropBelow(full)
	return removed, x.removeTree(base)
}

func join(dir, base string) string {
	if dir == "" {
		return base
	}
	return dir + "/" + base
}

// refused gives err of a system call the class it stands for.
func refused(what string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.ENAMETOOLONG), errors.Is(err, unix.EMLINK):
		return fmt.Errorf("%w: %s: %w", ErrLimit, what, err)
	}
	return fmt.Errorf("%s: %w", what, err)
}

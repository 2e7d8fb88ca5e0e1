package layer

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const xattrRecord = "SCHILY.xattr."

func times(st unix.Stat_t) [2]unix.Timespec { return [2]unix.Timespec{st.Atim, st.Mtim} }

// epoch is the time of what no layer says anything about.
func epoch() [2]unix.Timespec { return [2]unix.Timespec{} }

func headerTimes(h *tar.Header) [2]unix.Timespec {
	at := h.AccessTime
	if at.IsZero() {
		at = h.ModTime
	}
	return [2]unix.Timespec{timespec(at), timespec(h.ModTime)}
}

func timespec(t time.Time) unix.Timespec {
	return unix.Timespec{Sec: t.Unix(), Nsec: int64(t.Nanosecond())}
}

func restoreTimes(dir int, at [2]unix.Timespec) error {
	return refused("set times of directory", unix.UtimesNanoAt(dir, ".", at[:], 0))
}

// file writes a regular file.
func (x *extractor) file(base string, h *tar.Header, r io.Reader) error {
	fd, err := unix.Openat(x.at.fd, base, unix.O_WRONLY|unix.O_CREAT|unix.O_EXCL|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return refused("make it", err)
	}
	err = x.fill(fd, h, r)
	if err == nil {
		err = x.dress(base, h, false)
	}
	if cerr := unix.Close(fd); err == nil {
		err = refused("close it", cerr)
	}
	return err
}

// fill copies the content. Of a sparse entry what is zero becomes a hole.
func (x *extractor) fill(fd int, h *tar.Header, r io.Reader) error {
	sparse := h.Typeflag == tar.TypeGNUSparse || sparseRecords(h)
	var size int64
	for {
		n, err := io.ReadFull(r, x.buf)
		if n > 0 && !(sparse && zero(x.buf[:n])) {
			if err := writeAt(fd, x.buf[:n], size); err != nil {
				return err
			}
		}
		size += int64(n)
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) && size == h.Size {
			break
		}
		if err != nil {
			return fmt.Errorf("%w: its content ends early: %w", ErrBad, err)
		}
	}
	if size != h.Size {
		return fmt.Errorf("%w: it has %d bytes instead of %d", ErrBad, size, h.Size)
	}
	if !sparse {
		return nil
	}
	return refused("set its size", unix.Ftruncate(fd, size))
}

func sparseRecords(h *tar.Header) bool {
	for k := range h.PAXRecords {
		if strings.HasPrefix(k, "GNU.sparse.") {
			return true
		}
	}
	return false
}

func zero(b []byte) bool {
	for len(b) > 0 {
		n := min(len(b), len(zeros))
		if !bytes.Equal(b[:n], zeros[:n]) {
			return false
		}
		b = b[n:]
	}
	return true
}

var zeros [4096]byte

func writeAt(fd int, b []byte, off int64) error {
	for len(b) > 0 {
		n, err := unix.Pwrite(fd, b, off)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return refused("write it", err)
		}
		b, off = b[n:], off+int64(n)
	}
	return nil
}

// dress gives an object in the entered directory its owner, mode, attributes and
// times. clear says that it may have attributes already.
func (x *extractor) dress(base string, h *tar.Header, clear bool) error {
	if h.Uid < 0 || h.Gid < 0 || int64(h.Uid) >= math.MaxUint32 || int64(h.Gid) >= math.MaxUint32 {
		return fmt.Errorf("%w: owner %d:%d is out of range", ErrBad, h.Uid, h.Gid)
	}
	if err := unix.Fchownat(x.at.fd, base, h.Uid, h.Gid, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return refused("set its owner", err)
	}
	if h.Typeflag != tar.TypeSymlink {
		if err := unix.Fchmodat(x.at.fd, base, uint32(h.Mode)&0o7777, 0); err != nil {
			return refused("set its mode", err)
		}
	}
	if clear {
		if err := clearXattrs(base); err != nil {
			return err
		}
	}
	for key, value := range h.PAXRecords {
		if name, ok := strings.CutPrefix(key, xattrRecord); ok {
			if err := setXattr(base, name, value); err != nil {
				return err
			}
		}
	}
	at := headerTimes(h)
	return refused("set its times", unix.UtimesNanoAt(x.at.fd, base, at[:], unix.AT_SYMLINK_NOFOLLOW))
}

const (
	overlayXattr = "trusted.overlay."
	// escapedXattr is under what overlayfs (Linux 6.7) shows a file's own
	// trusted.overlay attributes; older kernels hide them.
	escapedXattr = overlayXattr + "overlay."
)

// onDisk is the name under which a layer's attribute is stored: empty for those
// that only the host may set. What steers overlayfs never comes from a layer.
func onDisk(name string) string {
	if name == "security.selinux" || name == "system.nfs4_acl" {
		return ""
	}
	if rest, ok := strings.CutPrefix(name, overlayXattr); ok {
		return escapedXattr + rest
	}
	return name
}

func setXattr(base, name, value string) error {
	stored := onDisk(name)
	if stored == "" {
		return nil
	}
	err := unix.Lsetxattr(base, stored, []byte(value), 0)
	switch {
	case err == nil, errors.Is(err, unix.ENOTSUP):
		return nil // as on any file system without attributes
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.E2BIG), errors.Is(err, unix.ERANGE):
		// The file system's limit for one file, not its free space.
		return fmt.Errorf("%w: attribute %q of %d bytes does not fit: %v", ErrLimit, shortened(name), len(value), err)
	}
	return fmt.Errorf("%w: attribute %q: %w", ErrBad, shortened(name), err)
}

// clearXattrs removes what an earlier entry set; overlayfs' own stay.
func clearXattrs(base string) error {
	names, err := listXattrs(func(b []byte) (int, error) { return unix.Llistxattr(base, b) })
	if err != nil {
		return err
	}
	for _, n := range names {
		if own(n) {
			continue
		}
		if err := unix.Lremovexattr(base, n); err != nil && !errors.Is(err, unix.ENODATA) {
			return refused("remove attribute", err)
		}
	}
	return nil
}

// own tells whether an attribute is the host's or overlayfs' own.
func own(name string) bool {
	return name == "security.selinux" || name == "system.nfs4_acl" ||
		strings.HasPrefix(name, overlayXattr) && !strings.HasPrefix(name, escapedXattr)
}

func listXattrs(list func([]byte) (int, error)) ([]string, error) {
	b := make([]byte, 64<<10)
	n, err := list(b)
	if errors.Is(err, unix.ENOTSUP) {
		return nil, nil
	}
	if err != nil {
		return nil, refused("list attributes", err)
	}
	return strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 }), nil
}

package image

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/cri/snapshot"
)

const (
	// maxArchiveEntries bounds what is remembered of an archive while reading it.
	maxArchiveEntries = 20_000
	// maxArchiveName bounds one name in it.
	maxArchiveName = 512
)

// filterArchive copies the image archive r to w entry by entry and fails at
// the first thing no image archive has: names that leave it, too many or too
// large entries, a document that occurs twice. Entry kinds other than files,
// directories and links are dropped. The importer behind it remembers names
// and parses documents, and trusts what it is given.
func filterArchive(r io.Reader, w io.Writer, maxBytes int64) error {
	plain, err := snapshot.Decompress(r)
	if err != nil {
		return codef(CodeBadArchive, "archive: %w", err)
	}
	in, out := tar.NewReader(plain), tar.NewWriter(w)
	f := archiveFilter{left: maxBytes, seen: map[string]bool{}}
	for {
		h, err := in.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return codef(CodeBadArchive, "archive is damaged or cut off: %w", err)
		}
		keep, err := f.admit(h)
		if err != nil {
			return err
		}
		if !keep {
			continue
		}
		clean := &tar.Header{Name: h.Name, Typeflag: h.Typeflag, Linkname: h.Linkname, Size: h.Size, Mode: 0o600}
		if err := out.WriteHeader(clean); err != nil {
			return fmt.Errorf("pass archive on: %w", err)
		}
		if _, err := io.Copy(out, in); err != nil {
			if errors.Is(err, io.ErrClosedPipe) {
				return err
			}
			return codef(CodeBadArchive, "archive is damaged or cut off in %q: %w", h.Name, err)
		}
	}
	if f.files == 0 {
		return codef(CodeBadArchive, "archive is empty, or no tar archive")
	}
	return out.Close()
}

type archiveFilter struct {
	left           int64
	entries, files int
	seen           map[string]bool
}

func (f *archiveFilter) admit(h *tar.Header) (bool, error) {
	f.entries++
	f.left -= max(h.Size, 0)
	name := path.Clean(h.Name)
	switch {
	case f.entries > maxArchiveEntries:
		return false, codef(CodeLimit, "archive has more than %d entries", maxArchiveEntries)
	case h.Size < 0 || f.left < 0:
		return false, codef(CodeLimit, "archive is larger than its limit")
	case len(h.Name) > maxArchiveName || len(h.Linkname) > maxArchiveName:
		return false, codef(CodeLimit, "archive has a name of more than %d bytes", maxArchiveName)
	case !inside(name):
		return false, codef(CodeBadArchive, "archive has an entry %q outside of itself", h.Name)
	}
	switch h.Typeflag {
	case tar.TypeReg:
		f.files++
	case tar.TypeSymlink:
		// Old docker archives link layers that images share.
		if !inside(path.Join(path.Dir(name), h.Linkname)) {
			return false, codef(CodeBadArchive, "archive has a link %q to outside of itself", h.Name)
		}
	default:
		return false, nil
	}
	if f.seen[name] {
		return false, codef(CodeBadArchive, "archive has %q twice", h.Name)
	}
	f.seen[name] = true
	if path.Ext(name) == ".json" && h.Size > maxConfig || name == "index.json" && h.Size > maxManifest {
		return false, codef(CodeLimit, "archive's %s has %d bytes", name, h.Size)
	}
	return true, nil
}

func inside(name string) bool {
	return filepath.IsLocal(name) && !strings.ContainsRune(name, 0)
}

// tarDir writes the regular files of an OCI layout directory to w as archive.
// Links are not followed.
func tarDir(ctx context.Context, dir string, w io.Writer) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return codef(CodeBadArchive, "open OCI layout: %w", err)
	}
	defer root.Close()
	out := tar.NewWriter(w)
	err = fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return tarFile(root, name, out)
	})
	if err != nil {
		return fmt.Errorf("read OCI layout: %w", err)
	}
	return out.Close()
}

func tarFile(root *os.Root, name string, out *tar.Writer) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if err := out.WriteHeader(&tar.Header{Name: name, Typeflag: tar.TypeReg, Size: st.Size(), Mode: 0o600}); err != nil {
		return err
	}
	_, err = io.Copy(out, io.LimitReader(f, st.Size()))
	return err
}

package container

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// The archive's files, as checkpointctl, CRI-O and containerd name them.
const (
	imagesDir   = "checkpoint"
	configFile  = "config.dump"
	specFile    = "spec.dump"
	statsFile   = "stats-dump"
	logFile     = "dump.log"
	bindsFile   = "bind.mounts"
	diffFile    = "rootfs-diff.tar"
	deletedFile = "deleted.files"
	opaqueMark  = ".wh..wh..opq"
)

// checkpointConfig is config.dump.
type checkpointConfig struct {
	ID             string    `json:"id"`
	Name           string    `json:"name"`
	RootfsImage    string    `json:"rootfsImage,omitempty"`
	RootfsImageRef string    `json:"rootfsImageRef,omitempty"`
	Runtime        string    `json:"runtime,omitempty"`
	Created        time.Time `json:"createdTime"`
	Checkpointed   time.Time `json:"checkpointedTime"`
}

// bind is one entry of bind.mounts.
type bind struct {
	Source      string `json:"source"`
	Destination string `json:"destination"`
	FileType    string `json:"file_type"`
	Permissions uint32 `json:"permissions"`
}

// archive writes a checkpoint's parts.
type archive struct {
	*tar.Writer
	ctx context.Context
}

// Write fails once the time is over, so that no part outlasts it.
func (a *archive) Write(p []byte) (int, error) {
	if err := a.ctx.Err(); err != nil {
		return 0, err
	}
	return a.Writer.Write(p)
}

// writeCheckpoint writes the archive of what CRIU has left in work.
func (s *Store) writeCheckpoint(ctx context.Context, c *container, work *os.Root, to io.Writer) error {
	a := &archive{Writer: tar.NewWriter(to), ctx: ctx}
	spec, err := os.ReadFile(filepath.Join(s.bundle(c.id), "config.json"))
	if err != nil {
		return err
	}
	rec, cfg := c.snapshot()
	config, err := json.Marshal(checkpointConfig{
		ID: c.id, Name: cfg.GetMetadata().GetName(), RootfsImage: cfg.GetImage().GetImage(), RootfsImageRef: rec.Image.Ref,
		Runtime: s.runtime(rec).Binary().Name, Created: rec.CreatedAt, Checkpointed: time.Now(),
	})
	if err != nil {
		return err
	}
	binds, err := bindMounts(spec)
	if err != nil {
		return err
	}
	for _, f := range []struct {
		name string
		body []byte
	}{{configFile, config}, {specFile, spec}, {bindsFile, binds}} {
		if err := a.bytes(f.name, f.body); err != nil {
			return err
		}
	}
	for _, name := range []string{statsFile, logFile} {
		if err := a.file(work, name, name); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	if err := a.images(work); err != nil {
		return err
	}
	if err := s.writeDiff(c, work, a); err != nil {
		return err
	}
	return a.Close()
}

func (a *archive) bytes(name string, b []byte) error {
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: int64(len(b)), ModTime: time.Now()}); err != nil {
		return err
	}
	_, err := a.Write(b)
	return err
}

// file adds the regular file at from in root.
func (a *archive) file(root *os.Root, from, name string) error {
	f, err := root.OpenFile(from, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !st.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", from)
	}
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o600, Size: st.Size(), ModTime: st.ModTime()}); err != nil {
		return err
	}
	return a.exactly(f, st.Size())
}

// exactly copies size bytes: a file that grows is cut, one that shrinks is filled
// with zeros.
func (a *archive) exactly(from io.Reader, size int64) error {
	n, err := io.Copy(a, io.LimitReader(from, size))
	if err != nil {
		return err
	}
	for zeros := make([]byte, 32<<10); n < size; {
		m, err := a.Write(zeros[:min(size-n, int64(len(zeros)))])
		if n += int64(m); err != nil {
			return err
		}
	}
	return nil
}

func (a *archive) images(work *os.Root) error {
	if err := a.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: imagesDir + "/", Mode: 0o700, ModTime: time.Now()}); err != nil {
		return err
	}
	entries, err := fs.ReadDir(work.FS(), "images")
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() {
			continue // links to the directory of an earlier dump, of which there is none
		}
		if err := a.file(work, "images/"+e.Name(), imagesDir+"/"+e.Name()); err != nil {
			return err
		}
	}
	return nil
}

// bindMounts tells what of the host is mounted in the container.
func bindMounts(spec []byte) ([]byte, error) {
	var s specs.Spec
	if err := json.Unmarshal(spec, &s); err != nil {
		return nil, fmt.Errorf("the specification is unreadable: %w", err)
	}
	all := []bind{}
	for _, m := range s.Mounts {
		if m.Type != "bind" && !slices.Contains(m.Options, "bind") && !slices.Contains(m.Options, "rbind") {
			continue
		}
		b := bind{Source: m.Source, Destination: m.Destination, FileType: "directory"}
		if st, err := os.Stat(m.Source); err == nil {
			b.Permissions = uint32(st.Mode().Perm())
			if !st.IsDir() {
				b.FileType = "file"
			}
		}
		all = append(all, b)
	}
	return json.Marshal(all)
}

// writeDiff adds what the container has changed in its root filesystem.
func (s *Store) writeDiff(c *container, work *os.Root, a *archive) error {
	upper, err := upperOf(s.rootfs(c.id))
	if err != nil || upper == "" {
		return err
	}
	root, err := os.OpenRoot(upper)
	if err != nil {
		return err
	}
	defer root.Close()
	f, err := work.OpenFile("diff", os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600) // a part's size stands before it
	if err != nil {
		return err
	}
	defer f.Close()
	d := &diff{archive: &archive{Writer: tar.NewWriter(f), ctx: a.ctx}, root: root}
	if err := fs.WalkDir(root.FS(), ".", d.add); err != nil {
		return err
	}
	if err := d.Close(); err != nil {
		return err
	}
	if err := a.file(work, "diff", diffFile); err != nil {
		return err
	}
	if len(d.deleted) == 0 {
		return nil
	}
	b, err := json.Marshal(d.deleted)
	if err != nil {
		return err
	}
	return a.bytes(deletedFile, b)
}

// upperOf finds the writable part of the overlay at rootfs; empty if it is none.
func upperOf(rootfs string) (string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(rootfs))
	if err != nil || len(mounts) == 0 || mounts[0].FSType != "overlay" {
		return "", err
	}
	for _, o := range strings.Split(mounts[0].VFSOptions, ",") {
		if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
			return dir, nil
		}
	}
	return "", nil
}

// diff is the tar of an overlay's writable part. The container changes it all
// the while: what has gone by the time it is read is left out.
type diff struct {
	*archive
	root    *os.Root
	deleted []string
}

func (d *diff) add(name string, e fs.DirEntry, err error) error {
	if errors.Is(err, os.ErrNotExist) || name == "." {
		return nil
	}
	if err == nil {
		err = d.ctx.Err()
	}
	if err != nil {
		return err
	}
	st, err := d.root.Lstat(name)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	sys := st.Sys().(*syscall.Stat_t)
	switch {
	case st.Mode()&fs.ModeCharDevice != 0 && sys.Rdev == 0:
		d.deleted = append(d.deleted, name)
		return nil
	case st.Mode()&(fs.ModeSocket|fs.ModeIrregular) != 0:
		return nil
	case st.Mode().IsRegular():
		return d.regular(name)
	}
	link := ""
	if st.Mode()&fs.ModeSymlink != 0 {
		if link, err = d.root.Readlink(name); err != nil {
			return err
		}
	}
	if err := d.header(st, name, link); err != nil || !st.IsDir() {
		return err
	}
	return d.opaque(name)
}

func (d *diff) header(st fs.FileInfo, name, link string) error {
	h, err := tar.FileInfoHeader(st, link)
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	if st.IsDir() {
		h.Name += "/"
	}
	return d.WriteHeader(h)
}

func (d *diff) regular(name string) error {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ELOOP) || errors.Is(err, unix.ENXIO) {
		return nil // it is another thing by now
	}
	if err != nil {
		return err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return err
	}
	if err := d.header(st, name, ""); err != nil {
		return err
	}
	return d.exactly(f, st.Size())
}

// opaque marks a directory that hides what the image has at its place.
func (d *diff) opaque(name string) error {
	f, err := d.root.OpenFile(name, os.O_RDONLY|unix.O_DIRECTORY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil // it is another thing by now
	}
	defer f.Close()
	v := make([]byte, 1)
	if n, err := unix.Fgetxattr(int(f.Fd()), "trusted.overlay.opaque", v); err != nil || n != 1 || v[0] != 'y' {
		return nil
	}
	return d.bytes(path.Join(name, opaqueMark), nil)
}

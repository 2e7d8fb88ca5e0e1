package image

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// refetch fetches one stored blob again, from the registry of an image that needs
// it, and puts it in the place of the damaged file.
func (v *verification) refetch(ctx context.Context, d digest.Digest) error {
	err := errors.New("no image that needs it came from a registry")
	for _, e := range v.index.Load().byID {
		if !slices.Contains(e.parsed.blobs, d) {
			continue
		}
		desc, ok := v.describe(e, d)
		for _, name := range e.records {
			named, perr := parseRef(name)
			if !ok || perr != nil || strings.HasPrefix(name, idPrefix) {
				continue
			}
			r, rerr := v.openRemote(ctx, named, Auth{})
			if rerr != nil {
				return rerr
			}
			dl := &download{Store: v.Store, named: named, remote: r, tracker: newTracker(name)}
			if err = dl.replace(ctx, desc); err == nil || ctx.Err() != nil {
				return err
			}
		}
	}
	return err
}

// describe finds the descriptor of one of an image's blobs.
func (s *Store) describe(e *entry, d digest.Digest) (ocispec.Descriptor, bool) {
	for _, l := range e.parsed.layers {
		if l.Digest == d {
			return l, true
		}
	}
	for _, k := range e.parsed.documents {
		if k.Digest == d {
			return k, true
		}
	}
	return ocispec.Descriptor{}, false
}

// replace fetches a blob into a file of its own and renames that over the damaged
// one: the database knows nothing of it.
func (d *download) replace(ctx context.Context, desc ocispec.Descriptor) error {
	if err := d.downloads.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer d.downloads.Release(1)
	path := d.dbs.blobPath(desc.Digest.Algorithm().String(), desc.Digest.Encoded())
	f, err := newBlobFile(filepath.Join(d.dbs.root, repairDir), path, desc.Digest.Algorithm())
	if err != nil {
		return err
	}
	defer f.discard()
	b := &blobFetch{download: d, desc: desc, w: f, wrong: map[string]bool{}, broke: map[string]bool{}}
	return b.run(ctx)
}

// blobFile is a blob on its way to the place of a damaged one.
type blobFile struct {
	*os.File
	path string
	hash digest.Digester
}

// repairDir, in the store's root, holds blobs that are fetched again.
const repairDir = "repair"

func newBlobFile(dir, path string, algorithm digest.Algorithm) (*blobFile, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make room for a blob: %w", err)
	}
	f, err := os.CreateTemp(dir, "blob-")
	if err != nil {
		return nil, fmt.Errorf("make room for a blob: %w", err)
	}
	return &blobFile{File: f, path: path, hash: algorithm.Digester()}, nil
}

// Write adds to the blob.
func (f *blobFile) Write(p []byte) (int, error) {
	n, err := f.File.Write(p)
	f.hash.Hash().Write(p[:n])
	return n, err
}

// Truncate begins again; size is 0.
func (f *blobFile) Truncate(size int64) error {
	f.hash.Hash().Reset()
	_, err := f.Seek(size, 0)
	return errors.Join(err, f.File.Truncate(size))
}

// Digest is of what was written so far.
func (f *blobFile) Digest() digest.Digest { return f.hash.Digest() }

// Commit puts the blob in its place, synced.
func (f *blobFile) Commit(context.Context, int64, digest.Digest, ...content.Opt) error {
	if err := errors.Join(f.Sync(), f.Chmod(0o444)); err != nil {
		return err
	}
	failpoint.Hit("cri/image/repair-blob")
	err := os.Rename(f.Name(), f.path)
	failpoint.Hit("cri/image/repair-blob-done")
	return errors.Join(err, syncDir(filepath.Dir(f.path)))
}

func (f *blobFile) discard() {
	_ = f.Close()
	_ = os.Remove(f.Name()) // renamed away if it was committed
}

func syncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// unpackAnew unpacks a stored layer beside itself, from the blob of an image that
// has it.
func (v *verification) unpackAnew(ctx context.Context, i snapshots.Info) (staged, error) {
	for _, e := range v.index.Load().byID {
		n := slices.Index(e.parsed.chain(), digest.Digest(i.Name))
		if n < 0 {
			continue
		}
		dirs, err := v.chainDirs(ctx, e.parsed)
		if err != nil {
			return staged{}, err
		}
		job := layerJob{blob: e.parsed.layers[n], diffID: e.parsed.diffIDs[n], chain: digest.Digest(i.Name), tracker: newTracker(i.Name)}
		if n > 0 {
			job.parent = e.parsed.chain()[n-1]
		}
		st, err := v.stage(ctx, job)
		if err == nil && n > 0 {
			if err = snapshot.Settle(ctx, st.job.Upper, dirs[len(dirs)-n:], st.pending); err != nil {
				v.dropLayer(ctx, st.key)
			}
		}
		if errors.Is(err, layer.ErrNeedsLower) {
			return v.unpackOver(ctx, job)
		}
		if err != nil {
			return staged{}, err
		}
		return st, nil
	}
	return staged{}, errors.New("no image has it")
}

// layer reports a damaged layer, and mends it.
func (v *verification) layer(ctx context.Context, i snapshots.Info, why string, again staged, all []snapshots.Info) error {
	d := Damage{Digest: i.Name, Why: "unpacked layer: " + why}
	for _, e := range v.index.Load().byID {
		if slices.Contains(e.parsed.chain(), digest.Digest(i.Name)) {
			d.Images = append(d.Images, e.records...)
		}
	}
	slices.Sort(d.Images)
	defer func() { v.found = append(v.found, d) }()
	// A container is pinned to its layers under this lock, before it is mounted.
	v.indexMu.Lock()
	defer v.indexMu.Unlock()
	v.bad[i.Name] = true
	above := standing(i.Name, all)
	for _, ref := range v.rootfs.List() {
		if ref.Image == "" || slices.Contains(above, ref.Chain) {
			d.Why += "; container " + ref.Container + " stands on it: repair when that is gone"
			return nil
		}
	}
	switch {
	case !v.repair:
		d.Why += "; repair unpacks it again"
		return nil
	case again.key != "":
		d.Why += "; it was unpacked again"
		v.bad[i.Name] = false
		return exchange(again.job.Upper, i.Labels[upperLabel])
	}
	v.dropped = true
	d.Why += "; it is unpacked again when a container needs it" + v.dropChain(ctx, above)
	clear(v.parsed)
	return v.refreshLocked(ctx)
}

// standing lists chain and all layers that stand on it, lowest first.
func standing(chain string, all []snapshots.Info) []string {
	above := []string{chain}
	for n := 0; n < len(above); n++ {
		for _, i := range all {
			if i.Parent == above[n] {
				above = append(above, i.Name)
			}
		}
	}
	return above
}

// exchange puts a new layer in the place of a damaged one, at once and for good.
func exchange(sound, damaged string) error {
	failpoint.Hit("cri/image/repair-layer")
	err := unix.Renameat2(unix.AT_FDCWD, sound, unix.AT_FDCWD, damaged, unix.RENAME_EXCHANGE)
	failpoint.Hit("cri/image/repair-layer-done")
	if err != nil {
		return fmt.Errorf("put a layer in the place of a damaged one: %w", err)
	}
	return errors.Join(syncDir(filepath.Dir(damaged)), syncDir(filepath.Dir(sound)))
}

// dropChain removes layers, those above first; it says what went wrong.
func (s *Store) dropChain(ctx context.Context, above []string) string {
	for _, name := range slices.Backward(above) {
		if err := s.layers.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return "; it cannot be removed: " + strings.TrimSpace(err.Error())
		}
	}
	return ""
}

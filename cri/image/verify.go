package image

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/continuity/fs"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Damage is a piece of stored content that is not what it was.
type Damage struct {
	// Digest is of the blob, or the chain ID of the unpacked layer.
	Digest string
	// Why says what differs, and what was done about it.
	Why string
	// Images are the names (or IDs) of the images that need the piece.
	Images []string
}

// Verify reads all stored content again, compares digests, and compares each
// unpacked layer with the size and number of files it had when it was made.
//
// Damage is dropped: an image whose manifest or configuration is damaged loses
// its names, so that it is pulled again; a damaged layer blob is fetched by the
// next pull, and its image stays usable, for its unpacked layers are; a damaged
// unpacked layer is unpacked again by the next container, unless a container
// stands on it, which is only reported.
func (s *Store) Verify(ctx context.Context, progress func(Progress)) ([]Damage, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	if progress == nil {
		progress = func(Progress) {}
	}
	var blobs []content.Info
	p := Progress{Phase: PhaseVerifying}
	err := s.content.Walk(ctx, func(i content.Info) error {
		blobs = append(blobs, i)
		p.Total += i.Size
		return nil
	})
	if err != nil {
		return nil, failed("verify images", "", fmt.Errorf("list content: %w", err))
	}
	var out []Damage
	for _, b := range blobs {
		why, err := s.verifyBlob(ctx, b)
		if err != nil {
			return out, failed("verify images", "", err)
		}
		if why != "" {
			d, err := s.dropBlob(ctx, b.Digest, why)
			if err != nil {
				return out, failed("verify images", "", err)
			}
			out = append(out, d)
		}
		p.Done += b.Size
		progress(p)
	}
	blobsDamaged := len(out) > 0
	layers, err := s.verifyLayers(ctx)
	out = append(out, layers...)
	if err == nil && blobsDamaged {
		err = s.namesChanged(ctx)
	}
	if err == nil && len(layers) > 0 {
		err = s.cleanLayers(ctx)
	}
	p.Phase = PhaseDone
	progress(p)
	return out, failed("verify images", "", err)
}

// verifyBlob tells what is wrong with a blob; empty for nothing.
func (s *Store) verifyBlob(ctx context.Context, i content.Info) (string, error) {
	ra, err := s.content.ReaderAt(ctx, ocispec.Descriptor{Digest: i.Digest, Size: i.Size})
	if errdefs.IsNotFound(err) {
		if _, err := s.content.Info(ctx, i.Digest); errdefs.IsNotFound(err) {
			return "", nil // removed meanwhile
		}
		return "the file is missing", nil
	}
	if err != nil {
		return "", fmt.Errorf("open %s: %w", i.Digest, err)
	}
	defer ra.Close()
	hash := i.Digest.Algorithm().Digester()
	_, err = io.Copy(hash.Hash(), &endingReader{ctx: ctx, r: content.NewReader(ra)})
	if ctx.Err() != nil {
		return "", context.Cause(ctx)
	}
	if err != nil {
		return "the file cannot be read: " + err.Error(), nil
	}
	if got := hash.Digest(); got != i.Digest {
		return "the file has digest " + got.String(), nil
	}
	return "", nil
}

// endingReader ends with ctx.
type endingReader struct {
	ctx context.Context
	r   io.Reader
}

func (e *endingReader) Read(p []byte) (int, error) {
	if e.ctx.Err() != nil {
		return 0, e.ctx.Err()
	}
	return e.r.Read(p)
}

// dropBlob removes a damaged blob, and the names of images that cannot be read without it.
func (s *Store) dropBlob(ctx context.Context, d digest.Digest, why string) (Damage, error) {
	dmg := Damage{Digest: d.String(), Why: why}
	var names []string
	for _, e := range s.index.Load().byID {
		if !slices.Contains(e.parsed.blobs, d) {
			continue
		}
		dmg.Images = append(dmg.Images, e.records...)
		if !slices.ContainsFunc(e.parsed.layers, func(l ocispec.Descriptor) bool { return l.Digest == d }) {
			names = append(names, e.records...)
		}
	}
	slices.Sort(dmg.Images)
	if err := s.dropNames(ctx, names); err != nil {
		return dmg, err
	}
	// The file first: the database removes it only with the next collection,
	// and until then a pull would find it and take it for good.
	failpoint.Hit("cri/image/verify-blob")
	err := s.dbs.blobs.Delete(ctx, d)
	if err != nil && !errdefs.IsNotFound(err) {
		return dmg, fmt.Errorf("remove damaged content %s: %w", d, err)
	}
	if err := s.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		return dmg, fmt.Errorf("forget damaged content %s: %w", d, err)
	}
	failpoint.Hit("cri/image/verify-blob-done")
	if len(names) > 0 {
		dmg.Why += "; the image is to be pulled again"
	} else {
		dmg.Why += "; it is fetched again by the next pull"
	}
	return dmg, nil
}

// verifyLayers compares unpacked layers with what was recorded of them.
func (s *Store) verifyLayers(ctx context.Context) ([]Damage, error) {
	var all []snapshots.Info
	err := s.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			all = append(all, i)
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list layers: %w", err)
	}
	bad := map[string]string{}
	for _, i := range all {
		want, err := s.layers.Usage(ctx, i.Name)
		if err != nil {
			continue // removed meanwhile
		}
		var why string
		got, err := fs.DiskUsage(ctx, i.Labels[upperLabel])
		switch {
		case ctx.Err() != nil:
			return nil, context.Cause(ctx)
		case err != nil:
			why = "it cannot be read: " + err.Error()
		case got.Size != want.Size || got.Inodes != want.Inodes:
			why = fmt.Sprintf("it had %d bytes in %d files when it was unpacked, and has %d in %d", want.Size, want.Inodes, got.Size, got.Inodes)
		default:
			continue
		}
		bad[i.Name] = "unpacked layer: " + why
	}
	if len(bad) == 0 {
		return nil, nil
	}
	return s.dropChains(ctx, bad, all)
}

// dropChains removes damaged layers under the index's lock, and forgets their
// directories before a container can be given them.
func (s *Store) dropChains(ctx context.Context, bad map[string]string, all []snapshots.Info) ([]Damage, error) {
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	var out []Damage
	for _, name := range slices.Sorted(maps.Keys(bad)) {
		out = append(out, s.dropChain(ctx, name, bad[name], all))
	}
	clear(s.parsed)
	return out, s.refreshLocked(ctx)
}

// dropChain removes a damaged unpacked layer and those above it, topmost first.
func (s *Store) dropChain(ctx context.Context, chain, why string, all []snapshots.Info) Damage {
	d := Damage{Digest: chain, Why: why}
	for _, e := range s.index.Load().byID {
		if slices.Contains(e.parsed.chain(), digest.Digest(chain)) {
			d.Images = append(d.Images, e.records...)
		}
	}
	slices.Sort(d.Images)
	above := []string{chain}
	for n := 0; n < len(above); n++ {
		for _, i := range all {
			if i.Parent == above[n] {
				above = append(above, i.Name)
			}
		}
	}
	for _, ref := range s.rootfs.List() {
		if ref.Image == "" || slices.Contains(above, ref.Chain) {
			d.Why += "; container " + ref.Container + " stands on it, so it was kept: verify again when that is gone"
			return d
		}
	}
	for _, name := range slices.Backward(above) {
		if err := s.layers.Remove(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			d.Why += "; it cannot be removed: " + strings.TrimSpace(err.Error())
			return d
		}
	}
	d.Why += "; it is unpacked again when a container needs it"
	return d
}

// cleanLayers removes the files of layers that were removed.
func (s *Store) cleanLayers(ctx context.Context) error {
	if c, ok := s.dbs.layers.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

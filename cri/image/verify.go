package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"

	"github.com/berthd/berth/cri/snapshot/layer"
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

// Verify reads all stored content again and compares digests, and unpacks each
// layer again beside what is unpacked, and compares the trees: content, owners,
// modes, times and attributes. Nothing is changed unless repair is set.
//
// Repair fetches a damaged blob again, it alone, from where its image came from,
// and puts a layer that was unpacked anew in the place of a damaged one. What
// containers stand on is only reported. Of what cannot be had again, an image
// whose manifest or configuration is damaged loses its names, so that it is pulled
// when next asked for, and a layer's blob is fetched by that pull.
func (s *Store) Verify(ctx context.Context, repair bool, progress func(Progress)) ([]Damage, error) {
	ctx = namespaces.WithNamespace(ctx, namespace)
	if progress == nil {
		progress = func(Progress) {}
	}
	v := &verification{Store: s, repair: repair, report: progress, bad: map[string]bool{}}
	err := s.leased(ctx, func(ctx context.Context) error {
		if err := v.blobs(ctx); err != nil {
			return err
		}
		return v.layers(ctx)
	})
	if v.changed {
		err = errors.Join(err, s.namesChanged(ctx))
	}
	if v.dropped {
		err = errors.Join(err, s.cleanLayers(ctx))
	}
	if err == nil {
		v.progress.Phase = PhaseDone
	}
	progress(v.progress)
	return v.found, failed("verify images", "", err)
}

// verification is one Verify.
type verification struct {
	*Store
	repair   bool
	report   func(Progress)
	progress Progress
	found    []Damage
	bad      map[string]bool // layers that are damaged, and those on them
	changed  bool            // names or content
	dropped  bool            // layers
}

// blobs verifies stored content.
func (v *verification) blobs(ctx context.Context) error {
	var blobs []content.Info
	v.progress.Phase = PhaseVerifying
	err := v.content.Walk(ctx, func(i content.Info) error {
		blobs = append(blobs, i)
		v.progress.Total += i.Size
		return nil
	})
	if err != nil {
		return fmt.Errorf("list content: %w", err)
	}
	for _, b := range blobs {
		why, err := v.verifyBlob(ctx, b)
		if err != nil {
			return err
		}
		if why != "" {
			if err := v.blob(ctx, b.Digest, why); err != nil {
				return err
			}
		}
		v.progress.Done += b.Size
		v.report(v.progress)
	}
	return nil
}

// blob reports a damaged blob, and mends it.
func (v *verification) blob(ctx context.Context, d digest.Digest, why string) error {
	dmg := Damage{Digest: d.String(), Why: why, Images: v.namesOf(d)}
	defer func() { v.found = append(v.found, dmg) }()
	if !v.repair {
		dmg.Why += "; repair fetches it again"
		return nil
	}
	v.changed = true
	err := v.refetch(ctx, d)
	if err == nil {
		dmg.Why += "; it was fetched again"
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	dmg.Why += fmt.Sprintf("; it cannot be fetched again (%v)", err)
	text, err := v.dropBlob(ctx, d)
	dmg.Why += text
	return err
}

// namesOf lists the names of the images that need a blob.
func (s *Store) namesOf(d digest.Digest) []string {
	var names []string
	for _, e := range s.index.Load().byID {
		if slices.Contains(e.parsed.blobs, d) {
			names = append(names, e.records...)
		}
	}
	slices.Sort(names)
	return names
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

// dropBlob removes a damaged blob, and the names of images that cannot be read
// without it. It says what that means.
func (s *Store) dropBlob(ctx context.Context, d digest.Digest) (string, error) {
	var names []string
	for _, e := range s.index.Load().byID {
		layer := slices.ContainsFunc(e.parsed.layers, func(l ocispec.Descriptor) bool { return l.Digest == d })
		if slices.Contains(e.parsed.blobs, d) && !layer {
			names = append(names, e.records...)
		}
	}
	if err := s.dropNames(ctx, names); err != nil {
		return "", err
	}
	// The file first: the database removes it only with the next collection,
	// and until then a pull would find it and take it for good.
	failpoint.Hit("cri/image/verify-blob")
	err := s.dbs.blobs.Delete(ctx, d)
	if err != nil && !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("remove damaged content %s: %w", d, err)
	}
	if err := s.content.Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
		return "", fmt.Errorf("forget damaged content %s: %w", d, err)
	}
	failpoint.Hit("cri/image/verify-blob-done")
	if len(names) > 0 {
		return "; the image is to be pulled or imported again", nil
	}
	return "; the next pull or import brings it again", nil
}

// layers compares unpacked layers with what their blobs say.
func (v *verification) layers(ctx context.Context) error {
	var all []snapshots.Info
	err := v.Store.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			all = append(all, i)
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("list layers: %w", err)
	}
	// A layer takes after those below it: these come first, and what stands on a
	// damaged one is not looked at before that is mended.
	for _, i := range bottomUp(all) {
		if v.bad[i.Parent] {
			v.bad[i.Name] = true
			continue
		}
		why, again, err := v.verifyLayer(ctx, i)
		if err == nil && why != "" {
			err = v.layer(ctx, i, why, again, all)
		}
		if again.key != "" {
			v.dropLayer(ctx, again.key)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// bottomUp orders layers so that each comes after the one it stands on.
func bottomUp(all []snapshots.Info) []snapshots.Info {
	above := map[string][]snapshots.Info{}
	for _, i := range all {
		above[i.Parent] = append(above[i.Parent], i)
	}
	out := slices.Clone(above[""])
	for n := 0; n < len(out); n++ {
		out = append(out, above[out[n].Name]...)
	}
	return out
}

// verifyLayer tells what is wrong with an unpacked layer; empty for nothing. Where
// its blob is sound it is compared with again, the layer unpacked anew, which is
// the caller's to drop; otherwise with the sizes that were recorded.
func (v *verification) verifyLayer(ctx context.Context, i snapshots.Info) (why string, again staged, err error) {
	again, err = v.unpackAnew(ctx, i)
	if err == nil {
		why, err = layer.Difference(ctx, again.job.Upper, i.Labels[upperLabel])
		if err != nil && ctx.Err() == nil {
			err = fmt.Errorf("compare layer %s: %w", i.Name, err)
		}
		return why, again, err
	}
	if ctx.Err() != nil {
		return "", again, context.Cause(ctx)
	}
	v.log.Info("an unpacked layer is compared by size only", "layer", i.Name, "err", err)
	want, err := v.Store.layers.Usage(ctx, i.Name)
	if err != nil {
		return "", again, nil //nolint:nilerr // removed meanwhile
	}
	got, err := fs.DiskUsage(ctx, i.Labels[upperLabel])
	switch {
	case ctx.Err() != nil:
		return "", again, context.Cause(ctx)
	case err != nil:
		return "it cannot be read: " + err.Error(), again, nil
	case got.Size != want.Size || got.Inodes != want.Inodes:
		return fmt.Sprintf("it had %d bytes in %d files when it was unpacked, and has %d in %d", want.Size, want.Inodes, got.Size, got.Inodes), again, nil
	}
	return "", again, nil
}

// cleanLayers removes the files of layers that were removed.
func (s *Store) cleanLayers(ctx context.Context) error {
	if c, ok := s.dbs.layers.(snapshots.Cleaner); ok {
		return c.Cleanup(ctx)
	}
	return nil
}

package image

import (
	"context"
	"fmt"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
)

// download is one pull of one image.
type download struct {
	*Store
	named   reference.Named
	remote  *remote
	tracker *tracker
}

func (s *Store) pull(ctx context.Context, named reference.Named, auth Auth, t *tracker) (img Image, err error) {
	t.mu.Lock()
	t.ref = named.String()
	t.mu.Unlock()
	r, err := s.openRemote(ctx, named, auth)
	if err != nil {
		return Image{}, err
	}
	desc, err := r.resolve(ctx)
	if err != nil {
		return Image{}, err
	}
	if err := checkSize(desc, maxManifest); err != nil {
		return Image{}, err
	}
	d := &download{Store: s, named: named, remote: r, tracker: t}
	err = s.leased(ctx, func(ctx context.Context) error {
		p, err := d.fetchImage(ctx, desc)
		if err != nil {
			return err
		}
		img, err = s.nameImage(ctx, p, desc, d.recordNames(desc))
		return err
	})
	return img, err
}

// fetchImage fetches manifests and configuration, then layers in parallel,
// each unpacked as soon as it and all below it are there.
func (d *download) fetchImage(ctx context.Context, desc ocispec.Descriptor) (*parsed, error) {
	if err := d.fetchManifests(ctx, desc); err != nil {
		return nil, err
	}
	p, err := readImage(ctx, d.content, desc)
	if err != nil {
		return nil, err
	}
	if p.size > d.cfg.MaxImageSize {
		return nil, codef(CodeLimit, "image has %d bytes, at most %d are fetched", p.size, d.cfg.MaxImageSize)
	}
	d.tracker.expect(p.layers)
	group, gctx := errgroup.WithContext(ctx)
	stored := d.fetchLayers(gctx, group, p.layers)
	group.Go(func() error {
		return d.unpackImage(gctx, p, d.tracker, func(ctx context.Context, i int) error {
			select {
			case <-stored[p.layers[i].Digest]:
				return nil
			case <-ctx.Done():
				return context.Cause(ctx)
			}
		})
	})
	if err := group.Wait(); err != nil {
		return nil, err
	}
	return p, d.labelConfig(ctx, p)
}

// fetchLayers starts a fetch of each layer in group; the channel under its
// digest closes when it is stored.
func (d *download) fetchLayers(ctx context.Context, group *errgroup.Group, layers []ocispec.Descriptor) map[digest.Digest]chan struct{} {
	stored := map[digest.Digest]chan struct{}{}
	for _, l := range layers {
		if stored[l.Digest] != nil {
			continue
		}
		done := make(chan struct{})
		stored[l.Digest] = done
		group.Go(func() error {
			if err := d.downloads.Acquire(ctx, 1); err != nil {
				return context.Cause(ctx)
			}
			defer d.downloads.Release(1)
			if err := d.fetch(ctx, l); err != nil {
				return fmt.Errorf("fetch layer %s: %w", l.Digest, err)
			}
			d.tracker.layer(l.Digest.String(), func(lp *LayerProgress) { lp.Done, lp.Phase = lp.Total, PhaseWaiting })
			close(done)
			return nil
		})
	}
	return stored
}

// fetchManifests fetches desc, and on from an index the manifest for this
// machine, with its configuration, and links each to what it leads to.
func (d *download) fetchManifests(ctx context.Context, desc ocispec.Descriptor) error {
	for depth := 0; ; depth++ {
		if depth > 3 {
			return codef(CodeBadImage, "indexes nest too deeply")
		}
		if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
			return codef(CodeBadImage, "%s is %q, which is no image", desc.Digest, desc.MediaType)
		}
		if err := checkSize(desc, maxManifest); err != nil {
			return err
		}
		if err := d.fetch(ctx, desc); err != nil {
			return fmt.Errorf("fetch manifest %s: %w", desc.Digest, err)
		}
		children, err := d.link(ctx, desc)
		if err != nil {
			return err
		}
		if images.IsIndexType(desc.MediaType) {
			if desc, err = choose(ctx, d.content, desc); err != nil {
				return err
			}
			continue
		}
		if len(children) == 0 || !images.IsConfigType(children[0].MediaType) {
			return codef(CodeBadImage, "manifest %s has no image configuration", desc.Digest)
		}
		if err := checkSize(children[0], maxConfig); err != nil {
			return err
		}
		return d.fetch(ctx, children[0])
	}
}

// link labels stored content with what it refers to, for the garbage
// collector, and returns that: of an index what suits this machine.
func (s *Store) link(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
	match := platforms.Default()
	h := images.HandlerFunc(images.ChildrenHandler(s.content))
	if images.IsIndexType(desc.MediaType) {
		h = images.LimitManifests(images.FilterPlatforms(h, match), match, 1)
	}
	children, err := images.SetChildrenMappedLabels(s.content, h, images.ChildGCLabels)(ctx, desc)
	if err != nil && !errdefs.IsNotFound(err) {
		return nil, codef(CodeBadImage, "%s: %w", desc.Digest, err)
	}
	return children, err
}

// labelConfig makes the image's configuration keep its layers.
func (s *Store) labelConfig(ctx context.Context, p *parsed) error {
	top := p.top()
	if top == "" {
		return nil
	}
	failpoint.Hit("cri/image/config-label")
	_, err := s.content.Update(ctx, content.Info{
		Digest: digest.Digest(p.id), Labels: map[string]string{snapshotGCLabel: top.String()},
	}, "labels."+snapshotGCLabel)
	failpoint.Hit("cri/image/config-label-done")
	if err != nil {
		return fmt.Errorf("label configuration: %w", err)
	}
	return nil
}

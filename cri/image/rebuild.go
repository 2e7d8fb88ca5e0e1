package image

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// rebuild fills an empty image database from stored content: first what the
// copy of the names lists, then every manifest found, by its ID. Layers are
// unpacked again when a container first needs them. What cannot be rebuilt is
// logged and left; nothing here fails the start.
func (s *Store) rebuild(ctx context.Context) {
	if err := s.adoptBlobs(ctx); err != nil {
		s.log.Warn("cannot take stored content over", "err", err)
	}
	for _, n := range s.readNames() {
		if _, err := s.adopt(ctx, n.Target); err != nil {
			s.log.Warn("image cannot be rebuilt, pull it again", "image", n.Name, "err", err)
			continue
		}
		rec := images.Image{Name: n.Name, Target: n.Target}
		if n.Pinned {
			rec.Labels = map[string]string{pinLabel: "1"}
		}
		if err := s.putName(ctx, rec); err != nil {
			s.log.Warn("image name cannot be rebuilt", "image", n.Name, "err", err)
		}
	}
	if err := s.adoptManifests(ctx); err != nil {
		s.log.Warn("cannot search stored content for images", "err", err)
	}
}

func (s *Store) readNames() []nameCopy {
	b, err := os.ReadFile(filepath.Join(s.cfg.Root, "names.json"))
	if err != nil {
		return nil
	}
	var list []nameCopy
	if err := json.Unmarshal(b, &list); err != nil {
		s.log.Warn("copy of the image names is damaged: images keep their IDs only", "err", err)
		return nil
	}
	return list
}

// adoptBlobs makes the database know all blobs on disk. A blob is not read for
// that: writing one that exists commits at once.
func (s *Store) adoptBlobs(ctx context.Context) error {
	var found []content.Info
	err := s.dbs.blobs.Walk(ctx, func(i content.Info) error {
		found = append(found, i)
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range found {
		desc := ocispec.Descriptor{Digest: i.Digest, Size: i.Size}
		w, err := s.content.Writer(ctx, content.WithRef("adopt-"+i.Digest.String()), content.WithDescriptor(desc))
		if err == nil {
			err = w.Commit(ctx, i.Size, i.Digest)
			w.Close()
		}
		if err != nil && !errdefs.IsAlreadyExists(err) {
			s.log.Warn("content cannot be taken over", "digest", i.Digest, "err", err)
		}
	}
	return nil
}

// adopt links an image's content again.
func (s *Store) adopt(ctx context.Context, target ocispec.Descriptor) (*parsed, error) {
	p, err := readImage(ctx, s.content, target)
	if err != nil {
		return nil, err
	}
	for _, l := range p.layers {
		if _, err := s.content.Info(ctx, l.Digest); err != nil {
			return nil, fmt.Errorf("layer %s: %w", l.Digest, err)
		}
	}
	desc := target
	for images.IsIndexType(desc.MediaType) {
		if _, err := s.link(ctx, desc); err != nil {
			return nil, err
		}
		if desc, err = choose(ctx, s.content, desc); err != nil {
			return nil, err
		}
	}
	if _, err := s.link(ctx, desc); err != nil {
		return nil, err
	}
	return p, s.labelConfig(ctx, p)
}

// adoptManifests names every complete image that has no name by its ID.
func (s *Store) adoptManifests(ctx context.Context) error {
	if err := s.refresh(ctx); err != nil {
		return err
	}
	var small []content.Info
	err := s.content.Walk(ctx, func(i content.Info) error {
		if i.Size <= maxManifest {
			small = append(small, i)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, i := range small {
		desc := ocispec.Descriptor{Digest: i.Digest, Size: i.Size}
		b, err := content.ReadBlob(ctx, s.content, desc)
		if err != nil {
			continue
		}
		if desc.MediaType = manifestType(b); desc.MediaType == "" {
			continue
		}
		p, err := s.adopt(ctx, desc)
		if err != nil || s.index.Load().byID[p.id] != nil {
			continue
		}
		if err := s.putName(ctx, images.Image{Name: string(p.id), Target: desc}); err != nil {
			s.log.Warn("image cannot be rebuilt", "image", p.id, "err", err)
		}
	}
	return nil
}

// manifestType is the media type of b if it looks like an image's manifest.
func manifestType(b []byte) string {
	var m ocispec.Manifest
	if json.Unmarshal(b, &m) != nil || m.SchemaVersion != 2 || m.Config.Digest == "" || m.Layers == nil {
		return ""
	}
	if m.MediaType == "" {
		return ocispec.MediaTypeImageManifest
	}
	if images.IsManifestType(m.MediaType) {
		return m.MediaType
	}
	return ""
}

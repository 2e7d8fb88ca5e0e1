package image

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// maxManifest and maxConfig bound what is parsed in this process.
	maxManifest = 4 << 20
	maxConfig   = 8 << 20
	// maxLayers is more than overlayfs stacks on any kernel in use.
	maxLayers = 500
	// pinLabel on a name's record keeps its image from being removed for space.
	pinLabel = "io.berth.pinned"
	// idPrefix begins the record name of an image without any other name.
	idPrefix = "sha256:"
)

// parsed is what a target descriptor leads to on this platform; it never changes.
type parsed struct {
	id       ID
	manifest digest.Digest
	config   ocispec.Image
	diffIDs  []digest.Digest
	layers   []ocispec.Descriptor
	blobs    []digest.Digest // all that is needed: index, manifest, config, layers
	// documents describe those of blobs that are no layers.
	documents []ocispec.Descriptor
	size      int64
	// dirs remembers the directories of the layers, topmost first; nil: look.
	dirs atomic.Pointer[[]string]
}

// chain gives the chain ID of each layer, lowest first.
func (p *parsed) chain() []digest.Digest {
	return identity.ChainIDs(slices.Clone(p.diffIDs))
}

// top is the chain ID of the topmost layer; empty without layers.
func (p *parsed) top() digest.Digest {
	if c := p.chain(); len(c) > 0 {
		return c[len(c)-1]
	}
	return ""
}

// entry is one image in the index.
type entry struct {
	Image
	parsed  *parsed
	records []string // names of its records in the image database
}

// index is an immutable view of all images; it is replaced as a whole.
type index struct {
	byID   map[ID]*entry
	byName map[string]*entry // record names
	byBlob map[digest.Digest]*entry
	list   []Image
}

// refresh reads the names again and replaces the index. Images whose content
// is not complete are left out: for their users they are not there, so that
// they are pulled again.
func (s *Store) refresh(ctx context.Context) error {
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	return s.refreshLocked(ctx)
}

func (s *Store) refreshLocked(ctx context.Context) error {
	records, err := s.names.List(ctx)
	if err != nil {
		return fmt.Errorf("list image names: %w", err)
	}
	ix := &index{byID: map[ID]*entry{}, byName: map[string]*entry{}, byBlob: map[digest.Digest]*entry{}}
	keep := map[digest.Digest]*parsed{}
	for _, rec := range records {
		p := s.parsed[rec.Target.Digest]
		if p == nil {
			if p, err = readImage(ctx, s.content, rec.Target); err != nil {
				s.log.Warn("image is not usable, pull it again", "image", rec.Name, "err", err)
				continue
			}
		}
		keep[rec.Target.Digest] = p
		ix.add(rec, p)
	}
	for _, e := range ix.byID {
		slices.Sort(e.RepoTags)
		slices.Sort(e.RepoDigests)
		ix.list = append(ix.list, e.Image)
	}
	slices.SortFunc(ix.list, func(a, b Image) int { return strings.Compare(string(a.ID), string(b.ID)) })
	s.parsed = keep
	s.index.Store(ix)
	s.usage.Store(nil)
	return nil
}

func (ix *index) add(rec images.Image, p *parsed) {
	e := ix.byID[p.id]
	if e == nil {
		uid, name := splitUser(p.config.Config.User)
		e = &entry{parsed: p, Image: Image{ID: p.id, Size: p.size, Config: p.config.Config, UID: uid, Username: name}}
		ix.byID[p.id] = e
	}
	e.records = append(e.records, rec.Name)
	e.Pinned = e.Pinned || rec.Labels[pinLabel] != ""
	switch {
	case strings.HasPrefix(rec.Name, idPrefix):
	case strings.Contains(rec.Name, "@"):
		e.RepoDigests = append(e.RepoDigests, rec.Name)
	default:
		e.RepoTags = append(e.RepoTags, rec.Name)
	}
	ix.byName[rec.Name] = e
	ix.byBlob[rec.Target.Digest] = e
	ix.byBlob[p.manifest] = e
}

// find resolves what a user or the CRI calls an image.
func (ix *index) find(ref string) *entry {
	if e := ix.byID[ID(ref)]; e != nil {
		return e
	}
	if d, err := digest.Parse(ref); err == nil {
		return ix.byBlob[d]
	}
	if named, err := parseRef(ref); err == nil {
		if e := ix.byName[named.String()]; e != nil {
			return e
		}
	}
	return ix.byPrefix(ref)
}

// byPrefix finds the one image whose ID begins so; at least two hex digits.
func (ix *index) byPrefix(ref string) *entry {
	hex := strings.TrimPrefix(ref, idPrefix)
	if len(hex) < 2 || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil
	}
	var found *entry
	for id, e := range ix.byID {
		if strings.HasPrefix(string(id), idPrefix+hex) {
			if found != nil {
				return nil
			}
			found = e
		}
	}
	return found
}

// Get finds an image by name ("busybox", "registry/name:tag", "name@digest"),
// by ID or a unique prefix of it, or by the digest of its manifest. An image
// that is not there is an *Error of CodeNotFound.
func (s *Store) Get(ref string) (Image, error) {
	if e := s.index.Load().find(ref); e != nil {
		return e.Image, nil
	}
	return Image{}, failed("get image", ref, codef(CodeNotFound, "not stored on this node: %w", errdefs.ErrNotFound))
}

// List returns all images by ID. The slice is shared: do not change it.
func (s *Store) List() []Image { return s.index.Load().list }

// parseRef normalizes a reference: docker.io and library/ are added, and the
// tag latest where neither tag nor digest is given. With both, the digest decides.
func parseRef(ref string) (reference.Named, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return nil, codef(CodeInvalidReference, "%w", err)
	}
	return named, nil
}

// readImage reads what target leads to on this machine's platform, and checks
// that it hangs together and that all content is there.
func readImage(ctx context.Context, cs content.Store, target ocispec.Descriptor) (*parsed, error) {
	p := &parsed{}
	desc := target
	for depth := 0; images.IsIndexType(desc.MediaType); depth++ {
		if depth > 2 {
			return nil, codef(CodeBadImage, "indexes nest too deeply")
		}
		if err := p.need(ctx, cs, desc, maxManifest); err != nil {
			return nil, err
		}
		next, err := choose(ctx, cs, desc)
		if err != nil {
			return nil, err
		}
		desc = next
	}
	if !images.IsManifestType(desc.MediaType) {
		return nil, codef(CodeBadImage, "%s is %q, which is no image manifest", desc.Digest, desc.MediaType)
	}
	if err := p.need(ctx, cs, desc, maxManifest); err != nil {
		return nil, err
	}
	p.manifest = desc.Digest
	children, err := images.Children(ctx, cs, desc)
	if err != nil {
		return nil, codef(CodeBadImage, "manifest %s: %w", desc.Digest, err)
	}
	if err := p.readConfig(ctx, cs, children); err != nil {
		return nil, err
	}
	for _, l := range p.layers {
		if err := p.need(ctx, cs, l, 0); err != nil && !errdefs.IsNotFound(err) {
			return nil, err
		}
	}
	return p, nil
}

// need accounts for one blob, and checks that it is there and not above limit (0: none).
func (p *parsed) need(ctx context.Context, cs content.Store, desc ocispec.Descriptor, limit int64) error {
	p.blobs = append(p.blobs, desc.Digest)
	if !images.IsLayerType(desc.MediaType) {
		p.documents = append(p.documents, desc)
	}
	if !images.IsIndexType(desc.MediaType) {
		p.size += desc.Size
	}
	if err := checkSize(desc, limit); err != nil {
		return err
	}
	if _, err := cs.Info(ctx, desc.Digest); err != nil {
		return fmt.Errorf("content %s: %w", desc.Digest, err)
	}
	return nil
}

func checkSize(desc ocispec.Descriptor, limit int64) error {
	if limit > 0 && desc.Size > limit {
		return codef(CodeLimit, "%s %s has %d bytes, at most %d are read", desc.MediaType, desc.Digest, desc.Size, limit)
	}
	return nil
}

// readConfig takes the configuration and the layers from a manifest's children.
func (p *parsed) readConfig(ctx context.Context, cs content.Store, children []ocispec.Descriptor) error {
	if len(children) == 0 || !images.IsConfigType(children[0].MediaType) {
		return codef(CodeBadImage, "manifest %s has no image configuration", p.manifest)
	}
	conf := children[0]
	if err := p.need(ctx, cs, conf, maxConfig); err != nil {
		return err
	}
	b, err := content.ReadBlob(ctx, cs, conf)
	if err != nil {
		return fmt.Errorf("read configuration: %w", err)
	}
	if err := json.Unmarshal(b, &p.config); err != nil {
		return codef(CodeBadImage, "configuration %s: %w", conf.Digest, err)
	}
	p.id, p.layers, p.diffIDs = ID(conf.Digest), children[1:], p.config.RootFS.DiffIDs
	return p.check()
}

func (p *parsed) check() error {
	if len(p.layers) != len(p.diffIDs) || len(p.layers) > maxLayers {
		return codef(CodeBadImage, "manifest has %d layers, configuration has %d, at most %d are taken", len(p.layers), len(p.diffIDs), maxLayers)
	}
	for _, d := range p.diffIDs {
		if err := d.Validate(); err != nil || d.Algorithm() != digest.SHA256 {
			return codef(CodeBadImage, "layer digest %q is no sha256", d)
		}
	}
	for _, l := range p.layers {
		if !images.IsLayerType(l.MediaType) {
			return codef(CodeBadImage, "layer %s is %q, which is no layer this machine can unpack", l.Digest, l.MediaType)
		}
	}
	have := p.config.Platform
	if have.Architecture != "" && have.OS != "" && !platforms.Default().Match(have) {
		return codef(CodePlatform, "image is for %s, this machine is %s: %w", platforms.Format(have), platforms.DefaultString(), errdefs.ErrNotFound)
	}
	return nil
}

// choose picks the manifest of an index that suits this machine best.
func choose(ctx context.Context, cs content.Store, desc ocispec.Descriptor) (ocispec.Descriptor, error) {
	all, err := images.Children(ctx, cs, desc)
	if err != nil {
		return ocispec.Descriptor{}, codef(CodeBadImage, "index %s: %w", desc.Digest, err)
	}
	match := platforms.Default()
	var best *ocispec.Descriptor
	for i, d := range all {
		if d.Platform != nil && !match.Match(*d.Platform) || !images.IsManifestType(d.MediaType) && !images.IsIndexType(d.MediaType) {
			continue
		}
		if best == nil || d.Platform != nil && (best.Platform == nil || match.Less(*d.Platform, *best.Platform)) {
			best = &all[i]
		}
	}
	if best == nil {
		return ocispec.Descriptor{}, codef(CodePlatform, "index has no image for %s among its %d: %w", platforms.DefaultString(), len(all), errdefs.ErrNotFound)
	}
	return *best, nil
}

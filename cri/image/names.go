package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// recordNames are the names a pulled image gets: repository@digest always, and
// the tag where it was pulled by one.
func (d *download) recordNames(desc ocispec.Descriptor) []string {
	names := []string{reference.TrimNamed(d.named).String() + "@" + desc.Digest.String()}
	if tagged, ok := d.named.(reference.NamedTagged); ok {
		if _, both := d.named.(reference.Digested); !both {
			names = append(names, tagged.String())
		}
	}
	return names
}

// nameImage gives a complete image its names, which makes it visible.
func (s *Store) nameImage(ctx context.Context, p *parsed, target ocispec.Descriptor, names []string) (Image, error) {
	// Only what finds content again is recorded, nothing the registry adds.
	target = ocispec.Descriptor{MediaType: target.MediaType, Digest: target.Digest, Size: target.Size}
	for _, name := range names {
		if err := s.putName(ctx, images.Image{Name: name, Target: target}); err != nil {
			return Image{}, fmt.Errorf("record name %s: %w", name, err)
		}
	}
	if err := s.namesChanged(ctx); err != nil {
		return Image{}, err
	}
	e := s.index.Load().byID[p.id]
	if e == nil {
		return Image{}, codef(CodeDamaged, "image was removed while it was being stored")
	}
	return e.Image, nil
}

// putName records or moves one name.
func (s *Store) putName(ctx context.Context, rec images.Image) error {
	failpoint.Hit("cri/image/name")
	_, err := s.names.Create(ctx, rec)
	if errdefs.IsAlreadyExists(err) {
		_, err = s.names.Update(ctx, rec, "target")
	}
	failpoint.Hit("cri/image/name-done")
	return err
}

// namesChanged brings index and copy of the names up to date.
func (s *Store) namesChanged(ctx context.Context) error {
	if err := s.refresh(ctx); err != nil {
		return err
	}
	if err := s.copyNames(ctx); err != nil {
		// A copy: worth a word, not a failed pull.
		s.log.Warn("cannot write the copy of the image names", "err", err)
	}
	return nil
}

// nameCopy is one line of names.json.
type nameCopy struct {
	Name   string             `json:"name"`
	Target ocispec.Descriptor `json:"target"`
	Pinned bool               `json:"pinned,omitempty"`
}

func (s *Store) copyNames(ctx context.Context) error {
	s.indexMu.Lock()
	defer s.indexMu.Unlock()
	records, err := s.names.List(ctx)
	if err != nil {
		return err
	}
	list := make([]nameCopy, 0, len(records))
	for _, r := range records {
		list = append(list, nameCopy{Name: r.Name, Target: r.Target, Pinned: r.Labels[pinLabel] != ""})
	}
	b, err := json.Marshal(list)
	if err != nil {
		return err
	}
	return writeSynced(filepath.Join(s.cfg.Root, "names.json"), b)
}

// writeSynced replaces a file so that a power cut leaves the old or the new one.
func writeSynced(path string, b []byte) error {
	f, err := os.OpenFile(path+".tmp", os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(b)
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return err
	}
	failpoint.Hit("cri/image/names-rename")
	err = os.Rename(path+".tmp", path)
	failpoint.Hit("cri/image/names-rename-done")
	return err
}

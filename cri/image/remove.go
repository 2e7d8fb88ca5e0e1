package image

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Remove removes the name ref; the last name takes the image with it. An ID (or
// prefix, or manifest digest) removes the image with all its names. A name that
// is not there is success. Layers that containers stand on stay until the last
// of these is gone; everything else nobody refers to is freed before it returns.
func (s *Store) Remove(ctx context.Context, ref string) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	names := s.namesToRemove(ref)
	if len(names) == 0 {
		return nil
	}
	if err := s.dropNames(ctx, names); err != nil {
		return failed("remove image", ref, err)
	}
	if err := s.namesChanged(ctx); err != nil {
		return failed("remove image", ref, err)
	}
	if err := s.collect(ctx); err != nil {
		return failed("free space of removed image", ref, err)
	}
	return nil
}

// dropNames removes records of names; those that are gone are success.
func (s *Store) dropNames(ctx context.Context, names []string) error {
	for _, name := range names {
		failpoint.Hit("cri/image/remove-name")
		if err := s.names.Delete(ctx, name); err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove name %s: %w", name, err)
		}
		failpoint.Hit("cri/image/remove-name-done")
	}
	return nil
}

// namesToRemove lists the records that ref stands for.
func (s *Store) namesToRemove(ref string) []string {
	e := s.index.Load().find(ref)
	if e == nil {
		return nil
	}
	named, err := parseRef(ref)
	if err != nil || s.index.Load().byName[named.String()] != e {
		return e.records
	}
	own := []string{named.String()}
	if strings.Contains(named.String(), "@") {
		return own
	}
	// A pull records the digest with the tag: without a tag of its repository
	// left, the digest goes too, or nothing would ever be freed.
	repo := named.Name()
	for _, t := range e.RepoTags {
		if t != named.String() && strings.HasPrefix(t, repo+":") {
			return own
		}
	}
	// The name itself goes last: killed before, the same call finds it and goes on.
	var names []string
	for _, d := range e.RepoDigests {
		if strings.HasPrefix(d, repo+"@") {
			names = append(names, d)
		}
	}
	return append(names, own...)
}

// Pin marks the image ref stands for as not to be removed to free space, or
// takes the mark away. Nothing here obeys it; Image.Pinned tells it.
func (s *Store) Pin(ctx context.Context, ref string, pinned bool) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	e := s.index.Load().find(ref)
	if e == nil {
		return failed("pin image", ref, codef(CodeNotFound, "not stored on this node: %w", errdefs.ErrNotFound))
	}
	for _, name := range e.records {
		rec := images.Image{Name: name, Labels: map[string]string{}}
		if pinned {
			rec.Labels[pinLabel] = "1"
		}
		failpoint.Hit("cri/image/pin")
		if _, err := s.names.Update(ctx, rec, "labels."+pinLabel); err != nil {
			return failed("pin image", ref, err)
		}
		failpoint.Hit("cri/image/pin-done")
	}
	return failed("pin image", ref, s.namesChanged(ctx))
}

// collect frees content and layers that nobody refers to. Pulls wait only
// while it marks; files are removed beside them.
func (s *Store) collect(ctx context.Context) error {
	if s.rootfs.Damaged() {
		s.log.Warn("nothing is freed while a container's root filesystem has an unreadable reference")
		return nil
	}
	s.gcMu.Lock()
	defer s.gcMu.Unlock()
	failpoint.Hit("cri/image/collect")
	// Marking must not be torn by a caller that leaves.
	if _, err := s.dbs.meta.GarbageCollect(context.WithoutCancel(ctx)); err != nil {
		return fmt.Errorf("collect garbage: %w", err)
	}
	failpoint.Hit("cri/image/collect-done")
	s.usage.Store(nil)
	return nil
}

// sweep removes, once after a start, what the last process left half-made: in
// the database, and on disk without a place in the database.
func (s *Store) sweep(ctx context.Context) {
	if s.rootfs.Damaged() {
		return
	}
	if err := s.markDirty(ctx); err != nil {
		s.log.Warn("cannot prepare the first collection", "err", err)
	}
	if err := s.collect(ctx); err != nil {
		s.log.Warn("first collection failed", "err", err)
	}
	if ctx.Err() != nil {
		return
	}
	s.removeOldGenerations()
}

// markDirty makes the next collection compare both stores with the disk: it
// does so for stores that something is removed from. A kill between a file's
// rename and the database's commit leaves what only that comparison finds.
func (s *Store) markDirty(ctx context.Context) error {
	const key = unpackPrefix + "sweep"
	if _, err := s.layers.Prepare(ctx, key, ""); err != nil && !errdefs.IsAlreadyExists(err) {
		return err
	}
	if err := s.layers.Remove(ctx, key); err != nil {
		return err
	}
	// Held by no lease, it is the first thing to be collected.
	body := []byte("for the first collection after a start")
	desc := ocispec.Descriptor{Digest: digest.FromBytes(body), Size: int64(len(body))}
	return content.WriteBlob(ctx, s.content, key, bytes.NewReader(body), desc)
}

// removeOldGenerations removes layers of replaced databases that no container stands on.
func (s *Store) removeOldGenerations() {
	dirs, err := generations(s.cfg.Root)
	if err != nil {
		s.log.Warn("cannot list layer directories", "err", err)
		return
	}
	used := map[string]bool{s.dbs.generation: true}
	for _, ref := range s.rootfs.List() {
		if ref.Image == "" {
			return
		}
		for _, l := range ref.Lower {
			for d := range dirs {
				used[d] = used[d] || strings.HasPrefix(l, d+"/")
			}
		}
	}
	for d := range dirs {
		if used[d] {
			continue
		}
		failpoint.Hit("cri/image/remove-generation")
		if err := os.RemoveAll(d); err != nil {
			s.log.Warn("cannot remove old layers", "path", d, "err", err)
		}
	}
}

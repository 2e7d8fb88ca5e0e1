package image

import (
	"context"
	"crypto/rand"
	"fmt"
	"strings"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	// upperLabel is where the overlay snapshotter tells a layer's directory.
	upperLabel = "containerd.io/snapshot/overlay.upperdir"
	// snapshotGCLabel on a configuration keeps the image's topmost layer.
	snapshotGCLabel = "containerd.io/gc.ref.snapshot." + snapshotterName
	// unpackPrefix begins the key of a layer that is being unpacked.
	unpackPrefix = "unpack-"
)

// layerJob is one layer of an image on its way to its chain ID.
type layerJob struct {
	blob          ocispec.Descriptor
	diffID        digest.Digest
	chain, parent digest.Digest
	tracker       *tracker
}

// unpackImage unpacks the layers that are not there yet, lowest first. ready
// waits until a layer's blob is stored; nil means that all are.
func (s *Store) unpackImage(ctx context.Context, p *parsed, t *tracker, ready func(context.Context, int) error) error {
	var parent digest.Digest
	for i, chain := range p.chain() {
		// Waited for even where the chain exists: an image is complete only
		// with its blobs, from which its layers can be made again.
		if ready != nil {
			if err := ready(ctx, i); err != nil {
				return err
			}
		}
		job := layerJob{blob: p.layers[i], diffID: p.diffIDs[i], chain: chain, parent: parent, tracker: t}
		if err := s.unpackLayer(ctx, job); err != nil {
			return fmt.Errorf("layer %s: %w", job.blob.Digest, err)
		}
		t.layerDone(job.blob.Digest)
		parent = chain
	}
	return nil
}

// unpackLayer makes one chain, unless it exists; of several that want the same
// one works and the others wait for it.
func (s *Store) unpackLayer(ctx context.Context, job layerJob) error {
	release, err := s.claimChain(ctx, job.chain)
	if err != nil {
		return err
	}
	defer release()
	if exists, err := s.holdChain(ctx, job.chain); err != nil || exists {
		return err
	}
	if err := s.unpacks.Acquire(ctx, 1); err != nil {
		return context.Cause(ctx)
	}
	defer s.unpacks.Release(1)
	return s.makeChain(ctx, job)
}

// holdChain tells whether chain exists. ctx's lease holds it first, so that
// what is found cannot be collected any more.
func (s *Store) holdChain(ctx context.Context, chain digest.Digest) (bool, error) {
	if err := s.leaseSnapshot(ctx, string(chain)); err != nil {
		return false, fmt.Errorf("hold layer %s: %w", chain, err)
	}
	_, err := s.layers.Stat(ctx, string(chain))
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("look at layer %s: %w", chain, err)
	}
	return true, nil
}

func (s *Store) makeChain(ctx context.Context, job layerJob) error {
	key := unpackPrefix + rand.Text()
	failpoint.Hit("cri/image/layer-prepare")
	mounts, err := s.layers.Prepare(ctx, key, string(job.parent))
	if err != nil {
		return fmt.Errorf("prepare: %w", err)
	}
	failpoint.Hit("cri/image/layer-prepare-done")
	committed := false
	defer func() {
		if !committed {
			s.dropLayer(ctx, key)
		}
	}()
	sj, err := s.snapshotJob(job, mounts)
	if err != nil {
		return err
	}
	job.tracker.unpacking(job.blob.Digest, 0)
	res, err := snapshot.Unpack(ctx, sj, func(n int64) { job.tracker.unpacking(job.blob.Digest, n) })
	if err != nil {
		return err
	}
	s.log.Debug("layer unpacked", "layer", job.blob.Digest, "entries", res.Entries, "bytes", res.Bytes)
	failpoint.Hit("cri/image/layer-commit")
	err = s.layers.Commit(ctx, string(job.chain), key)
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("commit: %w", err)
	}
	committed = err == nil
	failpoint.Hit("cri/image/layer-commit-done")
	return nil
}

// dropLayer removes a layer that was not committed, also when ctx has ended.
func (s *Store) dropLayer(ctx context.Context, key string) {
	ctx = context.WithoutCancel(ctx)
	if err := s.layers.Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		s.log.Warn("cannot remove a layer that was not unpacked; the next start does", "key", key, "err", err)
	}
}

// snapshotJob translates the mounts of a prepared layer into the directories they stand for.
func (s *Store) snapshotJob(job layerJob, mounts []mount.Mount) (snapshot.Job, error) {
	sj := snapshot.Job{
		Blob:   s.dbs.blobPath(job.blob.Digest.Algorithm().String(), job.blob.Digest.Encoded()),
		DiffID: job.diffID.String(), Limits: s.cfg.limits(),
	}
	if len(mounts) != 1 {
		return sj, fmt.Errorf("layer has %d mounts, one is expected", len(mounts))
	}
	if mounts[0].Type == "bind" {
		sj.Upper = mounts[0].Source
		return sj, nil
	}
	for _, o := range mounts[0].Options {
		k, v, _ := strings.Cut(o, "=")
		switch k {
		case "upperdir":
			sj.Upper = v
		case "workdir":
			sj.Work = v
		case "lowerdir":
			sj.Lower = strings.Split(v, ":")
		}
	}
	if sj.Upper == "" || sj.Work == "" || len(sj.Lower) == 0 {
		return sj, fmt.Errorf("layer's overlay lacks a directory: %v", mounts[0].Options)
	}
	return sj, nil
}

// claimChain makes the caller the only one at work on a chain.
func (s *Store) claimChain(ctx context.Context, chain digest.Digest) (release func(), err error) {
	for {
		s.chainMu.Lock()
		busy, taken := s.chains[chain]
		if !taken {
			mine := make(chan struct{})
			s.chains[chain] = mine
			s.chainMu.Unlock()
			return func() {
				s.chainMu.Lock()
				delete(s.chains, chain)
				s.chainMu.Unlock()
				close(mine)
			}, nil
		}
		s.chainMu.Unlock()
		select {
		case <-busy:
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
}

// chainDirs gives the directories of an image's layers, topmost first. A chain
// that is missing is an errdefs NotFound.
func (s *Store) chainDirs(ctx context.Context, p *parsed) ([]string, error) {
	chain := p.chain()
	dirs := make([]string, 0, len(chain))
	for i := len(chain) - 1; i >= 0; i-- {
		st, err := s.layers.Stat(ctx, string(chain[i]))
		if err != nil {
			return nil, fmt.Errorf("layer %s: %w", chain[i], err)
		}
		dir := st.Labels[upperLabel]
		if st.Kind != snapshots.KindCommitted || dir == "" {
			return nil, fmt.Errorf("layer %s has no directory: %w", chain[i], errdefs.ErrNotFound)
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

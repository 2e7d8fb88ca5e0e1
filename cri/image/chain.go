package image

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"
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
	// below waits for the layers below and gives their directories, topmost first.
	below func(context.Context) ([]string, error)
}

// staged is a layer in a directory of its own that has no place in a chain yet.
type staged struct {
	key     string
	job     snapshot.Job
	pending layer.Pending
}

// unpackImage unpacks the layers that are not there yet, each as soon as its blob
// is, whatever becomes of those below it; they are put on one another in order:
//
//	blob ──▶ staged ──settled on the layers below──▶ committed
//	            └─(cannot without these)─▶ unpacked over them ─▶ committed
//
// ready waits until a layer's blob is stored; nil means that all are.
func (s *Store) unpackImage(ctx context.Context, p *parsed, t *tracker, ready func(context.Context, int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	chain := p.chain()
	dirs := make([]string, len(chain)) // dirs[i] is written before done[i] closes
	done := make([]chan struct{}, len(chain))
	for i := range chain {
		done[i] = make(chan struct{})
		job := layerJob{blob: p.layers[i], diffID: p.diffIDs[i], chain: chain[i], tracker: t}
		if i > 0 {
			job.parent = chain[i-1]
		}
		job.below = func(ctx context.Context) ([]string, error) {
			for _, d := range done[:i] {
				select {
				case <-d:
				case <-ctx.Done():
					return nil, context.Cause(ctx)
				}
			}
			lower := slices.Clone(dirs[:i])
			slices.Reverse(lower)
			return lower, nil
		}
		group.Go(func() error {
			// Waited for even where the chain exists: an image is complete only
			// with its blobs, from which its layers can be made again.
			if ready != nil {
				if err := ready(ctx, i); err != nil {
					return err
				}
			}
			err := s.unpackLayer(ctx, job)
			if err == nil {
				dirs[i], err = s.chainDir(ctx, chain[i])
			}
			if err != nil {
				return fmt.Errorf("layer %s: %w", job.blob.Digest, err)
			}
			t.layerDone(job.blob.Digest)
			close(done[i])
			return nil
		})
	}
	return group.Wait()
}

// unpackLayer makes one chain, unless it exists; of several that want the same
// one works and the others wait for it. Who has a chain waits for those below it
// only, and each of these likewise, so that nobody waits in a circle.
func (s *Store) unpackLayer(ctx context.Context, job layerJob) error {
	release, err := s.claimChain(ctx, job.chain)
	if err != nil {
		return err
	}
	defer release()
	if exists, err := s.holdChain(ctx, job.chain); err != nil || exists {
		return err
	}
	st, err := s.stage(ctx, job)
	if err == nil {
		var lower []string
		if lower, err = job.below(ctx); err == nil && job.parent != "" {
			err = snapshot.Settle(ctx, st.job.Upper, lower, st.pending)
		}
		if err == nil {
			return s.commit(ctx, job, st, snapshots.WithParent(string(job.parent)))
		}
		s.dropLayer(ctx, st.key)
	}
	if !errors.Is(err, layer.ErrNeedsLower) {
		return err
	}
	if _, err := job.below(ctx); err != nil {
		return err
	}
	if st, err = s.unpackOver(ctx, job); err != nil {
		return err
	}
	return s.commit(ctx, job, st)
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

// stage unpacks a layer without those below it.
func (s *Store) stage(ctx context.Context, job layerJob) (staged, error) {
	mode := layer.Alone
	if job.parent == "" {
		mode = layer.Bottom
	}
	return s.unpack(ctx, job, mode, "")
}

// unpackOver unpacks a layer on top of those below it.
func (s *Store) unpackOver(ctx context.Context, job layerJob) (staged, error) {
	return s.unpack(ctx, job, layer.Over, string(job.parent))
}

func (s *Store) unpack(ctx context.Context, job layerJob, mode layer.Mode, parent string) (st staged, err error) {
	if err := s.unpacks.Acquire(ctx, 1); err != nil {
		return st, context.Cause(ctx)
	}
	defer s.unpacks.Release(1)
	st.key = unpackPrefix + rand.Text()
	failpoint.Hit("cri/image/layer-prepare")
	mounts, err := s.layers.Prepare(ctx, st.key, parent)
	if err != nil {
		return st, fmt.Errorf("prepare: %w", err)
	}
	failpoint.Hit("cri/image/layer-prepare-done")
	defer func() {
		if err != nil {
			s.dropLayer(ctx, st.key)
		}
	}()
	if st.job, err = s.snapshotJob(job, mounts); err != nil {
		return st, err
	}
	st.job.Mode = mode
	job.tracker.unpacking(job.blob.Digest, 0)
	res, err := snapshot.Unpack(ctx, st.job, func(n int64) { job.tracker.unpacking(job.blob.Digest, n) })
	if err != nil {
		return st, err
	}
	s.log.Debug("layer unpacked", "layer", job.blob.Digest, "mode", mode, "entries", res.Entries, "bytes", res.Bytes)
	st.pending = res.Pending
	return st, nil
}

// commit gives a layer its place in the chain.
func (s *Store) commit(ctx context.Context, job layerJob, st staged, opts ...snapshots.Opt) error {
	failpoint.Hit("cri/image/layer-commit")
	err := s.layers.Commit(ctx, string(job.chain), st.key, opts...)
	failpoint.Hit("cri/image/layer-commit-done")
	if err == nil {
		return nil
	}
	s.dropLayer(ctx, st.key)
	if errdefs.IsAlreadyExists(err) {
		return nil
	}
	return fmt.Errorf("commit: %w", err)
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
	for _, c := range slices.Backward(chain) {
		dir, err := s.chainDir(ctx, c)
		if err != nil {
			return nil, err
		}
		dirs = append(dirs, dir)
	}
	return dirs, nil
}

// chainDir gives the directory of one layer.
func (s *Store) chainDir(ctx context.Context, chain digest.Digest) (string, error) {
	st, err := s.layers.Stat(ctx, string(chain))
	if err != nil {
		return "", fmt.Errorf("layer %s: %w", chain, err)
	}
	dir := st.Labels[upperLabel]
	if st.Kind != snapshots.KindCommitted || dir == "" {
		return "", fmt.Errorf("layer %s has no directory: %w", chain, errdefs.ErrNotFound)
	}
	return dir, nil
}

package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/opencontainers/go-digest"
	"golang.org/x/sync/semaphore"
)

const (
	// namespace is the one namespace of the metadata database in use.
	namespace = "berth"
	// snapshotterName is under which the layers are known in it.
	snapshotterName = "overlay"
)

// Store holds the images of a node. Its methods may be called concurrently.
type Store struct {
	cfg  Config
	log  *slog.Logger
	lock *os.File
	dbs  *databases

	content content.Store
	names   images.Store
	layers  snapshots.Snapshotter
	leases  leases.Manager
	rootfs  *snapshot.Rootfs

	index   atomic.Pointer[index]
	indexMu sync.Mutex // makes one writer of index
	parsed  map[digest.Digest]*parsed
	usage   atomic.Pointer[Usage]

	downloads *semaphore.Weighted
	unpacks   *semaphore.Weighted
	// imports is of one: two archives with files of one name would write to
	// one unfinished blob.
	imports *semaphore.Weighted

	flightMu sync.Mutex
	flights  map[string]*flight
	chainMu  sync.Mutex
	chains   map[digest.Digest]chan struct{}

	gcMu  sync.Mutex
	ctx   context.Context // ends with Close: the owner of flights and sweep
	stop  context.CancelFunc
	tasks sync.WaitGroup
	swept chan struct{} // closed when the first collection is over
}

// Open opens the store at cfg.Root, making it if needed. Damaged databases are
// set aside and rebuilt from stored content. Only one Store may be open at a
// root; the error for a second one names the process that has it. ctx is for
// the opening; the store lives until Close.
func Open(ctx context.Context, cfg Config) (*Store, error) {
	cfg = cfg.withDefaults()
	if cfg.Root == "" || strings.ContainsAny(cfg.Root, ":,\\") {
		return nil, fmt.Errorf("image root %q: give a path without ':', ',' and '\\', which overlayfs cannot take", cfg.Root)
	}
	root, err := filepath.Abs(cfg.Root)
	if err != nil {
		return nil, fmt.Errorf("image root: %w", err)
	}
	cfg.Root = root
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("create image root: %w", err)
	}
	lock, err := lockRoot(root)
	if err != nil {
		return nil, err
	}
	s, err := open(quiet(namespaces.WithNamespace(ctx, namespace), cfg.Logger), cfg, lock)
	if err != nil {
		return nil, errors.Join(err, unlockRoot(lock))
	}
	return s, nil
}

func open(ctx context.Context, cfg Config, lock *os.File) (*Store, error) {
	dbs, rebuilt, err := openDatabases(ctx, cfg.Root, cfg.Logger)
	if err != nil {
		return nil, err
	}
	s := &Store{
		cfg: cfg, log: cfg.Logger, lock: lock, dbs: dbs,
		content: dbs.meta.ContentStore(), names: metadata.NewImageStore(dbs.meta),
		layers: dbs.meta.Snapshotter(snapshotterName), leases: metadata.NewLeaseManager(dbs.meta),
		parsed:    map[digest.Digest]*parsed{},
		downloads: semaphore.NewWeighted(int64(cfg.MaxParallelDownloads)),
		unpacks:   semaphore.NewWeighted(int64(cfg.MaxParallelUnpacks)),
		imports:   semaphore.NewWeighted(1),
		flights:   map[string]*flight{}, chains: map[digest.Digest]chan struct{}{},
		swept: make(chan struct{}),
	}
	s.rootfs, err = snapshot.OpenRootfs(ctx, filepath.Join(cfg.Root, "rw"), cfg.Logger)
	if err != nil {
		return nil, errors.Join(err, dbs.close())
	}
	dbs.meta.RegisterCollectibleResource(resourceRootfs, rootfsRoots{s.rootfs})
	if rebuilt {
		s.rebuild(ctx)
	}
	// Leases are of pulls and imports; none of the last process's can go on.
	err = s.dropLeases(ctx)
	if err == nil {
		err = s.refresh(ctx)
	}
	if err != nil {
		s.rootfs.Close()
		return nil, errors.Join(err, dbs.close())
	}
	s.ctx, s.stop = context.WithCancel(context.WithoutCancel(ctx))
	s.tasks.Go(func() {
		defer close(s.swept)
		s.sweep(s.ctx)
	})
	return s, nil
}

// Close ends pulls and imports under way and releases the root. Containers'
// root filesystems stay mounted.
func (s *Store) Close() error {
	s.flightMu.Lock() // no flight starts after this
	s.stop()
	s.flightMu.Unlock()
	s.tasks.Wait()
	s.rootfs.Close()
	return errors.Join(s.dbs.close(), unlockRoot(s.lock))
}

func (s *Store) dropLeases(ctx context.Context) error {
	list, err := s.leases.List(ctx)
	if err != nil {
		return fmt.Errorf("list leases: %w", err)
	}
	for _, l := range list {
		if err := s.leases.Delete(ctx, l); err != nil {
			return fmt.Errorf("drop lease %s: %w", l.ID, err)
		}
	}
	return nil
}

// leased runs fn with what it makes kept from the garbage collector.
func (s *Store) leased(ctx context.Context, fn func(context.Context) error) error {
	l, err := s.leases.Create(ctx, leases.WithRandomID())
	if err != nil {
		return fmt.Errorf("create lease: %w", err)
	}
	err = fn(leases.WithLease(ctx, l.ID))
	// Undone even when ctx has ended; what is left over is dropped by the next Open.
	if derr := s.leases.Delete(context.WithoutCancel(ctx), l); derr != nil {
		s.log.Warn("cannot delete lease of a pull or import", "err", derr)
	}
	return err
}

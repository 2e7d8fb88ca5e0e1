package image

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/containerd/v2/pkg/namespaces"
)

// Usage is what images take of their file system.
type Usage struct {
	// At is when it was counted.
	At time.Time
	// Mountpoint is the directory of the store, whose file system is meant.
	Mountpoint string
	Bytes      uint64
	Inodes     uint64
}

// Usage counts blobs and unpacked layers, from what was recorded when they were
// made; the result is remembered until an image comes or goes. What containers
// wrote is not in it.
func (s *Store) Usage(ctx context.Context) (Usage, error) {
	if u := s.usage.Load(); u != nil {
		return *u, nil
	}
	ctx = namespaces.WithNamespace(ctx, namespace)
	u := Usage{At: time.Now(), Mountpoint: s.cfg.Root}
	err := s.content.Walk(ctx, func(i content.Info) error {
		u.Bytes += uint64(i.Size)
		u.Inodes++
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("count image content: %w", err)
	}
	var keys []string
	err = s.layers.Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Kind == snapshots.KindCommitted {
			keys = append(keys, i.Name)
		}
		return nil
	})
	if err != nil {
		return u, fmt.Errorf("list layers: %w", err)
	}
	for _, k := range keys {
		n, err := s.layers.Usage(ctx, k)
		if err != nil {
			continue // removed meanwhile
		}
		u.Bytes += uint64(n.Size)
		u.Inodes += uint64(n.Inodes)
	}
	s.usage.Store(&u)
	return u, nil
}

// RootfsDir is the directory below which containers' writable layers are.
func (s *Store) RootfsDir() string { return filepath.Join(s.cfg.Root, "rw") }

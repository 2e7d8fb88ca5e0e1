package sandbox

import (
	"context"
	"slices"
	"time"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/record"
)

// strayTime bounds the removal of one stray at start.
const strayTime = 30 * time.Second

// Restore takes over what an earlier agent has left. Complete sandboxes come
// back as the facts say: ready if their namespaces are pinned and their init
// lives. Those half-made come back not ready, for the ordinary Remove. What has
// no readable record is removed in the background, as far as Close lets it.
// Restore fails only if nothing can be read at all.
func (s *Store) Restore(ctx context.Context) error {
	pins, err := s.cfg.Pins.List()
	if err != nil {
		return err
	}
	entries, err := s.dir.List()
	if err != nil {
		return err
	}
	var strays []*box
	for _, e := range entries {
		b := s.restoreOne(e, pins[e.ID])
		s.mu.Lock()
		s.boxes.add(b)
		s.mu.Unlock()
		if b.stray {
			strays = append(strays, b)
		} else if b.rec.Complete && !b.rec.Stopped && !b.status().Ready {
			s.cfg.OnChange(b.id) // it broke while nobody looked
		}
		delete(pins, e.ID)
		if err := ctx.Err(); err != nil {
			return err
		}
	}
	// Pins without even a directory belong to nothing that could be asked.
	for name := range pins {
		s.cfg.Log.Warn("unpinning namespaces that belong to no sandbox", "name", name)
		if err := s.cfg.Pins.Unpin(name); err != nil {
			s.cfg.Log.Error("unpinning namespaces that belong to no sandbox", "name", name, "err", err)
		}
	}
	if len(strays) > 0 {
		own, stop := context.WithCancel(context.WithoutCancel(ctx))
		s.stop = stop
		s.wg.Go(func() { s.removeStrays(own, strays) })
	}
	return nil
}

// restoreOne rebuilds one box from its record and the facts. It has not been
// published yet, but its watch may run already.
func (s *Store) restoreOne(e record.Entry[state], pinned []mountns.Kind) *box {
	b := newBox(ID(e.ID))
	b.rec, b.stale, b.stray = e.Value, e.Stale, e.Stray
	if b.stray {
		return b
	}
	config, err := e.Value.decodeConfig()
	if err != nil {
		s.cfg.Log.Error("a sandbox's record cannot be used: what is left of the sandbox will be removed", "sandbox", e.ID, "err", err)
		b.stray = true
		return b
	}
	b.config, b.created, b.podUID = config, b.rec.CreatedAt, config.GetLabels()[podUID]
	if err := s.cfg.Labels.Reserve(b.rec.Labels); err != nil {
		s.cfg.Log.Error("another pod may get this pod's level", "sandbox", e.ID, "err", err)
	}
	if b.stale {
		b.rec.Init = nil // its number may be another's by now
	}
	b.pinned = true
	for _, k := range modesOf(config).kinds() {
		b.pinned = b.pinned && slices.Contains(pinned, k)
	}
	// A half-made one holds no name: its creation ended with the agent that was killed.
	if b.rec.Complete {
		if err := s.names.Reserve(fullName(config.GetMetadata()), e.ID); err != nil {
			s.cfg.Log.Error("two sandboxes have one name", "sandbox", e.ID, "err", err)
		}
	}
	if b.rec.Init == nil {
		return b
	}
	fd, err := b.rec.Init.open()
	if err == nil && fd >= 0 {
		err = s.adopt(b, fd, nil)
	}
	if err != nil {
		s.cfg.Log.Error("a pod's init cannot be watched", "sandbox", e.ID, "err", err)
	}
	return b
}

func (s *Store) removeStrays(ctx context.Context, strays []*box) {
	for _, b := range strays {
		ctx, cancel := context.WithTimeout(ctx, strayTime)
		if err := s.Remove(ctx, b.id); err != nil {
			s.cfg.Log.Error("remains of a sandbox cannot be removed; the next start tries again", "sandbox", b.id, "err", err)
		} else {
			s.cfg.Log.Info("removed the remains of a sandbox that has no record", "sandbox", b.id)
		}
		cancel()
	}
}

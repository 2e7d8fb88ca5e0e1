package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
)

// Stop releases what a sandbox holds: network, init, namespaces. Its containers
// have been stopped before. Stopping what is stopped or gone succeeds; after a
// failure, done again, it goes on where it can.
func (s *Store) Stop(ctx context.Context, id ID) error {
	return s.operate(ctx, id, s.release)
}

// Remove stops a sandbox, whatever state it is in, and forgets it; its record
// goes last. Its containers have been removed before. Removing what is gone
// succeeds.
func (s *Store) Remove(ctx context.Context, id ID) error {
	return s.operate(ctx, id, s.remove)
}

func (s *Store) operate(ctx context.Context, id ID, op func(context.Context, *box) error) error {
	b, err := s.get(id)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err := b.take(ctx); err != nil {
		return err
	}
	err = op(ctx, b)
	b.give()
	s.cfg.OnChange(id)
	return err
}

// release ends everything of b that lives in the kernel. Every step is tried,
// but the namespaces stay until the network has let go of them.
func (s *Store) release(ctx context.Context, b *box) error {
	rec, config := b.snapshot()
	if rec.Released {
		return nil
	}
	if !rec.Stopped && !b.isStray() {
		if err := s.write(b, func(r *state) { r.Stopped = true }); err != nil {
			return err
		}
	}
	detached := s.detach(ctx, b)
	ended := s.endInit(ctx, b)
	if detached != nil || ended != nil {
		return errors.Join(detached, ended)
	}
	if err := s.cfg.Pins.Unpin(string(b.id)); err != nil {
		return err
	}
	if modesOf(config).sharedPID && config != nil {
		m, err := initCgroup(config.GetLinux().GetCgroupParent(), b.id, s.cfg.SystemdCgroup)
		if err == nil {
			err = removeCgroup(m)
		}
		if err != nil {
			return err
		}
	}
	b.mu.Lock()
	b.pinned = false
	b.mu.Unlock()
	if b.isStray() {
		return nil
	}
	return s.write(b, func(r *state) { r.Released = true })
}

func (b *box) isStray() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.stray
}

// detach gives the network back. A sandbox without a readable record may have
// been attached.
func (s *Store) detach(ctx context.Context, b *box) error {
	if _, config := b.snapshot(); config != nil && modesOf(config).hostNet {
		return nil
	}
	r, closeNS, err := s.request(b)
	if err != nil {
		return err
	}
	defer closeNS()
	failpoint.Hit("cri/sandbox/network-delete")
	if err := s.cfg.Network.Delete(ctx, r); err != nil {
		return fmt.Errorf("detaching sandbox %s from the network: %w", b.id, err)
	}
	failpoint.Hit("cri/sandbox/network-delete-done")
	return nil
}

// endInit kills b's init, if it is recorded and alive.
func (s *Store) endInit(ctx context.Context, b *box) error {
	b.mu.Lock()
	w, p := b.watch, b.rec.Init
	b.mu.Unlock()
	if p == nil {
		return nil
	}
	if w == nil { // never told to go, or found dead at start
		fd, err := p.open()
		if err != nil || fd < 0 {
			return err
		}
		if err := s.adopt(b, fd, nil); err != nil {
			return err
		}
		b.mu.Lock()
		w = b.watch
		b.mu.Unlock()
	}
	if err := w.kill(ctx); err != nil {
		return err
	}
	w.close()
	return nil
}

func (s *Store) remove(ctx context.Context, b *box) error {
	if err := s.release(ctx, b); err != nil {
		return err
	}
	if err := removeFiles(s.dir.Path(string(b.id))); err != nil {
		return err
	}
	if err := s.dir.Remove(string(b.id)); err != nil {
		return err
	}
	s.mu.Lock()
	s.boxes.drop(b)
	s.mu.Unlock()
	s.names.Release(string(b.id))
	rec, _ := b.snapshot()
	s.cfg.Labels.Release(rec.Labels)
	return nil
}

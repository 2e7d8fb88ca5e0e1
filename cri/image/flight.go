package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
)

// flight is one pull under way, shared by all who ask for the same image with
// the same credentials. It ends early when the last of them has gone.
type flight struct {
	tracker *tracker
	done    chan struct{}
	cancel  context.CancelCauseFunc
	waiters int // guarded by Store.flightMu

	image Image // valid once done is closed
	err   error
}

// Pull fetches ref (by tag or digest) for this machine's platform, unpacks it
// and gives it its name. Content that is stored already is not fetched again,
// and what an earlier attempt of this process fetched is continued. progress,
// if not nil, is called from this goroutine about four times a second. Pulls of
// the same image with the same credentials share one download. The error is an
// *Error.
func (s *Store) Pull(ctx context.Context, ref string, auth Auth, progress func(Progress)) (Image, error) {
	named, err := parseRef(ref)
	if err != nil {
		return Image{}, failed("pull image", ref, err)
	}
	// With other credentials it is another question: sharing the answer would
	// let one pod use what only another may pull.
	key := named.String() + " " + auth.fingerprint()
	f, err := s.join(key, func(ctx context.Context, f *flight) (Image, error) {
		return s.pull(ctx, named, auth, f.tracker)
	})
	if err != nil {
		return Image{}, failed("pull image", ref, err)
	}
	defer s.leave(key, f)
	report(f.done, ctx, f.tracker, progress)
	select {
	case <-f.done:
		return f.image, failed("pull image", ref, f.err)
	default:
		return Image{}, failed("pull image", ref, context.Cause(ctx))
	}
}

// join finds the flight under key or starts it, unless the store is closing.
func (s *Store) join(key string, run func(context.Context, *flight) (Image, error)) (*flight, error) {
	s.flightMu.Lock()
	defer s.flightMu.Unlock()
	if s.ctx.Err() != nil {
		return nil, codef(CodeCanceled, "the image store is closed: %w", context.Canceled)
	}
	if f := s.flights[key]; f != nil && f.waiters > 0 {
		f.waiters++
		return f, nil
	}
	ctx, cancel := context.WithCancelCause(s.ctx)
	f := &flight{tracker: newTracker(""), done: make(chan struct{}), cancel: cancel, waiters: 1}
	s.flights[key] = f
	s.tasks.Go(func() {
		ctx, stop := context.WithTimeoutCause(ctx, s.cfg.PullTimeout,
			codef(CodeStalled, "not done after %v: %w", s.cfg.PullTimeout, errStalled))
		defer stop()
		f.image, f.err = run(ctx, f)
		if f.err != nil && ctx.Err() != nil {
			f.err = context.Cause(ctx)
		}
		f.tracker.set(PhaseDone)
		cancel(nil)
		s.flightMu.Lock()
		if s.flights[key] == f {
			delete(s.flights, key)
		}
		s.flightMu.Unlock()
		close(f.done)
		if codeOf(f.err) == CodeCanceled && s.ctx.Err() == nil {
			// Nobody wants it any more: what came of it goes at once. After
			// other failures it is kept for the next attempt.
			if err := s.collect(s.ctx); err != nil {
				s.log.Warn("cannot remove what a canceled pull left", "err", err)
			}
		}
	})
	return f, nil
}

// leave gives up a flight; the last one out ends it.
func (s *Store) leave(key string, f *flight) {
	s.flightMu.Lock()
	defer s.flightMu.Unlock()
	if f.waiters--; f.waiters == 0 {
		f.cancel(context.Canceled)
		if s.flights[key] == f {
			delete(s.flights, key)
		}
	}
}

// fingerprint tells credentials apart without keeping them.
func (a Auth) fingerprint() string {
	sum := sha256.Sum256(fmt.Appendf(nil, "%q", []string{
		a.Username, a.Password, a.Auth, a.ServerAddress, a.IdentityToken, a.RegistryToken}))
	return hex.EncodeToString(sum[:])
}

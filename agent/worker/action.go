package worker

import (
	"context"
	"errors"
	"fmt"
	"runtime/debug"
	"time"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// start begins an action in a goroutine of its own. Exactly one result comes
// back for it; Run, and at the end leave, receive them all.
func (w *Worker) start(ctx context.Context, a pod.Action) {
	ctx, cancel := context.WithTimeout(ctx, plan.Timeout(a))
	w.state.Begin(a)
	w.cancels[a.Slot] = cancel
	task := Task{Desired: w.state.Granted(), Observed: w.state.Observed, Record: w.state.Record, Action: a}
	w.actions.Go(func() { w.results <- w.do(ctx, task) })
}

// do does one action. Whatever happens, a panic included, it returns a result
// with a kind that plan understands.
func (w *Worker) do(ctx context.Context, t Task) (r pod.Result) {
	begun := time.Now()
	defer func() {
		if p := recover(); p != nil {
			w.log.Error("panic in an action", "slot", t.Action.Slot, "op", t.Action.Op, "panic", p, "stack", string(debug.Stack()))
			r.Err = &pod.Error{Op: string(t.Action.Op), Kind: pod.Internal, Err: fmt.Errorf("internal error: %v", p)}
		}
		r.Action = t.Action
		r.Err = kinded(ctx, t.Action, r.Err)
		if r.Took == 0 {
			r.Took = time.Since(begun)
		}
	}()
	return w.deps.Runtime.Do(ctx, t)
}

// kinded makes sure that an error caused by the end of ctx says so.
func kinded(ctx context.Context, a pod.Action, err error) error {
	switch {
	case err == nil || ctx.Err() == nil:
		return err
	case errors.Is(ctx.Err(), context.Canceled):
		return &pod.Error{Op: string(a.Op), Kind: pod.Canceled, Err: err}
	case pod.KindOf(err) == pod.Internal:
		return &pod.Error{Op: string(a.Op), Kind: pod.Timeout, Err: fmt.Errorf("no answer within %v: %w", plan.Timeout(a), err)}
	}
	return err
}

func (w *Worker) fold(r pod.Result) {
	a := r.Action
	if cancel, ok := w.cancels[a.Slot]; ok {
		cancel()
		delete(w.cancels, a.Slot)
	}
	if r.Err != nil && pod.KindOf(r.Err) != pod.Canceled {
		w.log.Warn("action failed", "slot", a.Slot, "op", a.Op, "container", a.Container, "attempt", a.Attempt, "kind", pod.KindOf(r.Err).String(), "err", r.Err)
	} else {
		w.log.Debug("action done", "slot", a.Slot, "op", a.Op, "took", r.Took)
	}
	for _, e := range w.state.Fold(r, time.Now()) {
		w.deps.Events(w.uid, e)
	}
}

// backoff paces the saving of a record that the disk refuses.
type backoff struct {
	count       int
	err         error
	since, next time.Time
}

func (b *backoff) failed(now time.Time, err error) {
	if b.count == 0 {
		b.since = now
	}
	b.err, b.next = err, now.Add(min(time.Second<<min(b.count, 6), 30*time.Second))
	b.count++
}

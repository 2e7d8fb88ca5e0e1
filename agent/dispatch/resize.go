package dispatch

import (
	"context"
	"sync/atomic"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// When resizes are decided: at once when something has changed, but not more
// often than resizePause, and now and then in case a hint was lost.
const (
	resizePause = 250 * time.Millisecond
	resizeRetry = 3 * time.Minute
	tellTime    = 30 * time.Second // for a worker to store a decision
)

// resizes is what there is of them between two decisions.
//
//	publish ──wake──▶ decide (pure, all pods) ──▶ grants ──Amend──▶ workers ──▶ publish
type resizes struct {
	wake chan struct{}
	// waiting counts those that the last decision did not grant.
	waiting atomic.Int32
	// granted are the grants that their workers have not published yet: nobody
	// else may be given what they hold. Under mu.
	granted map[pod.UID]pod.Allocation
}

// watch passes snapshots on to publish, and wakes the decider if one may change
// what it says.
func (r *resizes) watch(publish func(pod.Snapshot)) func(pod.Snapshot) {
	return func(s pod.Snapshot) {
		publish(s)
		if s.Resize.Undecided() || r.waiting.Load() > 0 {
			r.ring()
		}
	}
}

func (r *resizes) ring() {
	select {
	case r.wake <- struct{}{}:
	default: // it has been rung and not yet heard
	}
}

// Resize asks for other resources for pod uid and returns when that is on disk:
// next is given the pod as it is shown. What the node makes of it is told by the
// pod's status.
func (d *Dispatcher) Resize(ctx context.Context, uid pod.UID, next func(shown *v1.Pod) (pod.Resources, error)) error {
	return d.Amend(ctx, uid, func(s *plan.State) error { return s.SetResources(next) })
}

// RunResizes decides about resizes until ctx ends, and then returns its error.
func (d *Dispatcher) RunResizes(ctx context.Context) error {
	retry := time.NewTicker(resizeRetry)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-d.resizes.wake:
		case <-retry.C:
			if d.resizes.waiting.Load() == 0 {
				continue
			}
		}
		for _, a := range d.allocate() {
			d.tell(ctx, a)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(resizePause):
		}
	}
}

// allocate decides, and notes what it grants before anybody else can ask.
func (d *Dispatcher) allocate() []pod.Allocation {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed || d.config.Allocate == nil {
		return nil
	}
	all := d.holders("")
	decided := d.config.Allocate(all)
	waiting := int32(0)
	for _, s := range all {
		if s.Resize.Undecided() {
			waiting++
		}
	}
	for _, a := range decided {
		if a.Granted {
			d.resizes.granted[a.UID] = a
			waiting--
		}
	}
	d.resizes.waiting.Store(waiting)
	return decided
}

// tell has the worker store a decision. One that has ended meanwhile needs none.
func (d *Dispatcher) tell(ctx context.Context, a pod.Allocation) {
	ctx, cancel := context.WithTimeout(ctx, tellTime)
	defer cancel()
	err := d.Amend(ctx, a.UID, func(s *plan.State) error {
		s.SetAllocation(a)
		return nil
	})
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.resizes.granted[a.UID] == a {
		delete(d.resizes.granted, a.UID)
	}
	if err != nil && pod.KindOf(err) != pod.NotFound && ctx.Err() == nil {
		d.config.Worker.Log.Warn("the decision about a resize did not reach its pod; it is decided again", "uid", string(a.UID), "err", err)
		d.resizes.waiting.Add(1)
	}
}

// Holders is Snapshots, with every pod asking for what it holds on the node.
func (d *Dispatcher) Holders() []pod.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return asHeld(d.holders(""))
}

// holders are the snapshots of all entries but uid, each with the pod that says
// what it holds, grants on their way included. The caller holds mu.
func (d *Dispatcher) holders(uid pod.UID) []pod.Snapshot {
	all := d.others(uid)
	for i := range all {
		s := &all[i]
		a, ok := d.resizes.granted[s.UID]
		if !ok || s.Resize == nil || s.Resize.Desired.Generation != a.Generation || s.Resize.Allocated.Generation == a.Generation {
			continue
		}
		granted := *s.Resize
		granted.Allocated, granted.Pending = granted.Desired, nil
		s.Resize, s.Held = &granted, s.Desired.Pod
	}
	return all
}

// asHeld shows every pod with what it holds: what admission counts.
func asHeld(all []pod.Snapshot) []pod.Snapshot {
	for i := range all {
		all[i] = all[i].AsHeld()
	}
	return all
}

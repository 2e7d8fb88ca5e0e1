// Package dispatch owns the map from a pod's UID to its worker. It starts a
// worker for every pod that a source wants, that a record tells of or that the
// runtime has; it ends those that their own source no longer knows, and makes
// the successor of a pod of the same full name wait until nothing of its
// predecessor is left. It holds no state of a pod.
package dispatch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/worker"
)

// Config is what a Dispatcher works with.
type Config struct {
	// Sources are all that are configured. A pod of no configured source is ended
	// once all of them have delivered.
	Sources []pod.Source
	// Admit says why a pod may not run here beside the others, nil if it may. It is
	// pure and called once for each new UID, when its turn comes. Snapshots of
	// pods that have ended are among the others.
	Admit func(d pod.Desired, others []pod.Snapshot) *pod.Rejection
	// Allocate decides about the resizes that wait, given all pods, and leaves out
	// what it has decided before; nil grants none. It is pure.
	Allocate func(pods []pod.Snapshot) []pod.Allocation
	// Worker is what every worker gets.
	Worker worker.Deps
}

// Dispatcher starts, feeds and forgets workers. Its methods may be called from
// any goroutine; none waits for a worker, except Shutdown.
type Dispatcher struct {
	config Config
	ctx    context.Context
	stop   context.CancelFunc
	wg     sync.WaitGroup

	mu        sync.Mutex
	closed    bool
	entries   map[pod.UID]*entry
	delivered map[pod.Source]bool
	arrivals  uint64
	resizes   resizes
}

// entry is one UID.
//
//	waiting (for a predecessor) ─┐
//	dormant (spec unknown)      ─┼▶ running ─▶ gone, or again if it was wanted anew
//	restored ────────────────────┘
type entry struct {
	uid     pod.UID
	desired pod.Desired
	source  pod.Source
	arrival uint64 // order among those that wait
	worker  *worker.Worker
	// dormant: known from the runtime alone; left alone until its spec or its end is known.
	dormant  bool
	observed pod.Observed
	// again is a desire for the same UID that came while it was being ended.
	again *pod.Desired
	// placeholder is shown while there is no worker; shown says that it is the one published.
	placeholder pod.Snapshot
	shown       bool
}

// ObservedPod is a pod that the runtime has.
type ObservedPod struct {
	Namespace, Name string
	// Source is from the sandbox's annotation; empty if there is none.
	Source   pod.Source
	Observed pod.Observed
}

// New returns a Dispatcher whose workers run until Shutdown, or until ctx ends.
func New(ctx context.Context, config Config) *Dispatcher {
	ctx, stop := context.WithCancel(ctx)
	d := &Dispatcher{config: config, ctx: ctx, stop: stop, entries: map[pod.UID]*entry{}, delivered: map[pod.Source]bool{}}
	d.resizes.wake, d.resizes.granted = make(chan struct{}, 1), map[pod.UID]pod.Allocation{}
	d.config.Worker.Publish = d.resizes.watch(config.Worker.Publish)
	return d
}

// Restore takes up what an earlier agent has left: call it once, before the
// first Update. Pods with a record go on at once, by their last known spec;
// those that only the runtime knows are left alone until their source tells
// what they are, or that they are to be ended.
func (d *Dispatcher) Restore(records map[pod.UID]pod.Record, observed map[pod.UID]ObservedPod) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for uid, r := range records {
		if r.Durable.Pod == nil {
			continue
		}
		o := observed[uid].Observed
		if o.At.IsZero() {
			o.At = time.Now() // the list was complete: it has none of this pod
		}
		e := d.enter(uid, pod.Desired{Pod: r.Durable.Pod, Source: r.Durable.Source, RuntimeHandler: r.Durable.RuntimeHandler, Termination: r.Durable.Termination})
		d.run(e, r, o)
	}
	for uid, o := range observed {
		if _, ok := d.entries[uid]; ok {
			continue
		}
		e := d.enter(uid, pod.Desired{Pod: minimalPod(uid, o), Source: o.Source})
		e.dormant, e.observed = true, o.Observed
		e.placeholder = pod.Snapshot{UID: uid, At: time.Now(), Desired: e.desired, Observed: o.Observed, Explanation: pod.Explanation{
			Cause: "The pod runs, but its specification is not known.", Next: "It is left alone until its source has been read.",
		}}
		d.show(e)
	}
}

func (d *Dispatcher) enter(uid pod.UID, desired pod.Desired) *entry {
	d.arrivals++
	e := &entry{uid: uid, desired: desired, source: desired.Source, arrival: d.arrivals}
	d.entries[uid] = e
	return e
}

// Update takes in all pods of one source. Pods that the source no longer has
// are terminated and forgotten.
func (d *Dispatcher) Update(source pod.Source, pods []pod.Desired) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return
	}
	d.delivered[source] = true
	wanted := make(map[pod.UID]bool, len(pods))
	for _, p := range pods {
		uid := pod.UID(p.Pod.UID)
		wanted[uid] = true
		p.Source = source
		d.want(uid, p)
	}
	for uid, e := range d.entries {
		if !wanted[uid] && (e.source == source || d.ownerless(e.source)) {
			d.unwant(e)
		}
	}
	d.startWaiting()
}

// ownerless says that no source will ever deliver pods of s, and that all that
// could claim them have been heard.
func (d *Dispatcher) ownerless(s pod.Source) bool {
	if slices.Contains(d.config.Sources, s) || d.delivered[s] {
		return false
	}
	for _, c := range d.config.Sources {
		if !d.delivered[c] {
			return false
		}
	}
	return true
}

func (d *Dispatcher) want(uid pod.UID, p pod.Desired) {
	e, ok := d.entries[uid]
	switch {
	case !ok:
		e = d.enter(uid, p)
		e.placeholder = waitingSnapshot(uid, p)
	case e.desired.Forget:
		e.again = &p
	case e.dormant:
		e.dormant, e.desired, e.source = false, plan.Merge(e.desired, p), p.Source
		d.run(e, pod.Record{}, e.observed)
		e.worker.Hint()
	case e.worker == nil:
		e.desired = plan.Merge(e.desired, p)
		e.placeholder, e.shown = waitingSnapshot(uid, e.desired), false
	default:
		next := plan.Merge(e.desired, p)
		e.source = p.Source
		if next.Pod == e.desired.Pod && next.Inputs == e.desired.Inputs && next.Termination == e.desired.Termination && next.Source == e.desired.Source && next.RuntimeHandler == e.desired.RuntimeHandler {
			return
		}
		e.desired = next
		e.worker.Desire(next)
	}
}

// unwant ends e and has it forgotten.
func (d *Dispatcher) unwant(e *entry) {
	e.again = nil
	if e.worker == nil && !e.dormant {
		delete(d.entries, e.uid)
		gone := e.placeholder
		gone.Gone = true
		d.config.Worker.Publish(gone)
		return
	}
	if e.desired.Forget {
		return
	}
	e.desired.Forget = true
	d.terminate(e, pod.Termination{Requested: time.Now()})
}

// terminate hands a termination, and whatever else has changed in e.desired, to the worker.
func (d *Dispatcher) terminate(e *entry, t pod.Termination) {
	e.desired = plan.Merge(e.desired, pod.Desired{
		Pod: e.desired.Pod, Source: e.desired.Source, RuntimeHandler: e.desired.RuntimeHandler, Inputs: e.desired.Inputs, Termination: mergeInto(e.desired.Termination, t),
	})
	if e.dormant {
		e.dormant = false
		d.run(e, pod.Record{}, e.observed)
		e.worker.Hint()
		return
	}
	if e.worker != nil {
		e.worker.Desire(e.desired)
	}
}

// mergeInto keeps a termination that was asked for before.
func mergeInto(old *pod.Termination, t pod.Termination) *pod.Termination {
	if old == nil {
		return &t
	}
	return plan.Merge(pod.Desired{Termination: old}, pod.Desired{Termination: &t}).Termination
}

// Terminate asks for the end of pod uid; its source may go on to have it. It
// says whether there is such a pod.
func (d *Dispatcher) Terminate(uid pod.UID, t pod.Termination) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	e, ok := d.entries[uid]
	if ok {
		d.terminate(e, t)
	}
	return ok
}

// startWaiting starts every entry that waits for nothing any more, in the order
// they came.
func (d *Dispatcher) startWaiting() {
	var waiting []*entry
	taken := map[pod.FullName]bool{}
	for _, e := range d.entries {
		switch {
		case e.worker != nil || e.dormant:
			taken[fullName(e.desired)] = true
		default:
			waiting = append(waiting, e)
		}
	}
	slices.SortFunc(waiting, func(a, b *entry) int { return int(int64(a.arrival) - int64(b.arrival)) })
	for _, e := range waiting {
		name := fullName(e.desired)
		if taken[name] {
			d.show(e)
			continue
		}
		taken[name] = true
		if e.desired.Rejection == nil && d.config.Admit != nil {
			e.desired.Rejection = d.config.Admit(e.desired, asHeld(d.holders(e.uid)))
		}
		d.run(e, pod.Record{}, pod.Observed{})
	}
}

func fullName(p pod.Desired) pod.FullName { return pod.NewFullName(p.Pod.Namespace, p.Pod.Name) }

// run starts e's worker.
func (d *Dispatcher) run(e *entry, r pod.Record, o pod.Observed) {
	if d.closed {
		return
	}
	w := worker.New(e.uid, e.desired, r, o, d.config.Worker)
	e.worker = w
	d.wg.Go(func() {
		if err := w.Run(d.ctx); err == nil {
			d.finished(e)
		}
	})
}

// show publishes what stands in for e's worker, once: a pod that waits is seen too.
func (d *Dispatcher) show(e *entry) {
	if !e.shown && !d.closed {
		e.shown = true
		d.config.Worker.Publish(e.placeholder)
	}
}

// finished forgets e, of which nothing is left, and lets its successor go.
func (d *Dispatcher) finished(e *entry) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.entries, e.uid)
	if d.closed {
		return
	}
	if e.again != nil {
		next := d.enter(e.uid, *e.again)
		next.placeholder = waitingSnapshot(e.uid, *e.again)
	}
	d.startWaiting()
}

// Hint asks the worker of uid to look at its pod.
func (d *Dispatcher) Hint(uid pod.UID) {
	if w := d.worker(uid); w != nil {
		w.Hint()
	}
}

// HintAll asks every worker to look at its pod.
func (d *Dispatcher) HintAll() {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, e := range d.entries {
		if e.worker != nil {
			e.worker.Hint()
		}
	}
}

// Amend has change applied to the state of pod uid by its worker, and returns
// when what came of it is on disk (see worker.Amend).
func (d *Dispatcher) Amend(ctx context.Context, uid pod.UID, change func(*plan.State) error) error {
	w := d.worker(uid)
	if w == nil {
		return &pod.Error{Op: "amend pod", Kind: pod.NotFound, Err: errors.New("the pod is not run yet, or not any more: see berth why")}
	}
	return w.Amend(ctx, change)
}

// Verdict passes a probe's change of verdict to the worker of uid.
func (d *Dispatcher) Verdict(uid pod.UID, v pod.ProbeVerdict) {
	if w := d.worker(uid); w != nil {
		w.Verdict(v)
	}
}

func (d *Dispatcher) worker(uid pod.UID) *worker.Worker {
	d.mu.Lock()
	defer d.mu.Unlock()
	if e, ok := d.entries[uid]; ok {
		return e.worker
	}
	return nil
}

// Snapshots returns the last snapshot of every pod, by namespace, name and age.
func (d *Dispatcher) Snapshots() []pod.Snapshot {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.others("")
}

// Shutdown ends all workers and waits for them, at most until ctx ends. The
// pods are left running.
func (d *Dispatcher) Shutdown(ctx context.Context) error {
	d.mu.Lock()
	d.closed = true
	d.mu.Unlock()
	d.stop()
	done := make(chan struct{})
	go func() { // ends with the last worker, which ends with its last action
		d.wg.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		var names []string
		for _, s := range d.Snapshots() {
			if len(s.InFlight) > 0 {
				names = append(names, string(fullName(s.Desired)))
			}
		}
		return fmt.Errorf("pod workers still busy at exit (%s): %w", strings.Join(names, ", "), ctx.Err())
	}
}

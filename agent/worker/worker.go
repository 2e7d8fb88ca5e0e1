// Package worker owns one pod's state. A Worker is the only writer of it: it asks
// plan what to do, stores what must not be forgotten, tells the others where
// the pod stands, starts the actions and waits for what comes next. It decides
// nothing itself.
package worker

import (
	"context"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// Task is one action with all that its doing needs to know.
type Task struct {
	Desired  pod.Desired
	Observed pod.Observed
	Record   pod.Record
	Action   pod.Action
}

// Runtime does actions.
type Runtime interface {
	// Do does t.Action and says what became of it. It is idempotent, blocks until
	// the action is over, returns soon after ctx ends, and is called from several
	// goroutines at once, but never twice at once for one slot of a pod.
	Do(ctx context.Context, t Task) pod.Result
}

// Probes runs health checks.
type Probes interface {
	// Set replaces the probes of pod uid by targets: one that is still there goes
	// on undisturbed. It does not block.
	Set(uid pod.UID, targets []plan.ProbeTarget)
	// Forget ends all probes of pod uid.
	Forget(uid pod.UID)
}

// Records keeps pod records on disk.
type Records interface {
	// Save stores r and returns when what may not be lost by a power cut is safe.
	Save(uid pod.UID, r pod.Record) error
	// Erase removes the record; one that is not there is removed already.
	Erase(uid pod.UID) error
}

// Deps is what a worker works with. All fields are required.
type Deps struct {
	Runtime Runtime
	Probes  Probes
	Records Records
	// Publish gets each snapshot, in order; it must not block.
	Publish func(pod.Snapshot)
	// Events gets each event; it must not block.
	Events func(pod.UID, pod.Event)
	Config plan.Config
	Log    *slog.Logger
}

// Worker runs one pod.
//
//	┌▶ decide ─▶ save ─▶ publish ─▶ probes ─▶ cancel ─▶ start ─▶ wait ─┐
//	└───────────────── mailbox, result, timer ◀───────────────────────┘
type Worker struct {
	uid   pod.UID
	deps  Deps
	log   *slog.Logger
	mail  mailbox
	state plan.State

	results  chan pod.Result
	cancels  map[pod.Slot]context.CancelFunc
	actions  sync.WaitGroup
	probed   []plan.ProbeTarget
	snapshot atomic.Pointer[pod.Snapshot]
	saving   backoff
	amended  []amendment   // applied, and not yet on disk
	ended    chan struct{} // closed when Run is over
}

// New returns a worker for pod uid that is not yet running. record and observed
// are what is known from before; both may be zero.
func New(uid pod.UID, desired pod.Desired, record pod.Record, observed pod.Observed, deps Deps) *Worker {
	w := &Worker{
		uid: uid, deps: deps,
		log:     deps.Log.With("pod", desired.Pod.Namespace+"/"+desired.Pod.Name, "uid", string(uid)),
		mail:    newMailbox(),
		state:   plan.NewState(desired, record, observed, deps.Config),
		results: make(chan pod.Result),
		cancels: map[pod.Slot]context.CancelFunc{},
		ended:   make(chan struct{}),
	}
	first := w.state
	first.Now = time.Now()
	p := plan.Decide(first)
	w.snapshot.Store(&pod.Snapshot{UID: uid, At: first.Now, Desired: w.state.Shown(), Status: p.Status, Observed: observed, Held: w.state.Held(), Resize: w.state.Record.Durable.Resize, Explanation: p.Explanation})
	return w
}

// Desire replaces what is wanted of the pod. It does not block; the latest wins,
// except that a termination cannot be taken back.
func (w *Worker) Desire(d pod.Desired) { w.mail.desire(d) }

// Hint asks the worker to look at its pod. It does not block.
func (w *Worker) Hint() { w.mail.hint() }

// Verdict tells of a probe's change of verdict. It does not block; the latest of
// each probe wins.
func (w *Worker) Verdict(v pod.ProbeVerdict) { w.mail.verdict(v) }

// Snapshot returns the last published snapshot; anybody may call it at any time.
func (w *Worker) Snapshot() *pod.Snapshot { return w.snapshot.Load() }

// Run works on the pod until nothing of it is left, and then returns nil. When
// ctx ends it gives up the actions in flight, waits for them, and returns ctx's
// error: the pod is left as it is, for the next agent to take up.
func (w *Worker) Run(ctx context.Context) error {
	defer close(w.ended)
	defer w.deps.Probes.Forget(w.uid)
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		w.state.Now = time.Now()
		p := plan.Decide(w.state)
		saved := w.save(&p)
		w.tell(p, saved)
		if saved {
			w.confirm()
		}
		w.probe(p.Probes)
		for _, slot := range p.Cancel {
			if cancel, ok := w.cancels[slot]; ok {
				cancel()
			}
		}
		for _, a := range p.Start {
			if saved || harmless(a.Op) {
				w.start(ctx, a)
			}
		}
		if p.Done && saved {
			if err := w.deps.Records.Erase(w.uid); err != nil {
				w.log.Warn("the record of a finished pod stays on disk until the next start", "err", err)
			}
			return nil
		}
		if err := w.wait(ctx, timer, p.Wake); err != nil {
			w.leave()
			return err
		}
	}
}

// harmless says that an action may begin although the record could not be saved.
func harmless(op pod.Op) bool {
	return op == pod.OpObserve || op == pod.OpPreStop || op == pod.OpStopContainer
}

// save stores the record, if it changed, and says whether what is in memory is
// on disk. While the disk refuses, nothing is acquired, and it is tried again
// ever more slowly.
func (w *Worker) save(p *plan.Plan) bool {
	w.state.Record, w.state.Unsaved = p.Record, p.Unsaved
	if p.Unsaved == (plan.Parts{}) {
		return true
	}
	if now := w.state.Now; now.Before(w.saving.next) {
		p.Wake = earlier(p.Wake, w.saving.next)
		return false
	}
	if err := w.deps.Records.Save(w.uid, p.Record); err != nil {
		w.saving.failed(w.state.Now, err)
		w.log.Error("pod record cannot be saved; nothing is started before it can", "err", err, "retry", w.saving.next)
		w.deps.Events(w.uid, pod.Event{Warning: true, Reason: "FailedSync", Message: "the pod's record cannot be saved: " + err.Error(), At: w.state.Now})
		p.Wake = earlier(p.Wake, w.saving.next)
		return false
	}
	w.saving, w.state.Unsaved = backoff{}, plan.Parts{}
	return true
}

func earlier(a, b time.Time) time.Time {
	if a.IsZero() || b.Before(a) {
		return b
	}
	return a
}

// tell publishes where the pod stands. What is not on disk is not told: it
// could be untrue after a restart.
func (w *Worker) tell(p plan.Plan, saved bool) {
	s := pod.Snapshot{UID: w.uid, At: w.state.Now, Desired: w.state.Shown(), Status: p.Status, Observed: w.state.Observed, Held: w.state.Held(), Resize: p.Record.Durable.Resize, Explanation: p.Explanation, Gone: p.Done && saved}
	if !saved {
		last := w.snapshot.Load()
		s.Status, s.Resize = last.Status, last.Resize
		s.Explanation = pod.Explanation{
			Cause: "The pod's record cannot be saved: " + w.saving.err.Error() + ".", Reason: "FailedSync", Since: w.saving.since,
			Next: "Nothing new is started before it succeeds; it is tried again.", NextAt: w.saving.next,
			Advice: plan.Advise(plan.Trouble{Reason: "FailedSync", Message: w.saving.err.Error(), Pod: w.state.Desired.Pod}),
		}
	}
	for _, a := range w.state.InFlight {
		s.InFlight = append(s.InFlight, a)
	}
	slices.SortFunc(s.InFlight, func(a, b pod.Action) int { return strings.Compare(string(a.Slot), string(b.Slot)) })
	w.snapshot.Store(&s)
	w.deps.Publish(s)
	for _, e := range p.Events {
		w.deps.Events(w.uid, e)
	}
}

// probe tells Probes, if the set has changed.
func (w *Worker) probe(targets []plan.ProbeTarget) {
	same := slices.EqualFunc(targets, w.probed, func(a, b plan.ProbeTarget) bool {
		return a.Container == b.Container && a.Kind == b.Kind && slices.Equal(a.IPs, b.IPs)
	})
	if same {
		return
	}
	w.probed = targets
	w.deps.Probes.Set(w.uid, targets)
}

// wait returns when there is something new to decide on, or with ctx's error.
func (w *Worker) wait(ctx context.Context, timer *time.Timer, wake time.Time) error {
	var alarm <-chan time.Time
	if !wake.IsZero() {
		timer.Reset(max(time.Until(wake), 0))
		alarm = timer.C
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case r := <-w.results:
		w.fold(r)
	case <-w.mail.ready:
	case <-alarm:
	}
	for { // whatever else has arrived is decided on in one go
		select {
		case r := <-w.results:
			w.fold(r)
			continue
		default:
		}
		break
	}
	w.open()
	return nil
}

// open takes in the mailbox.
func (w *Worker) open() {
	mail := w.mail.take()
	if mail.desired != nil {
		w.state.SetDesired(*mail.desired)
	}
	w.apply(mail.changes)
	w.state.Look = w.state.Look || mail.hinted
	for _, v := range mail.verdicts {
		w.state.SetVerdict(v)
	}
}

// leave ends the worker's actions and stores what they still brought.
func (w *Worker) leave() {
	for _, cancel := range w.cancels {
		cancel()
	}
	for len(w.state.InFlight) > 0 {
		w.fold(<-w.results)
	}
	w.actions.Wait()
	w.open()
	if w.state.Unsaved == (plan.Parts{}) {
		w.confirm()
		return
	}
	if err := w.deps.Records.Save(w.uid, w.state.Record); err != nil {
		w.log.Error("pod record cannot be saved at exit", "err", err)
		return
	}
	w.confirm()
}

package probes

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/berthd/berth/probes/result"
)

// Config is what New needs. The functions are called from several goroutines,
// for one target never from two at once, and should not block.
type Config struct {
	// Exec runs cmd in a container and returns exit code and output. Past
	// timeout it ends the command and returns an error that is
	// context.DeadlineExceeded. Any other error means that the command could not
	// be run, which says nothing about the container.
	Exec func(ctx context.Context, containerID string, cmd []string, timeout time.Duration) (exit int, output []byte, err error)
	// Report tells that a verdict changed. message is the failure's, else empty.
	Report func(uid, containerID string, kind Kind, ok bool, message string)
	// Failed tells of every probe that failed or could not be made, with the
	// text of the event Unhealthy; t is not to be kept. May be nil.
	Failed func(uid string, t *Target, message string)
	// Warned tells of every success with a reservation, with the text of the
	// event ProbeWarning. May be nil.
	Warned func(uid, containerID string, kind Kind, message string)
	Logger *slog.Logger
}

// Bounds on probes running at once. Network probes mostly wait; an exec probe
// starts processes, and a node full of them must not start all at once.
const (
	maxNetwork = 256
	maxExec    = 32
)

// Prober makes the probes of all pods of the node.
type Prober struct {
	cfg     Config
	started time.Time
	kick    chan struct{} // capacity 1: the earliest due time may have changed

	mu      sync.Mutex
	pods    map[string]map[key]*probe
	queue   queue
	network pool
	exec    pool
	workers sync.WaitGroup
}

// probe is one target and where it stands. Prober.mu guards it.
type probe struct {
	uid    string
	target Target
	track  result.Track
	due    time.Time
	index  int                // in the queue; -1: not waiting
	busy   bool               // due and waiting for a worker, or running
	cancel context.CancelFunc // set while running
	again  bool               // Trigger came while it was busy
	dead   bool               // replaced or forgotten: its outcome counts no more
	dial   *dialing           // what HTTP, TCP and gRPC probes prepare once
}

// New returns a Prober that does nothing before Run.
func New(cfg Config) *Prober {
	return &Prober{
		cfg:     cfg,
		started: time.Now(),
		kick:    make(chan struct{}, 1),
		pods:    map[string]map[key]*probe{},
		network: pool{limit: maxNetwork},
		exec:    pool{limit: maxExec},
	}
}

// Set makes targets the probes of the pod. A target that is there already, for
// the same container and kind, keeps its counts and its schedule; others start
// or end. While a container's startup probe has not succeeded its other probes
// wait. The caller leaves out what must not be probed: containers that do not
// run, and startup and liveness of a pod that is being terminated.
func (p *Prober) Set(uid string, targets []Target) {
	p.mu.Lock()
	defer p.mu.Unlock()
	old := p.pods[uid]
	now := time.Now()
	next := make(map[key]*probe, len(targets))
	for i := range targets {
		t := targets[i]
		k := t.key()
		if next[k] != nil || t.Probe == nil {
			continue
		}
		if have := old[k]; have != nil && have.target.same(&t) {
			next[k] = have
			delete(old, k)
			continue
		}
		if have := old[k]; have != nil {
			t.Initial = have.track.Verdict()
		}
		next[k] = &probe{uid: uid, target: t, track: result.New(t.Kind, t.thresholds(), t.Initial), index: -1, dial: &dialing{}}
	}
	for _, gone := range old {
		p.drop(gone)
	}
	delete(p.pods, uid)
	if len(next) > 0 {
		p.pods[uid] = next
	}
	for _, one := range next {
		if one.index >= 0 && p.gated(one) { // its startup probe came later
			p.queue.remove(one)
		}
		p.arm(one, now.Add(p.first(one, now)), now)
	}
}

// Forget ends all probes of the pod.
func (p *Prober) Forget(uid string) { p.Set(uid, nil) }

// Trigger makes the readiness probes of the pod that have not succeeded due at
// once, except within their initial delay: called when something happened that
// may have made a container ready.
func (p *Prober) Trigger(uid string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for k, one := range p.pods[uid] {
		if k.kind != Readiness || one.track.Verdict() == Success || one.target.delay(now) > 0 {
			continue
		}
		if one.busy {
			one.again = true
		} else if one.index >= 0 && one.due.After(now) {
			p.queue.remove(one)
			p.arm(one, now, now)
		}
	}
}

// Run makes probes until ctx is over, then waits for those under way.
func (p *Prober) Run(ctx context.Context) error {
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			p.workers.Wait()
			return ctx.Err()
		case <-p.kick:
		case <-timer.C:
		}
		if wait, more := p.dispatch(ctx, time.Now()); more {
			timer.Reset(wait)
		} else {
			timer.Stop()
		}
	}
}

// first is how long to wait before the first probe. The probes of containers
// that ran before the agent did are spread over their period, lest a restart of
// the agent fires all of the node's at once.
func (p *Prober) first(one *probe, now time.Time) time.Duration {
	wait := one.target.delay(now)
	if adopted := one.target.StartedAt.Before(p.started); adopted {
		wait = max(wait, rand.N(one.target.period()))
	}
	return wait
}

// arm puts one into the queue unless it is there, running, held or gated.
func (p *Prober) arm(one *probe, due, now time.Time) {
	if one.index >= 0 || one.busy || one.track.Held() || p.gated(one) {
		return
	}
	one.due = due
	if due.Before(now) {
		one.due = now
	}
	p.queue.add(one)
	if one.index > 0 {
		return
	}
	select { // it is the earliest now
	case p.kick <- struct{}{}:
	default: // a wake is pending, and it looks at everything
	}
}

func (p *Prober) gated(one *probe) bool {
	if one.target.Kind == Startup {
		return false
	}
	gate := p.pods[one.uid][key{one.target.ContainerID, Startup}]
	return gate != nil && gate.track.Verdict() != Success
}

func (p *Prober) drop(one *probe) {
	one.dead = true
	if one.index >= 0 {
		p.queue.remove(one)
	}
	if one.cancel != nil {
		one.cancel()
	}
}

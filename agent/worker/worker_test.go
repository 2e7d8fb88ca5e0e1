package worker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// node is an in-memory Runtime, Probes and Records.
type node struct {
	mu         sync.Mutex
	sandboxes  []pod.Sandbox
	containers []pod.Container
	done       []string
	block      map[pod.Op]bool // these hang until their context ends
	deaf       bool            // and observe hangs although it ends, for an hour
	panics     pod.Op
	stubborn   bool // containers do not heed TERM
	saveErr    error
	saved      pod.Record
	erased     bool
	targets    []plan.ProbeTarget
	forgotten  bool
	snapshots  []pod.Snapshot
	events     []pod.Event
}

func (n *node) Do(ctx context.Context, t Task) pod.Result {
	a := t.Action
	n.mu.Lock()
	block, deaf, panics := n.block[a.Op], n.deaf && a.Op == pod.OpObserve, n.panics == a.Op
	n.mu.Unlock()
	switch {
	case panics:
		n.mu.Lock()
		n.panics = ""
		n.mu.Unlock()
		panic("boom")
	case deaf:
		time.Sleep(time.Hour)
		return pod.Result{Err: errors.New("deaf")}
	case block:
		<-ctx.Done()
		return pod.Result{Err: ctx.Err()}
	}
	if a.Op == pod.OpStopContainer && n.stubborn {
		select {
		case <-time.After(a.Grace):
		case <-ctx.Done():
			return pod.Result{Err: ctx.Err()}
		}
	}
	time.Sleep(time.Millisecond)
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.effect(a)
}

func (n *node) effect(a pod.Action) pod.Result {
	if a.Op != pod.OpObserve {
		n.done = append(n.done, string(a.Op))
	}
	r := pod.Result{}
	switch a.Op {
	case pod.OpObserve:
		r.Observed = &pod.Observed{At: time.Now(), Sandboxes: slices.Clone(n.sandboxes), Containers: slices.Clone(n.containers)}
	case pod.OpPullImage:
		r.Image = pod.Image{Ref: "ref"}
	case pod.OpCreateSandbox:
		n.sandboxes = []pod.Sandbox{{ID: "s", Attempt: a.Attempt, Ready: true, IPs: []string{"10.0.0.1"}}}
	case pod.OpStopSandbox:
		n.sandboxes[0].Ready = false
	case pod.OpRemoveSandbox:
		n.sandboxes, n.containers = nil, nil
	case pod.OpStartContainer:
		n.containers = append(n.containers, pod.Container{
			ID: pod.ContainerID(fmt.Sprintf("c%d", a.Attempt)), Name: a.Container, Attempt: a.Attempt, SandboxID: a.SandboxID, State: pod.Running, StartedAt: time.Now(),
		})
	case pod.OpStopContainer:
		n.exit(a.ContainerID, 143)
	}
	return r
}

func (n *node) exit(id pod.ContainerID, code int32) {
	for i := range n.containers {
		if c := &n.containers[i]; c.ID == id {
			c.State, c.ExitCode, c.FinishedAt = pod.Exited, code, time.Now()
		}
	}
}

func (n *node) Set(_ pod.UID, t []plan.ProbeTarget) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.targets = t
}

func (n *node) Forget(pod.UID) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgotten = true
}

func (n *node) Save(_ pod.UID, r pod.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.saveErr != nil {
		return n.saveErr
	}
	n.saved = r
	return nil
}

func (n *node) Erase(pod.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.erased = true
	return nil
}

func (n *node) publish(s pod.Snapshot) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.snapshots = append(n.snapshots, s)
}

func (n *node) event(_ pod.UID, e pod.Event) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.events = append(n.events, e)
}

func (n *node) set(f func()) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f()
}

func (n *node) count(op pod.Op) int {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := 0
	for _, o := range n.done {
		if o == string(op) {
			c++
		}
	}
	return c
}

func newNode() *node { return &node{block: map[pod.Op]bool{}} }

func (n *node) deps() Deps {
	return Deps{Runtime: n, Probes: n, Records: n, Publish: n.publish, Events: n.event, Log: slog.New(slog.DiscardHandler)}
}

func testPod() *v1.Pod {
	grace := int64(30)
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", "p", "u"
	p.Spec.TerminationGracePeriodSeconds = &grace
	p.Spec.Containers = []v1.Container{{Name: "app", Image: "img", ReadinessProbe: &v1.Probe{}}}
	return p
}

// run starts a worker in the bubble, and returns it and the function that ends it.
func run(t *testing.T, n *node, record pod.Record, observed pod.Observed) (*Worker, func() error) {
	ctx, cancel := context.WithCancel(t.Context())
	w := New("u", pod.Desired{Pod: testPod()}, record, observed, n.deps())
	result := make(chan error, 1)
	go func() { result <- w.Run(ctx) }()
	return w, func() error {
		cancel()
		return <-result
	}
}

func forget(w *Worker) {
	w.Desire(pod.Desired{Pod: testPod(), Forget: true, Termination: &pod.Termination{Requested: time.Now()}})
}

func TestLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		if s := w.Snapshot(); s.Status.Phase != v1.PodRunning || s.Explanation.Well {
			t.Fatalf("phase %s, %+v", s.Status.Phase, s.Explanation)
		}
		if len(n.targets) != 1 || n.targets[0].IPs[0] != "10.0.0.1" {
			t.Fatalf("probes %+v", n.targets)
		}
		w.Verdict(pod.ProbeVerdict{Container: "c0", Kind: pod.Readiness, Verdict: pod.Success})
		pause(time.Second)
		if s := w.Snapshot(); !s.Explanation.Well {
			t.Fatalf("not well: %+v", s.Explanation)
		}
		before := len(n.snapshots)
		pause(24 * time.Hour)
		if len(n.snapshots) != before {
			t.Errorf("an idle pod made %d decisions in a day", len(n.snapshots)-before)
		}
		n.set(func() { n.exit("c0", 1) })
		w.Hint()
		pause(time.Second)
		if s := w.Snapshot(); s.Status.ContainerStatuses[0].RestartCount != 1 {
			t.Errorf("restart count %d", s.Status.ContainerStatuses[0].RestartCount)
		}
		forget(w)
		pause(time.Second)
		if !n.erased || !n.forgotten || len(n.sandboxes) > 0 {
			t.Errorf("erased=%v probes forgotten=%v sandboxes=%v", n.erased, n.forgotten, n.sandboxes)
		}
		if err := stop(); err != nil {
			t.Errorf("Run: %v", err)
		}
	})
}

// TestAdopt: a new worker with what is on disk starts and flips nothing.
func TestAdopt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		w.Verdict(pod.ProbeVerdict{Container: "c0", Kind: pod.Readiness, Verdict: pod.Success})
		pause(time.Second)
		if err := stop(); !errors.Is(err, context.Canceled) {
			t.Fatalf("Run: %v", err)
		}
		if n.containers[0].State != pod.Running {
			t.Fatal("the agent's exit ended the container")
		}
		before := w.Snapshot().Status
		pause(time.Minute)
		n.done, n.snapshots = nil, nil
		w, stop = run(t, n, n.saved, pod.Observed{At: time.Now(), Sandboxes: n.sandboxes, Containers: n.containers})
		pause(time.Minute)
		if !slices.Equal(n.done, []string{"mount-volumes"}) {
			t.Errorf("done after the restart: %v", n.done)
		}
		for _, s := range n.snapshots {
			if fmt.Sprint(s.Status.Conditions) != fmt.Sprint(before.Conditions) {
				t.Errorf("conditions flipped: %v", s.Status.Conditions)
			}
		}
		forget(w)
		pause(time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// TestHungObserve: a runtime that does not answer, and does not heed its
// context, holds up neither termination nor the worker's status.
func TestHungObserve(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		n.set(func() { n.deaf = true })
		w.Hint()
		pause(time.Second)
		forget(w)
		pause(time.Second)
		if n.count(pod.OpStopContainer) != 1 {
			t.Errorf("stops: %d", n.count(pod.OpStopContainer))
		}
		n.set(func() { n.deaf = false })
		pause(2 * time.Hour)
		if !n.erased {
			t.Error("not done after the runtime came back")
		}
		stop()
	})
}

// TestShorterGrace: a stop in flight is cut short.
func TestShorterGrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.stubborn = true
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		forget(w)
		pause(10 * time.Second)
		short := 3 * time.Second
		w.Desire(pod.Desired{Pod: testPod(), Termination: &pod.Termination{Requested: time.Now(), Grace: &short}})
		begun := time.Now()
		if err := stopped(stop, n); err != nil {
			t.Fatal(err)
		}
		if took := time.Since(begun); took < 3*time.Second || took > 4*time.Second {
			t.Errorf("took %v", took)
		}
	})
}

// stopped waits for the record's end.
func stopped(stop func() error, n *node) error {
	for range 600 {
		time.Sleep(100 * time.Millisecond)
		n.mu.Lock()
		erased := n.erased
		n.mu.Unlock()
		if erased {
			return stop()
		}
	}
	return errors.New("never done")
}

package dispatch

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/worker"
)

// node is an in-memory node for any number of pods.
type node struct {
	mu      sync.Mutex
	pods    map[pod.UID]*pod.Observed
	started []string // "uid/container"
	records map[pod.UID]pod.Record
	admits  int
}

func (n *node) Do(ctx context.Context, t worker.Task) pod.Result {
	a, uid := t.Action, pod.UID(t.Desired.Pod.UID)
	if a.Op == pod.OpStopContainer {
		select {
		case <-time.After(time.Second):
		case <-ctx.Done():
			return pod.Result{Err: ctx.Err()}
		}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	o := pod.Observed{}
	if p := n.pods[uid]; p != nil {
		o = *p
	}
	o.At = time.Now()
	r := pod.Result{}
	switch a.Op {
	case pod.OpObserve:
		return pod.Result{Observed: &o}
	case pod.OpPullImage:
		r.Image = pod.Image{Ref: "ref"}
	case pod.OpCreateSandbox:
		o.Sandboxes = []pod.Sandbox{{ID: "s-" + pod.SandboxID(uid), Ready: true, IPs: []string{"10.0.0.1"}}}
	case pod.OpStopSandbox:
		o.Sandboxes = []pod.Sandbox{{ID: "s-" + pod.SandboxID(uid)}}
	case pod.OpRemoveSandbox:
		o.Sandboxes, o.Containers = nil, nil
	case pod.OpStartContainer:
		n.started = append(n.started, fmt.Sprintf("%s/%s", uid, a.Container))
		o.Containers = []pod.Container{{ID: "c-" + pod.ContainerID(uid), Name: a.Container, SandboxID: a.SandboxID, State: pod.Running}}
	case pod.OpStopContainer:
		c := o.Containers[0]
		c.State = pod.Exited
		o.Containers = []pod.Container{c}
	case pod.OpCleanup:
		delete(n.pods, uid)
		return r
	}
	n.pods[uid] = &o
	return r
}

func (n *node) Set(pod.UID, []plan.ProbeTarget) {}
func (n *node) Forget(pod.UID)                  {}

func (n *node) Save(uid pod.UID, r pod.Record) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.records[uid] = r
	return nil
}

func (n *node) Erase(uid pod.UID) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	delete(n.records, uid)
	return nil
}

func newNode() *node {
	return &node{pods: map[pod.UID]*pod.Observed{}, records: map[pod.UID]pod.Record{}}
}

func (n *node) dispatcher(t *testing.T, sources ...pod.Source) *Dispatcher {
	return New(t.Context(), Config{
		Sources: sources,
		Admit: func(d pod.Desired, others []pod.Snapshot) *pod.Rejection {
			n.admits++
			if d.Pod.Labels["full"] != "" && len(others) > 0 {
				return &pod.Rejection{Reason: pod.OutOfPods, Message: "no"}
			}
			return nil
		},
		Worker: worker.Deps{
			Runtime: n, Probes: n, Records: n, Publish: func(pod.Snapshot) {}, Events: func(pod.UID, pod.Event) {}, Log: slog.New(slog.DiscardHandler),
		},
	})
}

func testPod(name string, uid types.UID) pod.Desired {
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", name, uid
	p.Spec.Containers = []v1.Container{{Name: "app", Image: "img"}}
	return pod.Desired{Pod: p}
}

func phase(t *testing.T, d *Dispatcher, uid pod.UID) v1.PodPhase {
	t.Helper()
	for _, s := range d.Snapshots() {
		if s.UID == uid {
			return s.Status.Phase
		}
	}
	return ""
}

func shutdown(t *testing.T, d *Dispatcher) {
	t.Helper()
	if err := d.Shutdown(t.Context()); err != nil {
		t.Error(err)
	}
}

func TestUpdate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile, pod.SourceRun)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), testPod("b", "b1")})
		d.Update(pod.SourceRun, []pod.Desired{testPod("c", "c1")})
		pause(time.Minute)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), testPod("b", "b1")})
		if n.admits != 3 || len(n.started) != 3 {
			t.Errorf("admitted %d times, started %v", n.admits, n.started)
		}
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(time.Minute)
		if phase(t, d, "a1") != v1.PodRunning || phase(t, d, "b1") != "" || phase(t, d, "c1") != v1.PodRunning {
			t.Errorf("phases %q %q %q", phase(t, d, "a1"), phase(t, d, "b1"), phase(t, d, "c1"))
		}
		if s, ok := d.Get("ns", "a"); !ok || s.UID != "a1" {
			t.Errorf("Get: %v %v", s.UID, ok)
		}
		shutdown(t, d)
		if len(n.pods) != 2 {
			t.Errorf("the exit of the agent left %d pods", len(n.pods))
		}
	})
}

// TestSuccessor: the pod of the same full name waits until nothing is left.
func TestSuccessor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(time.Minute)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a2")})
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a3")}) // a2 never comes to run
		if s, ok := d.Get("ns", "a"); !ok || s.UID != "a1" {
			t.Errorf("Get while one waits: %v", s.UID)
		}
		if phase(t, d, "a3") != v1.PodPending || phase(t, d, "a2") != "" {
			t.Errorf("a3 %q a2 %q", phase(t, d, "a3"), phase(t, d, "a2"))
		}
		pause(time.Minute)
		if phase(t, d, "a3") != v1.PodRunning || phase(t, d, "a1") != "" || len(n.started) != 2 {
			t.Errorf("a3 %q a1 %q started %v", phase(t, d, "a3"), phase(t, d, "a1"), n.started)
		}
		shutdown(t, d)
	})
}

// TestAgain: the same UID, removed and wanted again, ends and then starts anew.
func TestAgain(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(time.Minute)
		d.Update(pod.SourceFile, nil)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(time.Minute)
		if phase(t, d, "a1") != v1.PodRunning || len(n.started) != 2 {
			t.Errorf("phase %q started %v", phase(t, d, "a1"), n.started)
		}
		shutdown(t, d)
	})
}

// TestRestore: after a restart nothing is ended before its own source has been heard.
func TestRestore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile, pod.SourceRun)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), testPod("b", "b1"), testPod("o", "o1"), testPod("x", "x1")})
		d.Update(pod.SourceRun, []pod.Desired{testPod("r", "r1")})
		pause(time.Minute)
		shutdown(t, d)

		n.started, n.admits = nil, 0
		observed := map[pod.UID]ObservedPod{}
		for uid, o := range n.pods {
			source := pod.SourceFile
			if uid == "x1" {
				source = "" // nobody knows where it came from
			}
			observed[uid] = ObservedPod{Namespace: "ns", Name: string(uid[:1]), Source: source, Observed: *o}
		}
		delete(n.records, "o1")
		delete(n.records, "x1")
		d = n.dispatcher(t, pod.SourceFile, pod.SourceRun)
		d.Restore(n.records, observed)
		pause(time.Minute)
		if len(n.pods) != 5 || len(n.started) != 0 {
			t.Fatalf("after Restore: %d pods, started %v", len(n.pods), n.started)
		}
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), testPod("o", "o1")})
		pause(time.Minute)
		for uid, want := range map[pod.UID]v1.PodPhase{"a1": v1.PodRunning, "b1": "", "o1": v1.PodRunning, "r1": v1.PodRunning} {
			if got := phase(t, d, uid); got != want {
				t.Errorf("%s: phase %q, want %q", uid, got, want)
			}
		}
		if n.pods["x1"] == nil {
			t.Error("a pod of unknown source was ended before all sources were heard")
		}
		d.Update(pod.SourceRun, nil)
		pause(time.Minute)
		if len(n.pods) != 2 || len(n.started) != 0 || n.admits != 0 || len(n.records) != 2 {
			t.Errorf("%d pods, %d records, started %v, admitted %d", len(n.pods), len(n.records), n.started, n.admits)
		}
		shutdown(t, d)
	})
}

func TestAdmissionAndTerminate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile)
		full := testPod("b", "b1")
		full.Pod.Labels = map[string]string{"full": "yes"}
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), full})
		pause(time.Minute)
		s, _ := d.Get("ns", "b")
		if s.Status.Phase != v1.PodFailed || s.Status.Reason != string(pod.OutOfPods) || len(n.started) != 1 {
			t.Errorf("%+v, started %v", s.Status, n.started)
		}
		if !d.Terminate("a1", pod.Termination{Requested: time.Now(), Reason: pod.Evicted, Message: "memory"}) || d.Terminate("none", pod.Termination{}) {
			t.Error("Terminate tells wrongly whether there is such a pod")
		}
		pause(time.Minute)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1"), full})
		pause(time.Minute)
		if s, _ := d.Get("ns", "a"); s.Status.Phase != v1.PodFailed || s.Status.Reason != string(pod.Evicted) || len(n.started) != 1 {
			t.Errorf("%+v, started %v", s.Status, n.started)
		}
		d.Hint("a1")
		d.HintAll()
		d.Verdict("none", pod.ProbeVerdict{})
		shutdown(t, d)
	})
}

// pause lets d pass, and then whatever is due come to rest.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

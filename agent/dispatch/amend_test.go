package dispatch

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// watched returns a dispatcher and what it and its workers have published last of each pod.
func (n *node) watched(t *testing.T, sources ...pod.Source) (*Dispatcher, func(pod.UID) pod.Snapshot) {
	d := n.dispatcher(t, sources...)
	last := map[pod.UID]pod.Snapshot{}
	d.config.Worker.Publish = func(s pod.Snapshot) {
		n.mu.Lock()
		defer n.mu.Unlock()
		last[s.UID] = s
	}
	return d, func(uid pod.UID) pod.Snapshot {
		n.mu.Lock()
		defer n.mu.Unlock()
		return last[uid]
	}
}

// TestWaitingIsShown: a pod that waits for its predecessor is seen, says why,
// and is gone again when nobody wants it any more.
func TestWaitingIsShown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d, last := n.watched(t, pod.SourceFile)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(10 * time.Second)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a2")})
		if s := last("a2"); s.Status.Phase != v1.PodPending || s.Status.Message == "" || s.Explanation.Cause != s.Status.Message {
			t.Errorf("the pod that waits is shown as %+v, %+v", s.Status, s.Explanation)
		}
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a3")})
		if !last("a2").Gone {
			t.Error("a pod that waited, and that nobody wants any more, is still shown")
		}
		pause(time.Minute)
		if s := last("a3"); s.Status.Phase != v1.PodRunning || s.Status.Message != "" {
			t.Errorf("its successor: %+v", s.Status)
		}
		shutdown(t, d)
	})
}

// TestAmend: a change goes to the pod's worker; a pod without one has nothing to change.
func TestAmend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d, last := n.watched(t, pod.SourceFile)
		d.Update(pod.SourceFile, []pod.Desired{testPod("a", "a1")})
		pause(10 * time.Second)
		gate := func(s *plan.State) error {
			return s.SetCondition(v1.PodCondition{Type: "gate", Status: v1.ConditionTrue}, time.Now())
		}
		if err := d.Amend(t.Context(), "a1", gate); err != nil {
			t.Error(err)
		}
		if c := last("a1").Status.Conditions; len(c) == 0 || c[0].Type != "gate" {
			t.Errorf("conditions %v", c)
		}
		broken := errors.New("refused")
		if err := d.Amend(t.Context(), "a1", func(*plan.State) error { return broken }); !errors.Is(err, broken) {
			t.Error(err)
		}
		if err := d.Amend(t.Context(), "a2", gate); pod.KindOf(err) != pod.NotFound {
			t.Errorf("of an unknown pod: %v", err)
		}
		shutdown(t, d)
	})
}

// TestRestoreKeepsTheHandler: what is known of a pod from its record alone includes how it is run.
func TestRestoreKeepsTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d, last := n.watched(t, pod.SourceFile)
		r := pod.Record{}
		r.Durable.Pod, r.Durable.Source, r.Durable.RuntimeHandler = testPod("a", "a1").Pod, pod.SourceFile, "other"
		c := v1.EphemeralContainer{}
		c.Name, c.Image = "debug", "img"
		r.Durable.Ephemeral = []v1.EphemeralContainer{c}
		d.Restore(map[pod.UID]pod.Record{"a1": r}, nil)
		pause(10 * time.Second)
		if s := last("a1"); s.Desired.RuntimeHandler != "other" || len(s.Desired.Pod.Spec.EphemeralContainers) != 1 {
			t.Errorf("restored as %+v", s.Desired)
		}
		shutdown(t, d)
	})
}

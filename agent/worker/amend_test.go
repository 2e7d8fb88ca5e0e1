package worker

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

func ephemeral(name string) func(*plan.State) error {
	c := v1.EphemeralContainer{}
	c.Name, c.Image = name, "img"
	return func(s *plan.State) error { return s.AddEphemeral(c, nil) }
}

func (n *node) durable() pod.Durable {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.saved.Durable
}

// TestAmend: what was answered is on disk, shown, and acted on; a second of the
// same name is refused however close together they come.
func TestAmend(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		results := make(chan error)
		for range 3 {
			go func() { results <- w.Amend(t.Context(), ephemeral("debug")) }()
		}
		refused := 0
		for range 3 {
			if err := <-results; err != nil {
				refused++
				if pod.KindOf(err) != pod.Invalid {
					t.Errorf("refused as %v: %v", pod.KindOf(err), err)
				}
			}
		}
		if saved := n.durable(); refused != 2 || len(saved.Ephemeral) != 1 {
			t.Errorf("%d refused, saved %v", refused, saved.Ephemeral)
		}
		pause(time.Second)
		s := w.Snapshot()
		if len(s.Desired.Pod.Spec.EphemeralContainers) != 1 || len(s.Status.EphemeralContainerStatuses) != 1 || s.Status.EphemeralContainerStatuses[0].State.Running == nil {
			t.Errorf("snapshot: %+v", s.Status.EphemeralContainerStatuses)
		}
		if saved := n.durable(); s.Desired.Pod == saved.Pod || len(saved.Pod.Spec.EphemeralContainers) != 0 {
			t.Error("the record's pod has the ephemeral container in it: it is kept apart")
		}
		forget(w)
		pause(time.Minute)
		if err := stop(); err != nil {
			t.Error(err)
		}
		if err := w.Amend(t.Context(), ephemeral("late")); pod.KindOf(err) != pod.NotFound {
			t.Errorf("after the end: %v", err)
		}
	})
}

// TestAmendWaitsForTheDisk: nobody is told of a change that a crash could undo.
func TestAmendWaitsForTheDisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		n.set(func() { n.saveErr = errors.New("disk full") })
		gate := func(s *plan.State) error {
			return s.SetCondition(v1.PodCondition{Type: "gate", Status: v1.ConditionTrue}, time.Now())
		}
		result := make(chan error, 1)
		go func() { result <- w.Amend(t.Context(), gate) }()
		pause(10 * time.Second)
		select {
		case err := <-result:
			t.Fatalf("answered %v while the disk refuses", err)
		default:
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if err := w.Amend(ctx, gate); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("a caller that gives up got %v", err)
		}
		n.set(func() { n.saveErr = nil })
		pause(time.Minute)
		if err := <-result; err != nil || len(n.durable().Gates) != 1 {
			t.Errorf("%v, saved %v", err, n.durable().Gates)
		}
		stop()
	})
}

// TestAmendAtTheEnd: whoever waits when the agent ends is answered.
func TestAmendAtTheEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Second)
		n.set(func() { n.saveErr = errors.New("disk full") })
		result := make(chan error, 1)
		go func() { result <- w.Amend(t.Context(), ephemeral("debug")) }()
		pause(time.Second)
		stop()
		if err := <-result; pod.KindOf(err) != pod.NotFound {
			t.Errorf("answered %v", err)
		}
	})
}

func TestAmendIsBounded(t *testing.T) {
	w := New("u", pod.Desired{Pod: testPod()}, pod.Record{}, pod.Observed{}, newNode().deps())
	for range maxAmendments {
		if !w.mail.amend(amendment{}) {
			t.Fatal("refused too early")
		}
	}
	if err := w.Amend(t.Context(), ephemeral("x")); pod.KindOf(err) != pod.Exhausted {
		t.Errorf("one too many: %v", err)
	}
}

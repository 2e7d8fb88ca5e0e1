package worker

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// TestKilledDuringStart: what hangs is cancelled and cleaned up.
func TestKilledDuringStart(t *testing.T) {
	for _, op := range []pod.Op{pod.OpPullImage, pod.OpMountVolumes, pod.OpCreateSandbox, pod.OpStartContainer} {
		synctest.Test(t, func(t *testing.T) {
			n := newNode()
			n.block[op] = true
			w, stop := run(t, n, pod.Record{}, pod.Observed{})
			pause(time.Second)
			forget(w)
			if err := stopped(stop, n); err != nil {
				t.Errorf("%s: %v", op, err)
			}
		})
	}
}

// TestDiskRefuses: what cannot be recorded is not acquired, and not told.
func TestDiskRefuses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.saveErr = errors.New("no space left on device")
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(time.Minute)
		if len(n.done) > 0 {
			t.Errorf("done without a record: %v", n.done)
		}
		if e := w.Snapshot().Explanation; e.Well || e.NextAt.IsZero() {
			t.Errorf("explanation %+v", e)
		}
		if len(n.events) > 12 {
			t.Errorf("%d events in a minute", len(n.events))
		}
		n.set(func() { n.saveErr = nil })
		pause(time.Minute)
		if s := w.Snapshot().Status; s.Phase != v1.PodRunning {
			t.Errorf("phase %s", s.Phase)
		}
		stop()
	})
}

func TestPanicAndTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		n.panics = pod.OpCreateSandbox
		n.block[pod.OpMountVolumes] = true
		w, stop := run(t, n, pod.Record{}, pod.Observed{})
		pause(plan.Timeout(pod.Action{Op: pod.OpMountVolumes}) + time.Second/2)
		if e := w.Snapshot().Explanation; e.Reason != pod.FailedMount {
			t.Errorf("after a timeout: %+v", e)
		}
		n.set(func() { n.block = map[pod.Op]bool{} })
		pause(time.Minute)
		if s := w.Snapshot().Status; s.Phase != v1.PodRunning {
			t.Errorf("phase %s: %+v", s.Phase, w.Snapshot().Explanation)
		}
		stop()
	})
}

// TestMailbox: nobody ever waits at it, and a termination is not lost in it.
func TestMailbox(t *testing.T) {
	w := New("u", pod.Desired{Pod: testPod()}, pod.Record{}, pod.Observed{}, newNode().deps())
	w.Desire(pod.Desired{Pod: testPod(), Termination: &pod.Termination{}})
	for range 1000 {
		w.Desire(pod.Desired{Pod: testPod()})
		w.Hint()
		w.Verdict(pod.ProbeVerdict{Container: "c", Kind: pod.Liveness})
	}
	if m := w.mail.take(); m.desired.Termination == nil || !m.hinted || len(m.verdicts) != 1 {
		t.Errorf("%+v", m)
	}
}

// pause lets d pass, and then whatever is due come to rest.
func pause(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

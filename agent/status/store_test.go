package status

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

var start = time.Date(2026, 5, 1, 12, 0, 0, 0, time.UTC)

func snapshot(namespace, name, uid string, at time.Time) pod.Snapshot {
	began := metav1.NewTime(at)
	return pod.Snapshot{
		UID: pod.UID(uid), At: at, Status: v1.PodStatus{Phase: v1.PodRunning, StartTime: &began},
		Desired: pod.Desired{Pod: &v1.Pod{
			ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: name},
			Spec:       v1.PodSpec{InitContainers: []v1.Container{{Name: "first"}}, Containers: []v1.Container{{Name: "web"}}},
		}},
	}
}

func names(all []pod.Snapshot) string {
	var out []string
	for _, s := range all {
		out = append(out, s.Desired.Pod.Namespace+"/"+s.Desired.Pod.Name+"#"+string(s.UID))
	}
	return strings.Join(out, " ")
}

func TestListIsSortedAndForgets(t *testing.T) {
	s := New("node")
	s.Set(snapshot("b", "x", "3", start))
	s.Set(snapshot("a", "y", "2", start.Add(time.Second)))
	s.Set(snapshot("a", "y", "9", start))
	if got, want := names(s.List()), "a/y#9 a/y#2 b/x#3"; got != want {
		t.Errorf("list: %s, want %s", got, want)
	}
	if got, _ := s.Get("a", "y"); got.UID != "9" {
		t.Errorf("Get gave %s, want the elder of the two pods of that name", got.UID)
	}
	last := snapshot("a", "y", "9", start)
	last.Gone = true
	s.Set(last)
	s.Forget("3")
	s.Forget("3")
	if got, want := names(s.List()), "a/y#2"; got != want {
		t.Errorf("list: %s, want %s", got, want)
	}
	if _, ok := s.Get("b", "x"); ok {
		t.Error("a forgotten pod is still there")
	}
}

// told collects what a watcher is told.
type told struct{ lines []string }

func (w *told) pod(s pod.Snapshot, gone bool) error {
	verb := "is"
	if gone {
		verb = "gone"
	}
	w.lines = append(w.lines, fmt.Sprintf("%s %s %s", s.Desired.Pod.Name, verb, s.Status.Message))
	return nil
}

func (w *told) synced() error {
	w.lines = append(w.lines, "synced")
	return nil
}

func (w *told) take() string {
	out := strings.Join(w.lines, ", ")
	w.lines = nil
	return out
}

func with(s pod.Snapshot, message string) pod.Snapshot {
	s.Status.Message = message
	return s
}

func TestWatchGivesTheLatestOfEach(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("node")
		a, b := snapshot("n", "a", "1", start), snapshot("n", "b", "2", start)
		s.Set(with(a, "0"))
		ctx, cancel := context.WithCancel(t.Context())
		var w told
		release, done := make(chan struct{}), make(chan error)
		busy := false
		go func() {
			done <- s.Watch(ctx, func(p pod.Snapshot, gone bool) error {
				if busy {
					<-release
				}
				return w.pod(p, gone)
			}, w.synced)
		}()
		synctest.Wait()
		if got := w.take(); got != "a is 0, synced" {
			t.Errorf("at first: %q", got)
		}
		busy = true
		s.Set(with(a, "1"))
		synctest.Wait() // the watcher is held up now, and nobody waits for it
		for _, m := range []string{"2", "3"} {
			s.Set(with(b, m))
			s.Set(with(a, m))
		}
		s.Forget("2")
		close(release)
		synctest.Wait()
		if got, want := w.take(), "a is 1, b gone 3, a is 3"; got != want {
			t.Errorf("slow watcher was told %q, want %q", got, want)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Errorf("Watch ended with %v", err)
		}
	})
}

func TestWatchEndsWithItsReader(t *testing.T) {
	s := New("node")
	s.Set(snapshot("n", "a", "1", start))
	broken := errors.New("the reader has left")
	nothing := func() error { return nil }
	if err := s.Watch(t.Context(), func(pod.Snapshot, bool) error { return broken }, nothing); !errors.Is(err, broken) {
		t.Errorf("Watch ended with %v", err)
	}
	if len(s.podHub.watchers) != 0 {
		t.Error("the watcher is still remembered")
	}
	for range maxWatchers {
		if _, err := s.podHub.join(); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Watch(t.Context(), func(pod.Snapshot, bool) error { return nil }, nothing); !errors.Is(err, errTooMany) {
		t.Errorf("one watcher too many: %v", err)
	}
}

func TestSlowWatcherIsBounded(t *testing.T) {
	var h hub[int, int]
	w, err := h.join()
	if err != nil {
		t.Fatal(err)
	}
	for i := range maxPending + 1 {
		h.post(i, i)
	}
	if len(w.order) != maxPending {
		t.Errorf("%d changes wait", len(w.order))
	}
	if _, err := h.take(w); !errors.Is(err, errTooSlow) {
		t.Errorf("take: %v, want that the watcher is too slow", err)
	}
}

func TestRender(t *testing.T) {
	s := snapshot("n", "a", "1", start)
	p := Render(s)
	if p.Kind != "Pod" || p.Status.Phase != v1.PodRunning || !p.CreationTimestamp.Time.Equal(start) || p.DeletionTimestamp != nil {
		t.Errorf("rendered %+v", p)
	}
	grace := 5 * time.Second
	s.Desired.Termination = &pod.Termination{Requested: start, Grace: &grace, Reason: pod.Evicted}
	if p := Render(s); p.DeletionTimestamp != nil {
		t.Error("an evicted pod that stays on the node is not being deleted")
	}
	s.Desired.Termination = &pod.Termination{Requested: start, Grace: &grace}
	if p := Render(s); p.DeletionTimestamp == nil {
		t.Error("a pod that was stopped by force is not shown as being ended")
	}
	s.Status.Phase = v1.PodSucceeded
	if p := Render(s); p.DeletionTimestamp != nil {
		t.Error("a pod that was stopped by force, and has ended, is shown as being deleted although it stays")
	}
	s.Desired.Forget = true
	if p := Render(s); p.DeletionTimestamp == nil || !p.DeletionTimestamp.Time.Equal(start.Add(grace)) || *p.DeletionGracePeriodSeconds != 5 {
		t.Errorf("deletion at %v", p.DeletionTimestamp)
	}
	if s.Desired.Pod.DeletionTimestamp != nil {
		t.Error("rendering has changed the desired pod")
	}
}

package status

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

func show(all []v1.Event) string {
	var out []string
	for _, e := range all {
		out = append(out, fmt.Sprintf("%s %s %s x%d", e.InvolvedObject.Name, e.Type, e.Reason, e.Count))
	}
	return strings.Join(out, ", ")
}

func TestEventsAreCounted(t *testing.T) {
	s := New("node")
	s.Set(snapshot("n", "a", "1", start))
	backOff := pod.Event{Warning: true, Reason: pod.BackOff, Message: "m", Container: "first", At: start}
	s.Event("1", backOff)
	s.Event("1", pod.Event{Reason: pod.Pulled, Message: "p", Container: "web", At: start.Add(time.Second)})
	backOff.At = start.Add(2 * time.Second)
	s.Event("1", backOff)
	s.Event("unknown", pod.Event{Reason: pod.Killing, At: start.Add(3 * time.Second)})
	if got, want := show(s.Events("", "")), "a Normal Pulled x1, a Warning BackOff x2, unknown Normal Killing x1"; got != want {
		t.Errorf("events: %s, want %s", got, want)
	}
	all := s.Events("n", "a")
	e := all[1]
	if e.InvolvedObject.FieldPath != "spec.initContainers{first}" || all[0].InvolvedObject.FieldPath != "spec.containers{web}" {
		t.Errorf("field paths %q, %q", e.InvolvedObject.FieldPath, all[0].InvolvedObject.FieldPath)
	}
	if !e.FirstTimestamp.Time.Equal(start) || !e.LastTimestamp.Time.Equal(backOff.At) || e.Source.Host != "node" || e.Namespace != "n" || e.Kind != "Event" {
		t.Errorf("event %+v", e)
	}
	if all[0].Name == all[1].Name {
		t.Error("two events of one name")
	}
	s.Forget("1")
	if len(s.Events("n", "a")) != 2 {
		t.Error("the events of a pod that is gone have gone with it")
	}
}

// TestEventsAreBounded: a pod in trouble pushes out its own events first.
func TestEventsAreBounded(t *testing.T) {
	s := New("node")
	s.Event("quiet", pod.Event{Reason: pod.Started, At: start})
	for i := range 3 * maxPodEvents {
		s.Event("loud", pod.Event{Reason: pod.BackOff, Message: fmt.Sprint(i), At: start})
	}
	if got := s.Events("", "loud"); len(got) != maxPodEvents || got[0].Message != fmt.Sprint(2*maxPodEvents) {
		t.Errorf("%d events, the first is %q", len(got), got[0].Message)
	}
	if len(s.Events("", "quiet")) != 1 {
		t.Error("another pod's event was pushed out")
	}
	for i := range 2 * maxEvents {
		s.Event(pod.UID(fmt.Sprint(i)), pod.Event{Reason: pod.Started, At: start})
	}
	if got := len(s.Events("", "")); got != maxEvents || len(s.events.perPod) != maxEvents {
		t.Errorf("%d events of %d pods", got, len(s.events.perPod))
	}
}

func TestLongMessageIsCut(t *testing.T) {
	s := New("node")
	s.Event("1", pod.Event{Message: strings.Repeat("ä", maxMessage), At: start})
	m := s.Events("", "")[0].Message
	if len(m) > maxMessage || !utf8.ValidString(m) || !strings.HasSuffix(m, "...") {
		t.Errorf("%d bytes, ends %q", len(m), m[len(m)-6:])
	}
}

func TestWatchEvents(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := New("node")
		s.Set(snapshot("n", "a", "1", start))
		s.Event("1", pod.Event{Reason: pod.Pulling, At: start})
		ctx, cancel := context.WithCancel(t.Context())
		var got []v1.Event
		done := make(chan error)
		go func() {
			done <- s.WatchEvents(ctx, "n", "a", func(e v1.Event) error { got = append(got, e); return nil })
		}()
		synctest.Wait()
		s.Event("other", pod.Event{Reason: pod.Killing, At: start})
		s.Event("1", pod.Event{Reason: pod.Pulled, At: start})
		synctest.Wait()
		if text := show(got); text != "a Normal Pulling x1, a Normal Pulled x1" {
			t.Errorf("watched %s", text)
		}
		cancel()
		<-done
	})
}

package plan

import (
	"encoding/json"
	"fmt"
	"hash/fnv"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// restartAt is when the successor of m's exited instance may start. The delay
// is chosen once for each exit and recorded with it, so that it neither grows
// nor vanishes by deciding again or by a restart of the agent: none after the
// first exit, then 10s, doubled up to the cap; forgiven after ten good minutes.
func (d *decision) restartAt(m *member) time.Time {
	last := m.last
	b, ok := d.rec.Boot.Backoff[m.name]
	if last.ID == "" || d.replaced(last) || wasReset(last) && b.Instance != last.ID {
		return d.Now // lost with its exit, or stopped by us: nothing to wait for
	}
	if key := crashKey(m.spec); !ok || b.Instance != last.ID || b.Key != key {
		b = d.nextBackoff(b, ok && b.Key == key, last)
		b.Key = key
		d.rec.Boot.Backoff, d.unsaved.Boot = put(d.rec.Boot.Backoff, m.name, b), true
		if b.Delay > 0 {
			d.event(true, pod.BackOff, m.name, fmt.Sprintf("Back-off restarting failed container %s in pod %s", m.name, podWithUID(d.pod.Namespace, d.pod.Name, d.pod.UID)))
		}
	}
	return dueAfter(last, b)
}

// crashKey stands for what a crash loop is about: with another image or other
// resources a container deserves a fresh start.
func crashKey(c *v1.Container) string {
	// Marshal of these cannot fail, and sorts the keys of maps.
	what, _ := json.Marshal([]any{c.Image, c.Resources})
	h := fnv.New64a()
	h.Write(what)
	return fmt.Sprintf("%x", h.Sum64())
}

// dueAfter counts the delay from the exit; from when we saw it, if the runtime
// tells no time or one that is still to come.
func dueAfter(exited *pod.Container, b pod.Backoff) time.Time {
	from := exited.FinishedAt
	if from.IsZero() || from.After(b.Since) {
		from = b.Since
	}
	return from.Add(b.Delay)
}

func (d *decision) nextBackoff(b pod.Backoff, known bool, exited *pod.Container) pod.Backoff {
	next := pod.Backoff{Instance: exited.ID, Since: d.Now}
	finished := exited.FinishedAt
	if finished.After(d.Now) {
		finished = d.Now // a clock was set back
	}
	ran := finished.Sub(exited.StartedAt)
	switch {
	case !known, !exited.StartedAt.IsZero() && ran > resetAfter:
	case b.Delay == 0:
		next.Delay = d.Config.CrashLoopInitial
	default:
		next.Delay = min(2*b.Delay, d.Config.CrashLoopMax)
	}
	return next
}

// Fail returns the failure of a slot after result, which failed. Its NotBefore
// spreads the tries: pulls from 10s to 5 minutes, what cannot succeed before an
// input changes from ten seconds, everything else from one second to one minute.
func Fail(prev pod.Failure, result pod.Result, now time.Time) pod.Failure {
	return fail(Config{}.withDefaults(), prev, result, now)
}

func fail(c Config, prev pod.Failure, result pod.Result, now time.Time) pod.Failure {
	f := pod.Failure{Op: result.Action.Op, Count: 1, Kind: pod.KindOf(result.Err), First: now, At: now, Message: message(result.Err)}
	if prev.Op == f.Op && prev.Count > 0 {
		f.Count, f.First = prev.Count+1, prev.First
	}
	f.Reason = reason(result.Err)
	initial, limit := time.Second, time.Minute
	switch {
	case f.Op == pod.OpPullImage:
		initial, limit = c.PullInitial, c.PullMax
	case f.Op == pod.OpObserve:
		limit = 10 * time.Second
	case f.Op == pod.OpStopContainer || undoes(f.Op):
		limit = 30 * time.Second // what is to go holds things that others need
	case f.Kind == pod.Invalid, f.Kind == pod.Internal:
		initial = 10 * time.Second
	}
	f.NotBefore = now.Add(min(initial<<min(f.Count-1, 16), limit))
	return f
}

// Timeout is how long an action may take before it is given up; its result is
// then a Timeout. Pulls have an idle limit of their own in the runtime.
func Timeout(a pod.Action) time.Duration {
	switch a.Op {
	case pod.OpObserve:
		return 20 * time.Second
	case pod.OpPullImage:
		return 6 * time.Hour
	case pod.OpPostStart:
		return 24 * time.Hour // upstream sets no limit to it
	case pod.OpStopContainer, pod.OpPreStop:
		return a.Grace + 30*time.Second
	case pod.OpCreateSandbox, pod.OpStopSandbox, pod.OpRemoveSandbox:
		return 4 * time.Minute
	}
	return 2 * time.Minute
}

package plan

import (
	"time"

	"github.com/berthd/berth/agent/pod"
)

// endCause is why nothing of the pod may be started any more. All causes but
// endNone are for good.
type endCause int

const (
	endNone       endCause = iota
	endOutcome             // the final status is recorded already
	endRejected            // admission refused it
	endTerminated          // somebody, or the active deadline, asked for its end
	endInitFailed          // an init container failed and may not be restarted
	endFinished            // every main container has ended for good
	endLost                // its sandbox was lost and its policy forbids another run
)

func (d *decision) endCause() endCause {
	dur := &d.rec.Durable
	switch {
	case dur.Outcome != nil:
		return endOutcome
	case d.Desired.Rejection != nil:
		return endRejected
	case dur.Termination != nil:
		return endTerminated
	case !d.seen(), dur.Reset != nil:
		return endNone
	}
	mains, finished := 0, 0
	for _, m := range d.members {
		switch {
		case !m.known:
		case m.kind == pod.Init && !d.initialized && !d.busy(m.slot) && m.exited() && m.failed() && !d.mayRestart(m):
			return endInitFailed
		case m.kind == pod.Main:
			mains++
			if !d.busy(m.slot) && m.exited() && !d.mayRestart(m) {
				finished++
			}
		}
	}
	if mains > 0 && finished == mains {
		return endFinished
	}
	d.rememberEnded()
	if d.sandbox == nil && !d.busy(pod.SlotSandbox) && d.everStarted() && !d.anyRestartable() {
		return endLost
	}
	return endNone
}

// rememberEnded records the mains that have ended for good while others go on.
func (d *decision) rememberEnded() {
	dur := &d.rec.Durable
	for _, m := range d.members {
		if m.kind != pod.Main || !m.known || d.busy(m.slot) || !m.exited() || d.mayRestart(m) {
			continue
		}
		if e, ok := dur.Ended[m.name]; !ok || e.Attempt != m.last.Attempt {
			dur.Ended, d.unsaved.Durable = put(dur.Ended, m.name, *m.last), true
		}
	}
}

// exited says that the newest instance has ended, and none is being made.
func (m *member) exited() bool { return m.last != nil && m.last.State == pod.Exited }

func (m *member) failed() bool {
	return m.last.ExitCode != 0 || m.last.Reason == string(pod.OOMKilled)
}

func (d *decision) everStarted() bool {
	for _, n := range d.rec.Durable.Restarts {
		if n > 0 {
			return true
		}
	}
	return false
}

// anyRestartable says that some main container may run more than once.
func (d *decision) anyRestartable() bool {
	for _, m := range d.members {
		if m.kind == pod.Main && m.known && isRestartable(&d.pod.Spec, m.spec) {
			return true
		}
	}
	return false
}

// mergeTermination joins what is recorded with what is asked: the first request
// counts, its reason stays, and the grace only shrinks. It returns recorded if
// nothing is new.
func mergeTermination(recorded, asked *pod.Termination) *pod.Termination {
	switch {
	case asked == nil:
		return recorded
	case recorded == nil:
		return asked
	case asked.Grace == nil || recorded.Grace != nil && *recorded.Grace <= *asked.Grace:
		return recorded
	}
	next := *recorded
	next.Grace = asked.Grace
	return &next
}

// podGrace is how long the pod's containers may take to stop.
func (d *decision) podGrace() time.Duration {
	grace := d.specGrace()
	if t := d.rec.Durable.Termination; t != nil && t.Grace != nil {
		grace = *t.Grace
	}
	return max(grace, minPodGrace)
}

func (d *decision) specGrace() time.Duration {
	if s := d.pod.Spec.TerminationGracePeriodSeconds; s != nil {
		return time.Duration(*s) * time.Second
	}
	return 30 * time.Second
}

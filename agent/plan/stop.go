package plan

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// stopCause is why an instance must not go on.
type stopCause struct {
	reason  pod.Reason
	message string
	grace   time.Duration
}

// cancelPointless gives up work that the pod's end, or the end of its sandbox,
// has made useless. What it has done so far is undone by the ordinary way down.
func (d *decision) cancelPointless() {
	if d.end == endNone {
		return
	}
	for _, slot := range slices.Sorted(maps.Keys(d.InFlight)) {
		switch d.InFlight[slot].Op {
		case pod.OpPullImage, pod.OpMountVolumes, pod.OpCreateSandbox, pod.OpStartContainer, pod.OpPostStart, pod.OpResize:
			d.cancel(slot)
		}
	}
}

// stopContainers stops every instance that must not go on.
func (d *decision) stopContainers() {
	for i, m := range d.members {
		for j := range m.all {
			c := &m.all[j]
			if !alive(c) {
				continue
			}
			if why, ok := d.stopCause(m, c); ok {
				d.stop(i, c, why)
			}
		}
	}
}

func (d *decision) stopCause(m *member, c *pod.Container) (stopCause, bool) {
	plain := stopCause{message: fmt.Sprintf("Stopping container %s", m.name), grace: d.podGrace()}
	if d.end != endNone || !m.known || c != m.cur {
		return plain, true
	}
	title, again := "Container", ""
	if m.kind == pod.Init || m.kind == pod.Sidecar {
		title = "Init container"
	} else if restartsOnProbe(&d.pod.Spec, m.spec) {
		again = ", will be restarted"
	}
	switch {
	case d.rec.Durable.Reset != nil && resets(m):
		return stopCause{reason: pod.RestartingAllContainers, message: plain.message}, true
	case d.stopping(c.ID):
		st := d.rec.Boot.Stopping[c.ID]
		return stopCause{reason: st.Reason, message: st.Message, grace: st.Deadline.Sub(d.Now)}, true
	case c.State == pod.Unknown:
		plain.message = title + ` is in "unknown" state, try killing it before restart`
	case m.kind == pod.Main && d.definitionChanged(m, c):
		plain.reason, plain.message = definitionChangedReason, fmt.Sprintf("Container %s definition changed, will be restarted", m.name)
	case m.kind == pod.Sidecar && d.started(m) && d.definitionChanged(m, c):
		plain.reason, plain.message = definitionChangedReason, fmt.Sprintf("Init container %s definition changed", m.name)
	case d.restartsForResize(m):
		plain.reason, plain.message = pod.ResizeRestart, fmt.Sprintf("Container %s resize requires restart", m.name)
	case m.spec.LivenessProbe != nil && d.verdict(m, pod.Liveness) == pod.Failed:
		plain.reason, plain.message = pod.Unhealthy, fmt.Sprintf("%s %s failed liveness probe%s", title, m.name, again)
		plain.grace = d.probeGrace(m.spec.LivenessProbe.TerminationGracePeriodSeconds)
	case m.spec.StartupProbe != nil && d.verdict(m, pod.Startup) == pod.Failed:
		plain.reason, plain.message = pod.Unhealthy, fmt.Sprintf("%s %s failed startup probe%s", title, m.name, again)
		plain.grace = d.probeGrace(m.spec.StartupProbe.TerminationGracePeriodSeconds)
	default:
		return stopCause{}, false
	}
	return plain, true
}

// probeGrace is the grace of a container that a probe condemned.
func (d *decision) probeGrace(s *int64) time.Duration {
	if s == nil {
		return d.podGrace()
	}
	return time.Duration(*s) * time.Second
}

// stop takes the next step to stop instance c of member i:
//
//	begun (deadline recorded) ─▶ preStop hook ─▶ wait for others ─▶ TERM, then KILL at the deadline
//
// Only sidecars wait; for the others hook and TERM are one action.
func (d *decision) stop(i int, c *pod.Container, why stopCause) {
	m := d.members[i]
	st := d.beginStop(m, c, why)
	if a, ok := d.InFlight[m.slot]; ok && (a.Op == pod.OpStartContainer || a.Op == pod.OpPostStart) {
		d.cancelOnce(m.slot)
		return
	}
	left := st.Deadline.Sub(d.Now)
	hook := m.spec.Lifecycle != nil && m.spec.Lifecycle.PreStop != nil && !st.PreStopDone && c.State == pod.Running && left > 0
	a := pod.Action{
		Slot: m.slot, Op: pod.OpStopContainer, Container: m.name, ContainerID: c.ID, SandboxID: c.SandboxID, Attempt: c.Attempt,
		Grace: max(left, minGrace), PreStop: hook, Reason: st.Reason, Message: st.Message,
	}
	if left > 0 && d.mustWait(i) {
		d.wake(st.Deadline)
		if !hook {
			return
		}
		a.Op, a.PreStop = pod.OpPreStop, false
	}
	d.start(a)
}

// beginStop records that c is being stopped and until when that may take. A
// later, shorter grace shortens it; nothing lengthens it.
func (d *decision) beginStop(m *member, c *pod.Container, why stopCause) pod.Stopping {
	boot := &d.rec.Boot
	st, begun := boot.Stopping[c.ID]
	deadline := d.Now.Add(why.grace)
	switch {
	case !begun:
		st = pod.Stopping{Deadline: deadline, Reason: why.reason, Message: why.message}
		d.event(false, pod.Killing, m.name, why.message)
	case deadline.Before(st.Deadline):
		st.Deadline = deadline
		if a, ok := d.InFlight[m.slot]; ok && (a.Op == pod.OpStopContainer || a.Op == pod.OpPreStop) {
			st.PreStopDone = st.PreStopDone || a.PreStop || a.Op == pod.OpPreStop
			d.cancelOnce(m.slot)
		}
	default:
		return st
	}
	boot.Stopping, d.unsaved.Boot = put(boot.Stopping, c.ID, st), true
	return st
}

func (d *decision) cancelOnce(slot pod.Slot) {
	for _, s := range d.plan.Cancel {
		if s == slot {
			return
		}
	}
	d.cancel(slot)
}

// mustWait says that member i is a sidecar whose turn to stop has not come:
// mains and later sidecars go first, within the grace that all of them share.
func (d *decision) mustWait(i int) bool {
	if d.members[i].kind != pod.Sidecar || d.end == endNone && d.sandbox != nil {
		return false // the pod goes on: this one alone is stopped
	}
	for j, m := range d.members {
		first := m.known && (m.kind == pod.Main || m.kind == pod.Sidecar && j > i)
		if !first {
			continue
		}
		if d.busy(m.slot) {
			return true
		}
		for k := range m.all {
			if alive(&m.all[k]) {
				return true
			}
		}
	}
	return false
}

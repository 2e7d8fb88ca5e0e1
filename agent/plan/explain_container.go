package plan

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// explainContainer says whether and how m holds the pod up.
func (d *decision) explainContainer(m *member) (pod.Explanation, bool) {
	e := pod.Explanation{Container: m.name}
	image := m.spec.Image
	f, pulling := d.Failures[pod.ImageSlot(m.name)]
	if !pulling {
		image, f, pulling = d.volumeImageFailure(m)
	}
	s, starting := d.Failures[m.slot]
	switch {
	case pulling && !m.running():
		e.Cause = sentence(fmt.Sprintf("The image %q of container %s cannot be had: %%s.", image, m.name), f.Message)
		e.Reason, e.Since, e.Next, e.NextAt = f.Reason, f.First, "It is pulled again.", f.NotBefore
		if pullFailed(f) && !d.Now.Before(pullBackOffShown(f)) {
			e.Reason = pod.ImagePullBackOff
		}
		return e, true
	case starting && !m.running() && s.Op == pod.OpStartContainer:
		e.Cause = sentence(fmt.Sprintf("Container %s cannot be started: %%s.", m.name), s.Message)
		e.Reason, e.Since, e.Next, e.NextAt = s.Reason, s.First, "It is started again.", s.NotBefore
		return e, true
	}
	if m.kind == pod.Init && d.initialized || m.kind == pod.Ephemeral {
		return e, false
	}
	switch {
	case m.exited() && !d.busy(m.slot) && d.mayRestart(m):
		return d.explainCrash(m), true
	case m.running() && d.stopping(m.cur.ID):
		st := d.rec.Boot.Stopping[m.cur.ID]
		e.Cause, e.Reason = st.Message+".", st.Reason
		e.Next, e.NextAt = "What still runs of it then is killed.", st.Deadline
		return e, true
	case m.running() && !d.hooked(m):
		e.Cause, e.Since = fmt.Sprintf("The postStart hook of container %s has not ended.", m.name), m.cur.StartedAt
		e.Reason, e.Next = pod.ContainerCreating, "The containers after it wait for the hook."
		return e, true
	case m.running() && !d.ready(m) && m.kind != pod.Init:
		return d.explainUnready(m), true
	case m.kind == pod.Init && m.running():
		e.Cause, e.Reason, e.Since = fmt.Sprintf("Init container %s is running; the containers after it wait for its end.", m.name), pod.PodInitializing, m.cur.StartedAt
		e.Next = "The next container starts when it has exited with 0."
		return e, true
	}
	return e, false
}

func (d *decision) explainCrash(m *member) pod.Explanation {
	e := pod.Explanation{Container: m.name, Reason: pod.CrashLoopBackOff, Since: m.last.FinishedAt, Next: "It is started again."}
	why := m.last.Reason
	if why == "" {
		why = string(pod.ReasonError)
		if m.last.ExitCode == 0 {
			why = string(pod.Completed)
		}
	}
	e.Cause = fmt.Sprintf("Container %s exited with %d (%s), %d starts so far.", m.name, m.last.ExitCode, why, d.rec.Durable.Restarts[m.name])
	if b, ok := d.rec.Boot.Backoff[m.name]; ok && b.Instance == m.last.ID {
		e.NextAt = dueAfter(m.last, b)
	}
	if m.last.Message != "" {
		e.Cause += sentence(" It left the message: %s.", m.last.Message)
	}
	return e
}

func (d *decision) explainUnready(m *member) pod.Explanation {
	e := pod.Explanation{Container: m.name, Reason: pod.ContainersNotReady, Since: m.cur.StartedAt}
	kind, p := pod.Readiness, m.spec.ReadinessProbe
	if !d.started(m) {
		kind, p = pod.Startup, m.spec.StartupProbe
	}
	v := d.rec.Boot.Verdicts[m.cur.ID][kind]
	if v.Verdict == pod.Failed {
		e.Reason, e.Since = pod.Unhealthy, v.At
		e.Cause = sentence(fmt.Sprintf("Container %s runs, but its %s probe fails: %%s.", m.name, kind), v.Message)
	} else {
		e.Cause = fmt.Sprintf("Container %s runs, but its %s probe has not succeeded yet.", m.name, kind)
	}
	e.Next = fmt.Sprintf("It is probed every %s.", probePeriod(p))
	return e
}

func probePeriod(p *v1.Probe) string {
	if p == nil || p.PeriodSeconds <= 0 {
		return "10s"
	}
	return fmt.Sprintf("%ds", p.PeriodSeconds)
}

// explainGates is said when every container is ready.
func (d *decision) explainGates() pod.Explanation {
	lacking := d.closedGates()
	if len(lacking) == 0 {
		return pod.Explanation{Well: true, Cause: "The pod runs and is ready."}
	}
	return pod.Explanation{
		Reason: pod.ReadinessGatesNotReady, Cause: sentence("All containers are ready, but the pod waits for its readiness gates: %s.", strings.Join(lacking, ", ")),
		Next: "Whoever is in charge of the gate sets it; by hand: berth set-condition.",
	}
}

// explainProgress is said when nothing is wrong.
func (d *decision) explainProgress() pod.Explanation {
	e := pod.Explanation{Reason: pod.ContainerCreating, Since: d.rec.Durable.Accepted}
	for _, m := range d.members {
		if _, ok := d.InFlight[pod.ImageSlot(m.name)]; ok && !m.running() && d.inTurn(m) {
			e.Container, e.Cause, e.Next = m.name, fmt.Sprintf("The image %q of container %s is being pulled.", m.spec.Image, m.name), "The container starts when it is here."
			return e
		}
	}
	switch {
	case !d.seen():
		e.Cause = "The container runtime is being asked what it knows of the pod."
	case d.Observed.Volumes == nil:
		e.Cause = "The pod's volumes are being set up."
	case d.sandbox == nil:
		e.Cause = "The pod's sandbox and network are being made."
	default:
		for _, m := range d.members {
			if m.known && m.kind == pod.Main && !m.running() && d.end == endNone && !(m.exited() && !d.mayRestart(m)) {
				e.Container, e.Cause = m.name, fmt.Sprintf("Container %s is being started.", m.name)
				return e
			}
		}
		return d.explainGates()
	}
	return e
}

package plan

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// explain names the one cause that holds the pod up now. The first that applies
// is the one: what comes later in a pod's life cannot be held up by what has
// not come yet.
func (d *decision) explain() pod.Explanation {
	if d.plan.Done {
		return pod.Explanation{Well: true, Cause: "The pod is gone."}
	}
	if d.rec.Durable.Outcome != nil {
		return d.explainOutcome()
	}
	if e, ok := d.explainFailure(pod.SlotObserve, "The container runtime does not answer: %s.", "The runtime is asked again"); ok {
		return e
	}
	if d.end != endNone {
		return d.explainEnding()
	}
	if r := d.rec.Durable.Reset; r != nil {
		return pod.Explanation{
			Cause:  fmt.Sprintf("All containers of the pod are being restarted: container %s ended in a way for which its rules say so.", r.Sources[0]),
			Reason: pod.RestartingAllContainers, Container: r.Sources[0], Since: r.Since, Next: "They start again, the init containers first, when all have ended.",
		}
	}
	if e, ok := d.explainFailure(pod.SlotVolumes, "A volume cannot be set up: %s.", "The volumes are set up again"); ok {
		return e
	}
	if e, ok := d.explainFailure(pod.SlotSandbox, "The pod's sandbox and network cannot be made: %s.", "It is tried again"); ok {
		return e
	}
	for _, m := range d.members {
		if e, ok := d.explainContainer(m); ok && m.known {
			return e
		}
	}
	e := d.explainProgress()
	if resize, ok := d.explainResize(); ok && e.Well {
		return resize
	}
	return e
}

func sentence(format, text string) string {
	for len(text) > 0 && (text[len(text)-1] == '.' || text[len(text)-1] == '\n' || text[len(text)-1] == ' ') {
		text = text[:len(text)-1]
	}
	return fmt.Sprintf(format, text)
}

func (d *decision) explainFailure(slot pod.Slot, format, next string) (pod.Explanation, bool) {
	f, ok := d.Failures[slot]
	if !ok {
		return pod.Explanation{}, false
	}
	if f.Kind == pod.Invalid {
		next = "This cannot succeed before what the message names is corrected; until then it is tried again"
	}
	return pod.Explanation{Cause: sentence(format, f.Message), Reason: f.Reason, Since: f.First, Next: next + ".", NextAt: f.NotBefore}, true
}

func (d *decision) explainOutcome() pod.Explanation {
	o := d.rec.Durable.Outcome
	e := pod.Explanation{Well: o.Phase == v1.PodSucceeded, Reason: pod.Reason(o.Reason), Cause: "The pod has completed: every container exited with 0."}
	if o.Phase == v1.PodFailed {
		e.Reason, e.Cause = pod.PodFailed, "The pod has failed and is not started again."
		if o.Reason != "" {
			e.Reason, e.Cause = pod.Reason(o.Reason), sentence("The pod has failed: %s.", o.Message)
		} else if explainExit(o, &e); d.rec.Durable.Termination != nil {
			e.Reason, e.Cause = pod.Killing, "The pod was stopped, as was asked."
		}
		e.Next = "Nothing: remove it, or change its manifest to run it anew."
	}
	for _, slot := range []pod.Slot{pod.SlotSandbox, pod.SlotVolumes, pod.SlotCleanup} {
		if f, ok := d.Failures[slot]; ok && undoes(f.Op) {
			e.Well, e.Cause = false, e.Cause+sentence(" What it leaves behind cannot be removed: %s.", f.Message)
			e.Next, e.NextAt, e.Since = "It is tried again.", f.NotBefore, f.First
			return e
		}
	}
	return e
}

// undoes says that op is a step of the way down.
func undoes(op pod.Op) bool {
	switch op {
	case pod.OpStopSandbox, pod.OpRemoveSandbox, pod.OpUnmountVolumes, pod.OpCleanup:
		return true
	}
	return false
}

// explainExit blames the first container that failed.
func explainExit(o *v1.PodStatus, e *pod.Explanation) {
	for _, list := range [][]v1.ContainerStatus{o.ContainerStatuses, o.InitContainerStatuses} {
		for _, cs := range list {
			if t := cs.State.Terminated; t != nil && t.ExitCode != 0 {
				e.Container, e.Since = pod.ContainerName(cs.Name), t.FinishedAt.Time
				e.Cause = fmt.Sprintf("The pod has failed: container %s exited with %d (%s) and is not to be restarted.", cs.Name, t.ExitCode, t.Reason)
				return
			}
		}
	}
}

// anyStopping says that some stop is in flight.
func (d *decision) anyStopping() bool {
	for _, a := range d.InFlight {
		if a.Op == pod.OpStopContainer {
			return true
		}
	}
	return false
}

func (d *decision) explainEnding() pod.Explanation {
	e := pod.Explanation{Reason: pod.Killing, Cause: "The pod is being ended", Next: "Its sandbox and volumes are released."}
	switch d.end {
	case endTerminated:
		t := d.rec.Durable.Termination
		e.Since = t.Requested
		if t.Reason != "" {
			e.Reason, e.Cause = t.Reason, sentence("The pod is being ended: %s", t.Message)
		}
	case endInitFailed:
		e.Cause = "The pod is being ended: an init container failed and may not be restarted"
	case endFinished:
		e.Cause = "The pod is being ended: all its containers are done"
	case endLost:
		e.Cause = "The pod is being ended: its sandbox was lost, and its restart policy forbids a second run"
	case endRejected:
		e.Reason, e.Cause = d.Desired.Rejection.Reason, sentence("The node refuses the pod: %s", d.Desired.Rejection.Message)
	}
	for _, m := range d.members {
		for i := range m.all {
			st, ok := d.rec.Boot.Stopping[m.all[i].ID]
			if !ok || !alive(&m.all[i]) {
				continue
			}
			if _, turn := d.InFlight[m.slot]; !turn && d.anyStopping() {
				continue // it waits for others
			}
			left := max(st.Deadline.Sub(d.Now), 0).Round(time.Second)
			e.Cause += fmt.Sprintf("; container %s has %v of its grace period left.", m.name, left)
			e.Container, e.Next, e.NextAt = m.name, "What still runs then is killed.", st.Deadline
			if f, failed := d.Failures[m.slot]; failed {
				e.Cause += sentence(" Stopping it failed: %s.", f.Message)
			}
			return e
		}
	}
	e.Cause += "."
	return e
}

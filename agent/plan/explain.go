package plan

import (
	"fmt"
	"strings"
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
	if e, ok := d.explainFailure(pod.SlotObserve, "The container runtime does not answer: %s.", "asked"); ok {
		return e
	}
	if d.end != endNone {
		return d.explainEnding()
	}
	if r := d.rec.Durable.Reset; r != nil {
		return pod.Explanation{
			Cause:  fmt.Sprintf("All containers of the pod are being restarted: container %s ended in a way for which its rules say so.", r.Sources[0]),
			Reason: pod.RestartingAllContainers, Container: r.Sources[0], Since: r.Since, Next: "They start again, the init containers first, when all have ended.",
			Advice: Advise(Trouble{Reason: resettingAgain, Pod: d.pod, Container: r.Sources[0]}),
		}
	}
	if e, ok := d.explainFailure(pod.SlotVolumes, "The pod's volumes cannot be set up: %s.", "tried"); ok {
		return e
	}
	if e, ok := d.explainFailure(pod.SlotSandbox, "The pod's sandbox and network cannot be made: %s.", "tried"); ok {
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

// failureOf is the failure of slot that still matters: what has come to be all
// the same, or what no longer has to be done, holds nothing up.
func (d *decision) failureOf(slot pod.Slot) (pod.Failure, bool) {
	f, ok := d.Failures[slot]
	if f.Op == pod.OpCreateSandbox && d.sandbox != nil {
		return pod.Failure{}, false
	}
	return f, ok
}

func (d *decision) explainFailure(slot pod.Slot, format, verb string) (pod.Explanation, bool) {
	f, ok := d.failureOf(slot)
	if !ok {
		return pod.Explanation{}, false
	}
	if undoes(f.Op) {
		format = "What is left of a former attempt cannot be removed: %s."
	}
	e := pod.Explanation{Cause: sentence(format, f.Message), Reason: f.Reason, Advice: d.advise(f, "", "")}
	d.retry(&e, slot, f, verb, f.NotBefore)
	return e, true
}

// advise says what a person can do about f.
func (d *decision) advise(f pod.Failure, c pod.ContainerName, image string) string {
	return Advise(Trouble{Op: f.Op, Reason: f.Reason, Kind: f.Kind, Message: f.Message, Pod: d.pod, Container: c, Image: image})
}

// retry says since when f has been failing in slot, and when it is tried again: at the earliest at due.
func (d *decision) retry(e *pod.Explanation, slot pod.Slot, f pod.Failure, verb string, due time.Time) {
	e.Since = f.First
	again := fmt.Sprintf("%s again (try %d)", verb, f.Count+1)
	switch a, ok := d.InFlight[slot]; {
	case ok && a.Op == f.Op || d.begun[slot]:
		e.Next = "It is being " + again + "."
	case due.After(d.Now):
		e.Next, e.NextAt = "It is "+again+".", due
	default:
		e.Next = "It is " + again + " as soon as what comes before it is done."
	}
}

const rejected = "Pod was rejected: "

func (d *decision) explainOutcome() pod.Explanation {
	o := d.rec.Durable.Outcome
	e := pod.Explanation{Well: o.Phase == v1.PodSucceeded, Reason: pod.Reason(o.Reason), Cause: "The pod has completed: every container exited with 0."}
	if o.Phase == v1.PodFailed {
		e.Reason, e.Cause, e.Next = pod.PodFailed, "The pod has failed and is not started again.", "Nothing: a pod that has failed is not tried again."
		switch why, refused := strings.CutPrefix(o.Message, rejected); {
		case o.Reason != "" && refused:
			e.Reason, e.Cause, e.Since = pod.Reason(o.Reason), sentence("This node refuses the pod: %s.", why), d.rec.Durable.Accepted
			e.Next = "Nothing: a pod that was refused is not looked at again."
		case o.Reason != "":
			e.Reason, e.Cause = pod.Reason(o.Reason), sentence("The pod has failed: %s.", o.Message)
		case d.rec.Durable.Termination != nil:
			e.Reason, e.Cause, e.Next = pod.Killing, "The pod was stopped, as was asked.", "Nothing: it runs again when its manifest changes."
		default:
			d.explainExit(o, &e)
		}
		if o.Reason != "" {
			e.Advice = Advise(Trouble{Reason: e.Reason, Message: o.Message, Pod: d.pod})
		}
		if t := d.rec.Durable.Termination; t != nil {
			e.Since = t.Requested
		}
	}
	if t := d.rec.Durable.Termination; e.Well && t != nil && t.Reason == "" {
		e.Reason, e.Since, e.Next = pod.Killing, t.Requested, "Nothing: it runs again when its manifest changes."
		e.Cause = "The pod was stopped, as was asked; every container exited with 0."
	}
	for _, slot := range []pod.Slot{pod.SlotSandbox, pod.SlotVolumes, pod.SlotCleanup} {
		if f, ok := d.Failures[slot]; ok && undoes(f.Op) {
			e.Well, e.Cause, e.NextAt = false, e.Cause+sentence(" What it leaves behind cannot be removed: %s.", f.Message), time.Time{}
			e.Advice = d.advise(f, "", "")
			d.retry(&e, slot, f, "tried", f.NotBefore)
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
func (d *decision) explainExit(o *v1.PodStatus, e *pod.Explanation) {
	for _, list := range [][]v1.ContainerStatus{o.ContainerStatuses, o.InitContainerStatuses} {
		for _, cs := range list {
			if t := cs.State.Terminated; t != nil && t.ExitCode != 0 {
				e.Container, e.Since = pod.ContainerName(cs.Name), t.FinishedAt.Time
				e.Cause = fmt.Sprintf("The pod has failed: container %s %s, and its restartPolicy forbids another start.", cs.Name, exit(t.ExitCode, t.Reason))
				if said := clean(t.Message); said != "" {
					e.Cause += " It left the message: " + said + "."
				}
				e.Advice = Advise(Trouble{Reason: failedForGood, Message: t.Reason, Pod: d.pod, Container: e.Container})
				return
			}
		}
	}
}

// signals are those that end processes, by number.
var signals = map[int32]string{
	1: "SIGHUP", 2: "SIGINT", 3: "SIGQUIT", 4: "SIGILL", 5: "SIGTRAP", 6: "SIGABRT", 7: "SIGBUS", 8: "SIGFPE", 9: "SIGKILL",
	10: "SIGUSR1", 11: "SIGSEGV", 12: "SIGUSR2", 13: "SIGPIPE", 14: "SIGALRM", 15: "SIGTERM", 24: "SIGXCPU", 25: "SIGXFSZ", 31: "SIGSYS",
}

// exit says how a container ended: "exited with 139 (ended by signal 11, SIGSEGV)".
func exit(code int32, reason string) string {
	text := fmt.Sprintf("exited with %d", code)
	signal := signals[code-128]
	switch {
	case reason == string(pod.ContainerStatusUnknown):
		return "was lost (ContainerStatusUnknown)"
	case reason == string(pod.OOMKilled):
		return text + " (OOMKilled)"
	case signal != "":
		return fmt.Sprintf("%s (ended by signal %d, %s)", text, code-128, signal)
	case reason == "" || reason == string(pod.ReasonError):
		return text
	}
	return fmt.Sprintf("%s (%s)", text, reason)
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
		e.Advice = Advise(Trouble{Reason: e.Reason, Message: d.Desired.Rejection.Message, Pod: d.pod})
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
			d.explainStop(&e, m, st)
			return e
		}
	}
	e.Cause += "."
	for _, slot := range []pod.Slot{pod.SlotSandbox, pod.SlotVolumes, pod.SlotCleanup} {
		if f, ok := d.Failures[slot]; ok && undoes(f.Op) {
			e.Cause += sentence(" What it leaves behind cannot be removed: %s.", f.Message)
			e.Advice = d.advise(f, "", "")
			d.retry(&e, slot, f, "tried", f.NotBefore)
			return e
		}
	}
	return e
}

// explainStop tells of the container whose end the others wait for.
func (d *decision) explainStop(e *pod.Explanation, m *member, st pod.Stopping) {
	hook := ""
	if l := m.spec.Lifecycle; l != nil && l.PreStop != nil && !st.PreStopDone && st.Deadline.After(d.Now) {
		hook = ", which its preStop hook may use up first"
	}
	left := max(st.Deadline.Sub(d.Now), 0).Round(time.Second)
	e.Cause += fmt.Sprintf("; container %s has %v of its grace period left%s.", m.name, left, hook)
	e.Container, e.Next, e.NextAt = m.name, "What still runs then is killed.", st.Deadline
	e.Advice = Advise(Trouble{Reason: slowEnd, Pod: d.pod, Container: m.name})
	if f, failed := d.Failures[m.slot]; failed && (f.Op == pod.OpStopContainer || f.Op == pod.OpPreStop) {
		e.Cause += sentence(" Stopping it failed: %s.", f.Message)
	}
}

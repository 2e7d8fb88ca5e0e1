package plan

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// phase is Pending or Running. Succeeded and Failed belong to the outcome: no
// one is told that a pod has ended while something of it may still run.
func (d *decision) phase(st *v1.PodStatus) v1.PodPhase {
	if d.pendingInit() {
		return v1.PodPending
	}
	running, stopped := 0, 0
	for i := range st.ContainerStatuses {
		cs := &st.ContainerStatuses[i]
		switch {
		case cs.State.Running != nil:
			running++
		case cs.State.Terminated != nil, cs.LastTerminationState.Terminated != nil:
			stopped++
		default:
			return v1.PodPending // waits, and never ran
		}
	}
	if running+stopped > 0 {
		return v1.PodRunning
	}
	return v1.PodPending
}

// pendingInit says that init containers have work left before the mains.
func (d *decision) pendingInit() bool {
	if d.initialized {
		return false
	}
	if d.sandbox == nil && d.end != endNone {
		return false
	}
	for _, m := range d.members {
		if m.kind == pod.Init && !d.initDone(m) || m.kind == pod.Sidecar && !d.started(m) {
			return true
		}
	}
	return false
}

// finalPhase is Succeeded if every main container exited with 0 and nothing
// else is to be blamed on the pod.
func (d *decision) finalPhase(st *v1.PodStatus) v1.PodPhase {
	if t := d.rec.Durable.Termination; t != nil && t.Reason != "" || d.end == endInitFailed || d.end == endRejected || len(st.ContainerStatuses) == 0 {
		return v1.PodFailed
	}
	for i := range st.ContainerStatuses {
		if t := st.ContainerStatuses[i].State.Terminated; t == nil || t.ExitCode != 0 {
			return v1.PodFailed
		}
	}
	return v1.PodSucceeded
}

package plan

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// phase is Pending or Running. Succeeded and Failed belong to the outcome: no
// one is told that a pod has ended while something of it may still run.
//
// Pending it is while an init container has work left, or a container waits that
// has never run. Sidecars count until the pod is initialised, and never keep it
// running.
func (d *decision) phase(st *v1.PodStatus) v1.PodPhase {
	running, stopped := 0, 0
	for i := range st.InitContainerStatuses {
		cs := &st.InitContainerStatuses[i]
		m := d.member(pod.ContainerName(cs.Name))
		ran := cs.State.Terminated != nil || cs.LastTerminationState.Terminated != nil
		switch {
		case m.kind == pod.Init && (cs.State.Running != nil || !ran):
			return v1.PodPending
		case m.kind == pod.Init:
		case cs.State.Running != nil && !d.initialized && !*cs.Started:
			return v1.PodPending
		case cs.State.Running != nil:
			running++
		case !ran: // a sidecar that has never run
			return v1.PodPending
		}
	}
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

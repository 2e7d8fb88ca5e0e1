package plan

import (
	"sort"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// messageBudget bounds the termination messages of all of a pod's containers
// together, so that a status stays small enough to store.
const messageBudget = 12 * 1024

// lostMessage is said of a container that ran, and whose end nobody saw.
const lostMessage = "The container could not be located when the pod was terminated"

// vanishedMessage is said of one whose end nobody saw, of a pod that goes on.
const vanishedMessage = "The container could not be located when the pod was deleted.  The container used to be Running"

// status is the pod's status now. With an outcome it is the outcome, for ever.
func (d *decision) status() v1.PodStatus {
	if o := d.rec.Durable.Outcome; o != nil {
		return *o
	}
	st := d.facts()
	st.Phase = d.phase(&st)
	d.setConditions(&st)
	d.keepConditions(&st)
	return st
}

// finalStatus is the status of a pod of which nothing runs and nothing will.
func (d *decision) finalStatus() *v1.PodStatus {
	if r := d.Desired.Rejection; r != nil && !d.everStarted() {
		start := metav1.NewTime(d.rec.Durable.Accepted)
		return &v1.PodStatus{
			Phase: v1.PodFailed, Reason: string(r.Reason), Message: "Pod was rejected: " + r.Message,
			QOSClass: pod.QOSClass(d.pod), StartTime: &start, ObservedGeneration: d.pod.Generation,
		}
	}
	st := d.facts()
	d.terminate(&st)
	st.Phase = d.finalPhase(&st)
	if t := d.rec.Durable.Termination; t != nil && t.Reason != "" {
		st.Reason, st.Message = string(t.Reason), t.Message
	}
	d.setConditions(&st)
	d.keepConditions(&st)
	return &st
}

// facts fills in all but phase and conditions.
func (d *decision) facts() v1.PodStatus {
	start := metav1.NewTime(d.rec.Durable.Accepted)
	st := v1.PodStatus{StartTime: &start, QOSClass: pod.QOSClass(d.pod), ObservedGeneration: d.pod.Generation}
	for i, ip := range d.Config.HostIPs {
		if i == 0 {
			st.HostIP = ip
		}
		st.HostIPs = append(st.HostIPs, v1.HostIP{IP: ip})
	}
	for i, ip := range d.rec.Boot.IPs {
		if i == 0 {
			st.PodIP = ip
		}
		st.PodIPs = append(st.PodIPs, v1.PodIP{IP: ip})
	}
	for _, m := range d.members {
		if !m.known {
			continue
		}
		cs := d.containerStatus(m)
		switch m.kind {
		case pod.Init, pod.Sidecar:
			st.InitContainerStatuses = append(st.InitContainerStatuses, cs)
		case pod.Main:
			st.ContainerStatuses = append(st.ContainerStatuses, cs)
		case pod.Ephemeral: // of no account for phase and conditions
			st.EphemeralContainerStatuses = append(st.EphemeralContainerStatuses, cs)
		}
	}
	d.podResources(&st)
	byName := func(s []v1.ContainerStatus) {
		sort.Slice(s, func(i, j int) bool { return s[i].Name < s[j].Name })
	}
	byName(st.ContainerStatuses)
	byName(st.EphemeralContainerStatuses)
	trimMessages(&st)
	return st
}

// trimMessages keeps the termination messages within the budget, an equal part each.
func trimMessages(st *v1.PodStatus) {
	all := [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses}
	n := 0
	for _, s := range all {
		n += len(s)
	}
	if n == 0 {
		return
	}
	part := messageBudget / n
	for _, s := range all {
		for i := range s {
			for _, t := range []*v1.ContainerStateTerminated{s[i].State.Terminated, s[i].LastTerminationState.Terminated} {
				if t != nil && len(t.Message) > part {
					t.Message = strings.ToValidUTF8(t.Message[:part], "")
				}
			}
		}
	}
}

// terminate says of every container that did not end before our eyes how it
// ended. One that was never reached stays waiting.
func (d *decision) terminate(st *v1.PodStatus) {
	unknown := func(cs *v1.ContainerStatus) {
		if cs.State.Terminated != nil {
			return
		}
		if cs.State.Waiting != nil && cs.LastTerminationState.Terminated != nil {
			cs.State, cs.LastTerminationState = cs.LastTerminationState, v1.ContainerState{}
		} else {
			cs.State = v1.ContainerState{Terminated: &v1.ContainerStateTerminated{
				Reason: string(pod.ContainerStatusUnknown), ExitCode: 137, Message: lostMessage,
			}}
		}
	}
	reached := false // some main has been started
	for _, m := range d.members {
		reached = reached || m.kind == pod.Main && m.known && d.rec.Durable.Restarts[m.name] > 0
	}
	for i := range st.ContainerStatuses {
		cs := &st.ContainerStatuses[i]
		if reached || cs.LastTerminationState.Terminated != nil {
			unknown(cs)
		}
		cs.Ready, cs.Started = false, new(bool)
	}
	for i := len(st.InitContainerStatuses) - 1; i >= 0; i-- {
		cs := &st.InitContainerStatuses[i]
		if reached || d.rec.Durable.Restarts[pod.ContainerName(cs.Name)] > 0 {
			reached = true
			unknown(cs)
		}
		if cs.State.Terminated == nil || cs.State.Terminated.ExitCode != 0 {
			cs.Ready = false
		}
		cs.Started = new(bool)
	}
}

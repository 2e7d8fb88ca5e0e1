package plan

import (
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// setConditions fills in the conditions that a node owns, in the kubelet's words.
func (d *decision) setConditions(st *v1.PodStatus) {
	ready := d.containersReady(st)
	st.Conditions = []v1.PodCondition{
		condition(v1.PodReadyToStartContainers, d.sandbox != nil && !terminal(st), "", ""),
		d.initializedCondition(st),
		d.readyCondition(ready),
		ready,
		condition(v1.PodScheduled, true, "", ""),
	}
	for i := range st.Conditions {
		st.Conditions[i].ObservedGeneration = d.pod.Generation
	}
}

func terminal(st *v1.PodStatus) bool {
	return st.Phase == v1.PodSucceeded || st.Phase == v1.PodFailed
}

func condition(t v1.PodConditionType, ok bool, reason pod.Reason, message string) v1.PodCondition {
	c := v1.PodCondition{Type: t, Status: v1.ConditionTrue, Reason: string(reason), Message: message}
	if !ok {
		c.Status = v1.ConditionFalse
	}
	return c
}

func (d *decision) initializedCondition(st *v1.PodStatus) v1.PodCondition {
	if st.Phase == v1.PodSucceeded {
		return condition(v1.PodInitialized, true, pod.PodCompleted, "")
	}
	var missing []string
	begun := d.initialized
	for _, m := range d.members {
		switch {
		case m.kind == pod.Init && !d.initDone(m), m.kind == pod.Sidecar && !d.started(m):
			missing = append(missing, string(m.name))
		case m.kind == pod.Main && m.known && (m.running() || m.cur != nil && m.cur.State == pod.Exited):
			begun = true
		}
	}
	if begun || len(missing) == 0 || terminal(st) && d.everReachedMain() {
		return condition(v1.PodInitialized, true, "", "")
	}
	return condition(v1.PodInitialized, false, pod.ContainersNotInitialized, fmt.Sprintf("containers with incomplete status: [%s]", strings.Join(missing, " ")))
}

func (d *decision) everReachedMain() bool {
	for _, m := range d.members {
		if m.kind == pod.Main && d.rec.Durable.Restarts[m.name] > 0 {
			return true
		}
	}
	return false
}

func (d *decision) containersReady(st *v1.PodStatus) v1.PodCondition {
	switch st.Phase {
	case v1.PodSucceeded:
		return condition(v1.ContainersReady, false, pod.PodCompleted, "")
	case v1.PodFailed:
		return condition(v1.ContainersReady, false, pod.PodFailed, "")
	}
	var unready []string
	for _, m := range d.members {
		if m.known && (m.kind == pod.Main || m.kind == pod.Sidecar) && !d.ready(m) {
			unready = append(unready, string(m.name))
		}
	}
	if len(unready) == 0 {
		return condition(v1.ContainersReady, true, "", "")
	}
	return condition(v1.ContainersReady, false, pod.ContainersNotReady, fmt.Sprintf("containers with unready status: [%s]", strings.Join(unready, " ")))
}

// readyCondition is ContainersReady and all readiness gates.
func (d *decision) readyCondition(containers v1.PodCondition) v1.PodCondition {
	if containers.Status != v1.ConditionTrue {
		containers.Type = v1.PodReady
		return containers
	}
	var missing []string
	for _, gate := range d.pod.Spec.ReadinessGates {
		i := slices.IndexFunc(d.pod.Status.Conditions, func(c v1.PodCondition) bool { return c.Type == gate.ConditionType })
		if i < 0 {
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		} else if s := d.pod.Status.Conditions[i].Status; s != v1.ConditionTrue {
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, s))
		}
	}
	if len(missing) > 0 {
		return condition(v1.PodReady, false, pod.ReadinessGatesNotReady, strings.Join(missing, ", "))
	}
	return condition(v1.PodReady, true, "", "")
}

// keepConditions carries transition times over from what was last published,
// and records what is published now: a restart of the agent moves no time.
func (d *decision) keepConditions(st *v1.PodStatus) {
	old := d.rec.Boot.Conditions
	changed := len(old) != len(st.Conditions)
	for i := range st.Conditions {
		c := &st.Conditions[i]
		c.LastTransitionTime = metav1.NewTime(d.Now.Truncate(time.Second))
		j := slices.IndexFunc(old, func(o v1.PodCondition) bool { return o.Type == c.Type })
		if j >= 0 && old[j].Status == c.Status {
			c.LastTransitionTime = old[j].LastTransitionTime
		}
		changed = changed || j < 0 || old[j] != *c
	}
	if changed {
		d.rec.Boot.Conditions, d.unsaved.Boot = st.Conditions, true
	}
}

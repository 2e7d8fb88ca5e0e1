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

// setConditions fills in the conditions: those set from outside, then those
// that a node owns, in the kubelet's words and order.
func (d *decision) setConditions(st *v1.PodStatus) {
	ready := d.containersReady(st)
	var own []v1.PodCondition
	if t := d.rec.Durable.Termination; t != nil && t.Disruption != "" && terminal(st) {
		own = append(own, condition(v1.DisruptionTarget, true, pod.Reason(v1.PodReasonTerminationByKubelet), t.Disruption))
	}
	own = append(own,
		condition(v1.PodReadyToStartContainers, d.sandbox != nil && !terminal(st), "", ""),
		d.initializedCondition(st),
		d.readyCondition(ready),
		ready,
		condition(v1.PodScheduled, true, "", ""),
	)
	if couldReset(&d.pod.Spec) {
		own = append(own, d.restartingCondition(st))
	}
	for i := range own {
		own[i].ObservedGeneration = d.pod.Generation
	}
	if !terminal(st) {
		own = append(own, d.resizeConditions()...)
	}
	st.Conditions = append(slices.Clone(d.rec.Durable.Gates), own...)
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

// initializedCondition: once true, it stays so; that sidecars or, after a reset,
// init containers run again changes nothing about it.
func (d *decision) initializedCondition(st *v1.PodStatus) v1.PodCondition {
	if st.Phase == v1.PodSucceeded {
		return condition(v1.PodInitialized, true, pod.PodCompleted, "")
	}
	var incomplete, unknown []pod.ContainerName
	for _, m := range d.members {
		switch {
		case !m.known || m.kind != pod.Init && m.kind != pod.Sidecar:
		case m.unknown():
			unknown = append(unknown, m.name)
		case m.kind == pod.Init && !d.initDone(m), m.kind == pod.Sidecar && !d.started(m):
			incomplete = append(incomplete, m.name)
		}
	}
	begun := d.initialized || slices.ContainsFunc(st.ContainerStatuses, func(cs v1.ContainerStatus) bool {
		return cs.State.Running != nil || cs.State.Terminated != nil
	})
	was := slices.ContainsFunc(d.rec.Boot.Conditions, func(c v1.PodCondition) bool {
		return c.Type == v1.PodInitialized && c.Status == v1.ConditionTrue
	})
	if begun || was || len(incomplete)+len(unknown) == 0 {
		return condition(v1.PodInitialized, true, "", "")
	}
	return condition(v1.PodInitialized, false, pod.ContainersNotInitialized, listed("incomplete", incomplete, unknown))
}

// unknown says that nobody can tell what has become of m's newest instance.
func (m *member) unknown() bool { return len(m.all) > 0 && m.all[0].State == pod.Unknown }

// listed names the containers that keep a condition from being true.
func listed(what string, lacking, unknown []pod.ContainerName) string {
	var parts []string
	if len(unknown) > 0 {
		parts = append(parts, fmt.Sprintf("containers with unknown status: %s", unknown))
	}
	if len(lacking) > 0 {
		parts = append(parts, fmt.Sprintf("containers with %s status: %s", what, lacking))
	}
	return strings.Join(parts, ", ")
}

func (d *decision) containersReady(st *v1.PodStatus) v1.PodCondition {
	switch {
	case len(st.ContainerStatuses)+len(st.InitContainerStatuses) == 0:
		return condition(v1.ContainersReady, false, pod.UnknownContainerStatuses, "") // its spec is not known
	case st.Phase == v1.PodSucceeded:
		return condition(v1.ContainersReady, false, pod.PodCompleted, "")
	case st.Phase == v1.PodFailed:
		return condition(v1.ContainersReady, false, pod.PodFailed, "")
	}
	var unready, unknown []pod.ContainerName
	for _, m := range d.members {
		switch {
		case !m.known || m.kind != pod.Main && m.kind != pod.Sidecar || d.ready(m):
		case m.unknown():
			unknown = append(unknown, m.name)
		default:
			unready = append(unready, m.name)
		}
	}
	if len(unready)+len(unknown) == 0 {
		return condition(v1.ContainersReady, true, "", "")
	}
	return condition(v1.ContainersReady, false, pod.ContainersNotReady, listed("unready", unready, unknown))
}

// readyCondition is ContainersReady and all readiness gates.
func (d *decision) readyCondition(containers v1.PodCondition) v1.PodCondition {
	if containers.Status != v1.ConditionTrue {
		containers.Type = v1.PodReady
		return containers
	}
	if missing := d.closedGates(); len(missing) > 0 {
		return condition(v1.PodReady, false, pod.ReadinessGatesNotReady, strings.Join(missing, ", "))
	}
	return condition(v1.PodReady, true, "", "")
}

// closedGates says of each readiness gate that is not open why it is not.
func (d *decision) closedGates() []string {
	var missing []string
	for _, gate := range d.pod.Spec.ReadinessGates {
		i := slices.IndexFunc(d.rec.Durable.Gates, func(c v1.PodCondition) bool { return c.Type == gate.ConditionType })
		if i < 0 {
			missing = append(missing, fmt.Sprintf("corresponding condition of pod readiness gate %q does not exist.", gate.ConditionType))
		} else if s := d.rec.Durable.Gates[i].Status; s != v1.ConditionTrue {
			missing = append(missing, fmt.Sprintf("the status of pod readiness gate %q is not \"True\", but %v", gate.ConditionType, s))
		}
	}
	return missing
}

// keepConditions carries transition times over from what was last published,
// and records what is published now: a restart of the agent moves no time.
func (d *decision) keepConditions(st *v1.PodStatus) {
	old := d.rec.Boot.Conditions
	changed := len(old) != len(st.Conditions)
	for i := range st.Conditions {
		c := &st.Conditions[i]
		if i < len(d.rec.Durable.Gates) {
			changed = changed || !slices.Contains(old, *c)
			continue // its times are of those who set it
		}
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

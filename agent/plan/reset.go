package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// resetMessage is what a status says of a container that a reset took away.
const resetMessage = "The container is removed because RestartAllContainers in place"

// rememberReset begins a reset when a container has ended in a way for which
// its rules name RestartAllContainers, and ends it when none of the containers
// is left (KEP-5532):
//
//	exit ─▶ recorded ─▶ all killed, no hooks ─▶ mains removed ─▶ inits removed ─▶ sources removed ─▶ over
//	                                                                                        │
//	             first init container starts, in the same sandbox, with the same volumes ◀──┘
//
// The record says where it stands, so that it goes on after a restart of the
// agent, and after a reboot too. Whatever ends the pod ends its reset.
func (d *decision) rememberReset() {
	dur := &d.rec.Durable
	if dur.Outcome != nil || dur.Termination != nil || d.Desired.Rejection != nil || !d.seen() {
		return
	}
	if dur.Reset == nil {
		sources := d.resetSources()
		if len(sources) == 0 {
			return
		}
		dur.Reset = &pod.Reset{Sources: sources, Since: d.Now}
		d.unsaved.Durable = true
		if d.rec.Boot.Initialized != nil {
			d.rec.Boot.Initialized, d.unsaved.Boot = nil, true
		}
	}
	left := false
	for _, m := range d.members {
		if !resets(m) {
			continue
		}
		d.markReset(m)
		left = left || len(m.all) > 0 || d.busy(m.slot)
	}
	if !left {
		dur.Reset, d.unsaved.Durable = nil, true
	}
}

// resets says that m belongs to what a reset starts anew.
func resets(m *member) bool { return m.known && m.kind != pod.Ephemeral }

// resetSources are the containers whose newest instance asks for a reset. Its
// crash-loop delay is chosen here: a source that asks again and again waits
// ever longer, as one that crashes does.
func (d *decision) resetSources() []pod.ContainerName {
	var sources []pod.ContainerName
	for _, m := range d.members {
		if !resets(m) || len(m.all) == 0 || m.all[0].State != pod.Exited || d.busy(m.slot) {
			continue
		}
		rule := matchingRule(m.spec, m.all[0].ExitCode)
		if rule == nil || rule.Action != v1.ContainerRestartRuleActionRestartAllContainers {
			continue
		}
		m.last = &m.all[0]
		d.restartAt(m)
		sources = append(sources, m.name)
	}
	return sources
}

// markReset records how m's last instance ends: by the reset, whatever its exit
// code was. It is durable, or a reboot would leave a Never container for good.
func (d *decision) markReset(m *member) {
	if m.last == nil || wasReset(m.last) {
		return
	}
	c := *m.last
	c.State, c.ExitCode, c.Reason, c.Message = pod.Exited, 137, string(pod.RestartingAllContainers), resetMessage
	if c.FinishedAt.IsZero() {
		c.FinishedAt = d.Now
	}
	dur := &d.rec.Durable
	dur.Ended, d.unsaved.Durable = put(dur.Ended, m.name, c), true
	m.last = &c
}

// wasReset says that c was taken away by a reset, and is followed by another
// instance whatever its policy is.
func wasReset(c *pod.Container) bool {
	return c != nil && c.Reason == string(pod.RestartingAllContainers)
}

// removeForReset removes the killed containers: mains, then init containers,
// and only then those that asked for it.
func (d *decision) removeForReset() {
	source := func(m *member) bool { return slices.Contains(d.rec.Durable.Reset.Sources, m.name) }
	stages := []func(*member) bool{
		func(m *member) bool { return m.kind == pod.Main && !source(m) },
		func(m *member) bool { return m.kind != pod.Main && !source(m) },
		func(m *member) bool { return m.kind == pod.Main },
		func(*member) bool { return true },
	}
	for _, of := range stages {
		left := false
		for _, m := range d.members {
			if !resets(m) || !of(m) {
				continue
			}
			left = left || len(m.all) > 0 || d.busy(m.slot)
			for i := range m.all {
				if c := &m.all[i]; !alive(c) {
					d.start(pod.Action{Slot: m.slot, Op: pod.OpRemoveContainer, Container: m.name, ContainerID: c.ID, SandboxID: c.SandboxID, Attempt: c.Attempt})
				}
			}
		}
		if left {
			return
		}
	}
}

// couldReset says that some rule of the pod names RestartAllContainers: such
// pods always carry the condition AllContainersRestarting.
func couldReset(spec *v1.PodSpec) bool {
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			for _, rule := range list[i].RestartPolicyRules {
				if rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
					return true
				}
			}
		}
	}
	return false
}

func (d *decision) restartingCondition(st *v1.PodStatus) v1.PodCondition {
	switch {
	case st.Phase == v1.PodSucceeded:
		return condition(v1.AllContainersRestarting, false, pod.PodCompleted, "")
	case st.Phase == v1.PodFailed:
		return condition(v1.AllContainersRestarting, false, pod.PodFailed, "")
	case d.rec.Durable.Reset == nil:
		return condition(v1.AllContainersRestarting, false, "", "")
	}
	return condition(v1.AllContainersRestarting, true, pod.RestartAllContainersStarted, "container exited with restart policy rule")
}

package plan

import (
	"github.com/berthd/berth/agent/pod"
)

// forgotten marks the last cleanup, the one that takes the logs along.
const forgotten pod.Reason = "Forgotten"

// tearDown takes the next steps of the one way down (see the package comment).
// stopContainers has done the first.
func (d *decision) tearDown() {
	if !d.seen() || d.inUse() || d.settingUp() {
		return
	}
	if d.rec.Durable.Outcome == nil {
		d.rec.Durable.Outcome, d.unsaved.Durable = d.finalStatus(), true
	}
	if !d.stopSandboxes() || !d.unmountVolumes() {
		return
	}
	if !d.Desired.Forget {
		if d.Observed.Dirty && d.Last[pod.SlotCleanup].Action.Op != pod.OpCleanup {
			d.start(pod.Action{Slot: pod.SlotCleanup, Op: pod.OpCleanup})
		}
		return
	}
	if d.removeAll() && d.cleanUp() {
		d.plan.Done = true
	}
}

// settingUp says that work which was begun before the end is not yet over.
func (d *decision) settingUp() bool {
	for _, a := range d.InFlight {
		switch a.Op {
		case pod.OpPullImage, pod.OpMountVolumes, pod.OpCreateSandbox, pod.OpStartContainer, pod.OpPostStart, pod.OpResize:
			return true
		}
	}
	return d.Stale[pod.SlotSandbox]
}

// stopSandboxes releases the network of every sandbox, and says whether that is done.
func (d *decision) stopSandboxes() bool {
	for _, s := range d.Observed.Sandboxes {
		if s.Ready {
			d.start(pod.Action{Slot: pod.SlotSandbox, Op: pod.OpStopSandbox, SandboxID: s.ID})
			return false
		}
	}
	return !d.busy(pod.SlotSandbox)
}

// unmountVolumes says whether nothing is mounted any more.
func (d *decision) unmountVolumes() bool {
	if d.Last[pod.SlotVolumes].Action.Op == pod.OpUnmountVolumes {
		return true
	}
	if d.Observed.Volumes == nil && !d.Observed.Dirty && !d.Desired.Forget {
		return !d.busy(pod.SlotVolumes)
	}
	d.start(pod.Action{Slot: pod.SlotVolumes, Op: pod.OpUnmountVolumes})
	return false
}

// removeAll removes sandboxes, with them their containers, and containers that
// have lost theirs; it says whether none is left.
func (d *decision) removeAll() bool {
	for _, s := range d.Observed.Sandboxes {
		d.start(pod.Action{Slot: pod.SlotSandbox, Op: pod.OpRemoveSandbox, SandboxID: s.ID})
		return false
	}
	left := d.busy(pod.SlotSandbox)
	for _, m := range d.members {
		left = left || d.busy(m.slot)
		for i := range m.all {
			c := &m.all[i]
			d.start(pod.Action{Slot: m.slot, Op: pod.OpRemoveContainer, Container: m.name, ContainerID: c.ID, SandboxID: c.SandboxID, Attempt: c.Attempt})
			left = true
		}
	}
	return !left
}

// cleanUp removes what the pod has left on the node, and says whether that is done.
func (d *decision) cleanUp() bool {
	if last := d.Last[pod.SlotCleanup].Action; last.Op == pod.OpCleanup && last.Reason == forgotten {
		return !d.busy(pod.SlotCleanup)
	}
	d.start(pod.Action{Slot: pod.SlotCleanup, Op: pod.OpCleanup, Reason: forgotten})
	return false
}

package plan

import (
	"github.com/berthd/berth/agent/pod"
)

// findSandbox picks the one sandbox that containers may run in: the newest
// attempt, if it is ready and, unless it has the host's network, has an address.
func (d *decision) findSandbox() {
	newest := -1
	for i, s := range d.Observed.Sandboxes {
		if newest < 0 || s.Attempt > d.Observed.Sandboxes[newest].Attempt {
			newest = i
		}
	}
	if newest < 0 {
		return
	}
	s := &d.Observed.Sandboxes[newest]
	if s.Ready && s.HostNetwork == d.pod.Spec.HostNetwork && (s.HostNetwork || len(s.IPs) > 0) {
		d.sandbox = s
	}
}

// setUpSandbox brings the pod to exactly one usable sandbox. Those that are of
// no use are stopped and removed first: they may hold the address and the ports
// that the next one needs.
func (d *decision) setUpSandbox() {
	for i := range d.Observed.Sandboxes {
		s := &d.Observed.Sandboxes[i]
		if s == d.sandbox {
			continue
		}
		d.discardSandbox(s)
		return
	}
	if d.sandbox != nil || d.Observed.Volumes == nil || d.inUse() {
		return
	}
	if !d.start(pod.Action{Slot: pod.SlotSandbox, Op: pod.OpCreateSandbox, Attempt: d.rec.Boot.Sandboxes}) {
		return
	}
	if d.rec.Boot.Initialized != nil { // init containers run again in a new sandbox
		d.rec.Boot.Initialized, d.unsaved.Boot = nil, true
	}
}

// discardSandbox takes the next step to get rid of s; its containers are being
// stopped by stopContainers.
func (d *decision) discardSandbox(s *pod.Sandbox) {
	if d.runningIn(s.ID) {
		return
	}
	if s.Ready {
		d.start(pod.Action{Slot: pod.SlotSandbox, Op: pod.OpStopSandbox, SandboxID: s.ID})
		return
	}
	if d.start(pod.Action{Slot: pod.SlotSandbox, Op: pod.OpRemoveSandbox, SandboxID: s.ID}) {
		d.rememberGone(s.ID)
		if _, again := d.Failures[pod.SlotSandbox]; d.sandbox == nil && !again {
			d.event(false, pod.SandboxChanged, "", "Pod sandbox changed, it will be killed and re-created.")
		}
	}
}

// runningIn says that some container of sandbox id may be running.
func (d *decision) runningIn(id pod.SandboxID) bool {
	for _, m := range d.members {
		if a, ok := d.InFlight[m.slot]; ok && (a.SandboxID == id || a.SandboxID == "") {
			return true
		}
		if d.Stale[m.slot] {
			return true
		}
		for i := range m.all {
			if m.all[i].SandboxID == id && alive(&m.all[i]) {
				return true
			}
		}
	}
	return false
}

// inUse says that some container, of whatever sandbox, may be running.
func (d *decision) inUse() bool {
	for _, m := range d.members {
		if d.Stale[m.slot] {
			return true
		}
		if _, ok := d.InFlight[m.slot]; ok {
			return true
		}
		for i := range m.all {
			if alive(&m.all[i]) {
				return true
			}
		}
	}
	return false
}

// sandboxBusy says that the usable sandbox may not be so any more.
func (d *decision) sandboxBusy() bool {
	a, ok := d.InFlight[pod.SlotSandbox]
	return d.Stale[pod.SlotSandbox] || ok && a.SandboxID == d.sandbox.ID
}

// alive says that c may have a process.
func alive(c *pod.Container) bool { return c.State == pod.Running || c.State == pod.Unknown }

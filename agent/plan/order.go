package plan

import (
	"time"

	"github.com/berthd/berth/agent/pod"
)

// startContainers starts what may start now.
//
// Init containers go one after another: an ordinary one is done when it has
// exited with 0, a sidecar when it is started (its startup probe, if it has one,
// has succeeded, and its postStart hook is over). A sidecar that dies is
// restarted at any time. Once all are done in this sandbox, ordinary ones never
// run again in it, and the mains start side by side, except that a main with a
// postStart hook holds back those after it until its hook is over.
func (d *decision) startContainers() {
	open := true
	for _, m := range d.members {
		switch {
		case !m.known:
			continue
		case m.kind == pod.Init:
			open = d.startInit(m, open)
		case m.kind == pod.Sidecar:
			open = d.startSidecar(m, open)
		}
	}
	if open && d.sandbox != nil && !d.initialized && !d.sandboxBusy() {
		attempt := d.sandbox.Attempt
		d.initialized, d.rec.Boot.Initialized, d.unsaved.Boot = true, &attempt, true
	}
	open = open && d.initialized
	for _, m := range d.members {
		if !m.known {
			continue
		}
		switch m.kind {
		case pod.Main:
			d.startMain(m, open)
			open = open && !d.holdsBack(m)
		case pod.Ephemeral:
			if m.last == nil {
				d.startInstance(m, d.Now, d.sandbox != nil)
			}
		}
		d.startHook(m)
	}
}

// hasBeenInitialized says that all init containers have once been done in the
// current sandbox: it is recorded, or a main has been started there.
func (d *decision) hasBeenInitialized() bool {
	if n := d.rec.Boot.Initialized; n != nil && *n == d.sandbox.Attempt {
		return true
	}
	for _, m := range d.members {
		if m.kind == pod.Main && m.known && m.cur != nil {
			return true
		}
	}
	return false
}

// startInit does what init container m needs, and says whether the next one may start.
func (d *decision) startInit(m *member, open bool) bool {
	switch {
	case d.initialized:
		return open
	case m.cur == nil, m.cur.State == pod.Created:
		d.startInstance(m, d.freshAt(m), open)
		return false
	case m.cur.State != pod.Exited || d.busy(m.slot):
		return false
	case m.cur.ExitCode == 0 && m.cur.Reason != string(pod.OOMKilled):
		return open
	}
	d.startInstance(m, d.restartAt(m), open)
	return false
}

// freshAt is when m's first instance in a sandbox, or after a reset, may start:
// what asked for the reset waits out its crash-loop delay.
func (d *decision) freshAt(m *member) time.Time {
	if wasReset(m.last) {
		return d.restartAt(m)
	}
	return d.Now
}

// startSidecar does what sidecar m needs, and says whether the next container may start.
func (d *decision) startSidecar(m *member, open bool) bool {
	switch {
	case m.cur == nil, m.cur.State == pod.Created:
		d.startInstance(m, d.freshAt(m), open)
	case m.cur.State == pod.Exited && !d.busy(m.slot):
		d.startInstance(m, d.restartAt(m), true)
	}
	// Once initialised, the loss of a sidecar holds back nothing.
	return open && (d.initialized || d.started(m))
}

func (d *decision) startMain(m *member, open bool) {
	switch {
	case m.last != nil && m.last.State == pod.Exited && !d.busy(m.slot) && !d.mayRestart(m):
		// ended for good
	case m.cur == nil, m.cur.State == pod.Created:
		at := d.Now
		if m.last != nil && m.last.State == pod.Exited && !d.busy(m.slot) {
			at = d.restartAt(m)
		}
		d.startInstance(m, at, open)
	case m.cur.State == pod.Exited && !d.busy(m.slot):
		d.startInstance(m, d.restartAt(m), open)
	}
}

// holdsBack says that the mains after m must wait for its postStart hook. A
// main that cannot start holds back nobody.
func (d *decision) holdsBack(m *member) bool {
	if m.spec.Lifecycle == nil || m.spec.Lifecycle.PostStart == nil || m.last != nil && m.last.State == pod.Exited {
		return false
	}
	if m.running() {
		return !d.hooked(m) && d.rec.Boot.Stopping[m.cur.ID].Deadline.IsZero()
	}
	_, noImage := d.Failures[pod.ImageSlot(m.name)]
	_, noStart := d.Failures[m.slot]
	return !noImage && !noStart
}

// startHook runs the postStart hook of a container that is running.
func (d *decision) startHook(m *member) {
	if !m.running() || d.hooked(m) || d.stopping(m.cur.ID) {
		return
	}
	d.start(pod.Action{Slot: m.slot, Op: pod.OpPostStart, Container: m.name, ContainerID: m.cur.ID, SandboxID: m.cur.SandboxID, Attempt: m.cur.Attempt})
}

// hooked says that m's running instance has its postStart hook behind it.
func (d *decision) hooked(m *member) bool {
	if m.spec.Lifecycle == nil || m.spec.Lifecycle.PostStart == nil {
		return true
	}
	return m.cur != nil && d.rec.Boot.Hooked[m.cur.ID]
}

// started says that m runs, and that its postStart hook and its startup probe,
// if it has them, have succeeded.
func (d *decision) started(m *member) bool {
	return m.running() && d.hooked(m) && (m.spec.StartupProbe == nil || d.verdict(m, pod.Startup) == pod.Success)
}

func (d *decision) stopping(id pod.ContainerID) bool {
	_, ok := d.rec.Boot.Stopping[id]
	return ok
}

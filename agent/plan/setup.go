package plan

import (
	"slices"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// setUp takes every step towards a running pod that can be taken now.
func (d *decision) setUp() {
	d.mountVolumes()
	if !d.seen() {
		for _, m := range d.members {
			d.pullVolumeImages(m)
			d.pullImage(m, 0)
		}
		return
	}
	d.setUpSandbox()
	if d.rec.Durable.Reset != nil {
		d.removeForReset()
		return
	}
	d.startContainers()
	d.putInForce()
	d.removeDead()
}

// mountVolumes sets the volumes up, and refreshes those of a running pod when
// the objects they show have changed.
func (d *decision) mountVolumes() {
	version := d.inputs().Version
	if d.Observed.Volumes != nil && d.Observed.VolumesVersion == version {
		return
	}
	d.start(pod.Action{Slot: pod.SlotVolumes, Op: pod.OpMountVolumes, Message: version})
}

// pullImage makes sure of the image for instance attempt of m, and says whether it is there.
func (d *decision) pullImage(m *member, attempt uint32) bool {
	if d.Observed.Images[m.name].Ref != "" {
		return true
	}
	a := pod.Action{Slot: pod.ImageSlot(m.name), Op: pod.OpPullImage, Container: m.name, Attempt: attempt}
	if d.start(a) {
		return false
	}
	if f, ok := d.Failures[a.Slot]; ok && pullFailed(f) {
		if at := pullBackOffShown(f); d.Now.Before(at) {
			d.wake(at)
		}
	}
	return false
}

// nextAttempt is the number of m's next instance. Logs count where neither the
// record nor the runtime remembers any: they are not written over.
func (d *decision) nextAttempt(m *member) uint32 {
	n := max(d.rec.Durable.Restarts[m.name], d.Observed.Logged[m.name])
	for i := range m.all {
		if m.all[i].State != pod.Created {
			n = max(n, m.all[i].Attempt+1)
		}
	}
	return n
}

// startInstance takes the next step towards a new instance of m, not before at.
// The image is ensured while sandbox and volumes are still being made.
func (d *decision) startInstance(m *member, at time.Time, inTurn bool) {
	if m.cur != nil && m.cur.State == pod.Created {
		// Left by a start that was killed half-way: its number is used again.
		d.start(pod.Action{Slot: m.slot, Op: pod.OpRemoveContainer, Container: m.name, ContainerID: m.cur.ID, SandboxID: m.cur.SandboxID, Attempt: m.cur.Attempt})
		return
	}
	if d.busy(m.slot) || slices.ContainsFunc(m.all, func(c pod.Container) bool { return alive(&c) }) {
		return // never two instances of a name
	}
	if d.Now.Before(at) {
		d.wake(at)
		return
	}
	attempt := d.nextAttempt(m)
	images := d.pullVolumeImages(m)
	images = d.pullImage(m, attempt) && images
	if !images || !inTurn || d.sandbox == nil || d.Observed.Volumes == nil || d.sandboxBusy() {
		return
	}
	d.start(pod.Action{Slot: m.slot, Op: pod.OpStartContainer, Container: m.name, SandboxID: d.sandbox.ID, Attempt: attempt})
}

// removeDead removes dead instances that are neither the newest nor the newest
// dead one of their name: "logs --previous" needs no older ones.
func (d *decision) removeDead() {
	for _, m := range d.members {
		dead := 0
		for i := range m.all {
			c := &m.all[i]
			if c.State == pod.Created && d.sandbox != nil && c.SandboxID == d.sandbox.ID && c == m.cur {
				continue
			}
			if c.State == pod.Exited {
				if dead++; dead == 1 && m.known {
					continue
				}
			}
			if c.State == pod.Exited || c.State == pod.Created {
				d.start(pod.Action{Slot: m.slot, Op: pod.OpRemoveContainer, Container: m.name, ContainerID: c.ID, SandboxID: c.SandboxID, Attempt: c.Attempt})
			}
		}
	}
}

package plan

import (
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// remember moves into the Record what the observation tells and nothing could
// tell again. It comes before everything else in a decision, so that a fact is
// on disk before it is acted on or published.
func (d *decision) remember() {
	dur, boot := &d.rec.Durable, &d.rec.Boot
	d.rememberResize()
	d.rememberFailures()
	if dur.Pod != d.Desired.Pod || dur.RuntimeHandler != d.Desired.RuntimeHandler {
		dur.Pod, dur.Source, dur.RuntimeHandler, d.unsaved.Durable = d.Desired.Pod, d.Desired.Source, d.Desired.RuntimeHandler, true
	}
	if dur.Accepted.IsZero() {
		dur.Accepted, d.unsaved.Durable = d.Now.Truncate(time.Second), true
	}
	if !boot.StartTime.Equal(dur.Accepted) {
		boot.StartTime, d.unsaved.Boot = dur.Accepted, true
	}
	d.rememberTermination()
	d.rememberInstances()
	d.rememberSandboxes()
	d.rememberDeadline()
	d.rememberOverrun()
	if d.seen() {
		d.forgetInstances()
	}
	d.rememberReset()
	d.initialized = d.sandbox != nil && d.rec.Durable.Reset == nil && d.hasBeenInitialized()
}

// rememberFailures keeps what holds the pod up for the agent's next life. The
// runtime's own silence is left out: it is asked anew at once.
func (d *decision) rememberFailures() {
	_, silent := d.Failures[pod.SlotObserve]
	kept := d.Failures
	if silent {
		kept = maps.Clone(kept)
		delete(kept, pod.SlotObserve)
	}
	if maps.Equal(kept, d.rec.Boot.Failures) {
		return
	}
	d.rec.Boot.Failures, d.unsaved.Boot = maps.Clone(kept), true
}

// recalled are the failures that an agent's predecessor knew of. What failed is
// tried at once: the agent may have been started again for the very reason that
// something has been mended. What fails again waits as long as it would have.
//
// A success that came after a failure may have been lost with the agent; what is
// there tells of it.
func recalled(known map[pod.Slot]pod.Failure, o *pod.Observed) map[pod.Slot]pod.Failure {
	failures := make(map[pod.Slot]pod.Failure, len(known))
	for slot, f := range known {
		f.NotBefore = time.Time{}
		failures[slot] = f
	}
	for _, c := range o.Containers {
		slot := pod.ContainerSlot(c.Name)
		if f, ok := failures[slot]; ok && c.StartedAt.After(f.At) && (f.Op == pod.OpStartContainer || f.Op == pod.OpPostStart) {
			delete(failures, slot)
		}
	}
	if f, ok := failures[pod.SlotSandbox]; ok && f.Op == pod.OpCreateSandbox && slices.ContainsFunc(o.Sandboxes, func(s pod.Sandbox) bool { return s.Ready }) {
		delete(failures, pod.SlotSandbox)
	}
	return failures
}

func (d *decision) rememberInstances() {
	dur := &d.rec.Durable
	for _, m := range d.members {
		for _, c := range m.all {
			if c.State != pod.Created && dur.Restarts[c.Name] < c.Attempt+1 {
				dur.Restarts, d.unsaved.Durable = put(dur.Restarts, c.Name, c.Attempt+1), true
			}
		}
		if l := m.last; l != nil && l.ID == "" && l.Reason == string(pod.ContainerStatusUnknown) {
			if g, ok := d.rec.Boot.Gone[m.name]; !ok || g.Attempt < l.Attempt { // the last state of the instance to come
				d.rec.Boot.Gone, d.unsaved.Boot = put(d.rec.Boot.Gone, m.name, *l), true
			}
		}
	}
}

func (d *decision) rememberSandboxes() {
	boot := &d.rec.Boot
	for _, s := range d.Observed.Sandboxes {
		if boot.Sandboxes < s.Attempt+1 {
			boot.Sandboxes, d.unsaved.Boot = s.Attempt+1, true
		}
	}
	if d.sandbox == nil {
		return
	}
	ips := d.sandbox.IPs
	if d.sandbox.HostNetwork {
		// The addresses that it had, and the node's of a family that it had none of.
		ips = slices.Concat(boot.IPs, d.Config.HostIPs)
	}
	ips = orderedIPs(ips, d.Config.HostIPs)
	if len(ips) > 0 && !slices.Equal(ips, boot.IPs) {
		boot.IPs, d.unsaved.Boot = ips, true
	}
}

// orderedIPs are the addresses that a status shows: the first of each family, the
// node's own family first.
func orderedIPs(ips, host []string) []string {
	v6 := func(ip string) bool { return strings.Contains(ip, ":") }
	var out []string
	for _, family := range []bool{len(host) > 0 && v6(host[0]), len(host) == 0 || !v6(host[0])} {
		if i := slices.IndexFunc(ips, func(ip string) bool { return v6(ip) == family }); i >= 0 {
			out = append(out, ips[i])
		}
	}
	return out
}

// rememberTermination records what was asked for, with the grace that holds: the
// first request may set any, each later one only a shorter.
func (d *decision) rememberTermination() {
	dur := &d.rec.Durable
	t := mergeTermination(dur.Termination, d.Desired.Termination)
	if t == dur.Termination {
		return
	}
	if t.Grace == nil {
		resolved, grace := *t, d.specGrace()
		resolved.Grace = &grace
		t = &resolved
	}
	dur.Termination, d.unsaved.Durable = t, true
}

// rememberOverrun tells, once, of containers that outlive the grace period of an
// end that the node itself asked for.
func (d *decision) rememberOverrun() {
	t, boot := d.rec.Durable.Termination, &d.rec.Boot
	if t == nil || t.Reason == "" || t.Reason == pod.DeadlineExceeded || boot.GraceExceeded || !d.inUse() {
		return
	}
	at := t.Requested.Add(max(10*time.Second, d.podGrace()*3/2))
	if d.Now.Before(at) {
		d.wake(at)
		return
	}
	boot.GraceExceeded, d.unsaved.Boot = true, true
	d.event(true, pod.ExceededGracePeriod, "", "Container runtime did not kill the pod within specified grace period.")
}

// rememberDeadline turns a passed activeDeadlineSeconds into a termination.
func (d *decision) rememberDeadline() {
	dur := &d.rec.Durable
	limit := d.pod.Spec.ActiveDeadlineSeconds
	if limit == nil || dur.Termination != nil || dur.Outcome != nil || d.Desired.Rejection != nil {
		return
	}
	at := dur.Accepted.Add(time.Duration(*limit) * time.Second)
	if d.Now.Before(at) {
		d.wake(at)
		return
	}
	grace := d.specGrace()
	dur.Termination = &pod.Termination{Requested: d.Now, Grace: &grace, Reason: pod.DeadlineExceeded, Message: deadlineReason}
	d.unsaved.Durable = true
	d.event(false, pod.DeadlineExceeded, "", deadlineReason)
}

// forgetInstances drops what is remembered about instances that are gone.
func (d *decision) forgetInstances() {
	boot := &d.rec.Boot
	ids := make(map[pod.ContainerID]bool, len(d.Observed.Containers))
	for _, c := range d.Observed.Containers {
		ids[c.ID] = true
	}
	var cut bool
	boot.Hooked, cut = keep(boot.Hooked, ids)
	d.unsaved.Boot = d.unsaved.Boot || cut
	boot.Verdicts, cut = keep(boot.Verdicts, ids)
	d.unsaved.Boot = d.unsaved.Boot || cut
	boot.Actuated.Containers, cut = keep(boot.Actuated.Containers, ids)
	d.unsaved.Boot = d.unsaved.Boot || cut
	boot.Stopping, cut = keep(boot.Stopping, ids)
	d.unsaved.Boot = d.unsaved.Boot || cut
}

// keep returns m without the keys that are not in ids, and whether that changed it.
func keep[V any](m map[pod.ContainerID]V, ids map[pod.ContainerID]bool) (map[pod.ContainerID]V, bool) {
	cut := false
	for id := range m {
		if !ids[id] {
			cut = true
		}
	}
	if !cut {
		return m, false
	}
	m = maps.Clone(m)
	maps.DeleteFunc(m, func(id pod.ContainerID, _ V) bool { return !ids[id] })
	return m, true
}

// rememberGone keeps the last state of every instance in sandbox id, which is
// about to be removed with them.
func (d *decision) rememberGone(id pod.SandboxID) {
	boot := &d.rec.Boot
	for _, m := range d.members {
		if len(m.all) == 0 || m.last == nil || m.last.SandboxID != id {
			continue
		}
		if g, ok := boot.Gone[m.name]; ok && g.ID == m.last.ID {
			continue
		}
		c := *m.last
		if c.State != pod.Exited {
			c = lostInstance(c, "the container went away with its sandbox", d.Now)
		}
		boot.Gone, d.unsaved.Boot = put(boot.Gone, m.name, c), true
	}
}

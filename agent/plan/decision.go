package plan

import (
	"maps"
	"sort"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// decision is the scratch paper of one Decide.
type decision struct {
	State
	pod     *v1.Pod
	rec     pod.Record
	unsaved Parts
	plan    Plan
	// sandbox is the one that containers may run in; nil if there is none.
	sandbox *pod.Sandbox
	members []*member
	end     endCause
	// initialized: every init container has once been done in this sandbox.
	initialized bool
	// begun are the slots that this decision fills.
	begun map[pod.Slot]bool
}

// member is one container of the pod with the facts about it.
type member struct {
	spec *v1.Container // never nil; a stub for a container the spec does not know
	name pod.ContainerName
	kind pod.ContainerKind
	slot pod.Slot
	// known is false for a container that only the runtime knows.
	known bool
	// all are the observed instances, newest first.
	all []pod.Container
	// cur is the newest instance in the current sandbox.
	cur *pod.Container
	// last is the newest instance that anybody remembers; what it became if it was lost.
	last *pod.Container
}

func newDecision(s State) *decision {
	s.Config = s.Config.withDefaults()
	d := &decision{State: s, pod: s.grantedPod(), rec: s.Record, unsaved: s.Unsaved}
	d.findSandbox()
	d.findMembers()
	return d
}

// seen says that the runtime has answered at least once.
func (d *decision) seen() bool { return !d.Observed.At.IsZero() }

// busy says that nothing may be started in slot: something runs there, or has
// run there since the last look.
func (d *decision) busy(slot pod.Slot) bool {
	if _, ok := d.InFlight[slot]; ok {
		return true
	}
	return d.Stale[slot] || d.begun[slot]
}

// wake moves the time of the next decision to at, if that is earlier.
func (d *decision) wake(at time.Time) {
	if d.plan.Wake.IsZero() || at.Before(d.plan.Wake) {
		d.plan.Wake = at
	}
}

// start begins a, unless its slot is taken or its last failure is still waited out.
func (d *decision) start(a pod.Action) bool {
	if d.busy(a.Slot) {
		return false
	}
	if f, ok := d.Failures[a.Slot]; ok && f.Op == a.Op && d.Now.Before(f.NotBefore) {
		d.wake(f.NotBefore)
		return false
	}
	if at := d.again(a); d.Now.Before(at) {
		d.wake(at)
		return false
	}
	if d.begun == nil {
		d.begun = map[pod.Slot]bool{}
	}
	d.begun[a.Slot] = true
	d.plan.Start = append(d.plan.Start, a)
	return true
}

// again is the earliest time for an action that has just been done, with
// success and without effect. Without it a runtime that lies keeps us spinning.
func (d *decision) again(a pod.Action) time.Time {
	last, ok := d.Last[a.Slot]
	if !ok || !sameWork(last.Action, a) {
		return time.Time{}
	}
	return last.At.Add(min(time.Second<<min(last.Repeats, 6), time.Minute))
}

// sameWork says that a and b do the same. Pulls and mounts are never the same:
// their success is a fact of its own. Nor are looks.
func sameWork(a, b pod.Action) bool {
	switch a.Op {
	case pod.OpObserve, pod.OpPullImage, pod.OpMountVolumes:
		return false
	}
	a.Grace, b.Grace, a.Message, b.Message, a.PreStop, b.PreStop = 0, 0, "", "", false, false
	return a == b
}

func (d *decision) cancel(slot pod.Slot) { d.plan.Cancel = append(d.plan.Cancel, slot) }

func (d *decision) event(warning bool, reason pod.Reason, c pod.ContainerName, message string) {
	d.plan.Events = append(d.plan.Events, pod.Event{Warning: warning, Reason: reason, Message: message, Container: c, At: d.Now})
}

// observe looks at the runtime when our knowledge is older than our deeds, or somebody said so.
func (d *decision) observe() {
	if d.seen() && !d.Look && len(d.Stale) == 0 {
		return
	}
	d.start(pod.Action{Slot: pod.SlotObserve, Op: pod.OpObserve})
}

// findMembers lists the pod's containers in starting order: init containers,
// mains, ephemeral ones, and last those that only the runtime knows.
func (d *decision) findMembers() {
	spec := &d.pod.Spec
	d.members = make([]*member, 0, len(spec.InitContainers)+len(spec.Containers))
	for i := range spec.InitContainers {
		kind := pod.Init
		if isSidecar(&spec.InitContainers[i]) {
			kind = pod.Sidecar
		}
		d.addMember(&spec.InitContainers[i], kind, true)
	}
	for i := range spec.Containers {
		d.addMember(&spec.Containers[i], pod.Main, true)
	}
	for i := range spec.EphemeralContainers {
		c := v1.Container(spec.EphemeralContainers[i].EphemeralContainerCommon)
		d.addMember(&c, pod.Ephemeral, true)
	}
	for _, c := range d.Observed.Containers {
		m := d.member(c.Name)
		if m == nil {
			m = d.addMember(&v1.Container{Name: string(c.Name)}, pod.Main, false)
		}
		m.all = append(m.all, c)
	}
	for _, m := range d.members {
		d.findInstances(m)
	}
}

func isSidecar(c *v1.Container) bool {
	return c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways
}

func (d *decision) addMember(c *v1.Container, kind pod.ContainerKind, known bool) *member {
	name := pod.ContainerName(c.Name)
	m := &member{spec: c, name: name, kind: kind, known: known, slot: pod.ContainerSlot(name)}
	d.members = append(d.members, m)
	return m
}

func (d *decision) member(name pod.ContainerName) *member {
	for _, m := range d.members {
		if m.name == name {
			return m
		}
	}
	return nil
}

// findInstances works out cur and last of m.
func (d *decision) findInstances(m *member) {
	sort.SliceStable(m.all, func(i, j int) bool { return m.all[i].Attempt > m.all[j].Attempt })
	for i := range m.all {
		c := &m.all[i]
		if c.State == pod.Unknown && d.stoppedInVain(m.slot, c.ID) {
			became := lostInstance(*c, "its monitor was lost; it was stopped, and how it ended cannot be told", d.Last[m.slot].At)
			*c = became
		}
		if m.cur == nil && d.sandbox != nil && c.SandboxID == d.sandbox.ID {
			m.cur = c
		}
		if m.last == nil && c.State != pod.Created {
			m.last = c
		}
	}
	if g, ok := d.rec.Boot.Gone[m.name]; ok && (m.last == nil || g.Attempt > m.last.Attempt) {
		m.last = &g
	}
	if e, ok := d.rec.Durable.Ended[m.name]; ok && (m.last == nil || e.Attempt >= m.last.Attempt) {
		m.last = &e
	}
	// An instance that ran and that nobody remembers was lost with its exit code.
	if n := d.rec.Durable.Restarts[m.name]; n > 0 && d.seen() && !d.busy(m.slot) && (m.last == nil || m.last.Attempt < n-1) {
		lost := lostInstance(pod.Container{Name: m.name, Attempt: n - 1, Image: m.spec.Image}, vanishedMessage, time.Time{})
		m.last = &lost
	}
}

// stoppedInVain says that the last thing done in slot was to stop instance id.
func (d *decision) stoppedInVain(slot pod.Slot, id pod.ContainerID) bool {
	last, ok := d.Last[slot]
	return ok && last.Action.Op == pod.OpStopContainer && last.Action.ContainerID == id && !d.busy(slot)
}

// lostInstance is what is told of an instance whose end nobody saw.
func lostInstance(c pod.Container, message string, at time.Time) pod.Container {
	c.State, c.ExitCode, c.Reason, c.Message, c.FinishedAt = pod.Exited, 137, string(pod.ContainerStatusUnknown), message, at
	return c
}

func (m *member) running() bool { return m.cur != nil && m.cur.State == pod.Running }

// put returns a copy of m in which k is v: maps of a Record are never changed in place.
func put[M ~map[K]V, K comparable, V any](m M, k K, v V) M {
	next := make(M, len(m)+1)
	maps.Copy(next, m)
	next[k] = v
	return next
}

package plan

import (
	"fmt"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// A resize (KEP-1287) goes through three states of the pod's resources, each
// written by its worker:
//
//	desired ──granted by the node (Allocation)──▶ allocated ──OpResize, restarts──▶ actuated
//	   ▲ SetResources, or another spec of the same UID
//
// Whatever is done for the pod is done with what is allocated.

// Shown is what is desired of the pod, as it is shown: with the resources that
// were asked for last.
func (s *State) Shown() pod.Desired {
	d := s.Merged()
	if rs := s.resize(); rs != nil {
		d.Pod = rs.Desired.Into(d.Pod)
	}
	return d
}

// Granted is what is desired of the pod, with the resources that it may use.
func (s *State) Granted() pod.Desired {
	d := s.Merged()
	d.Pod, d.Inputs = s.grantedPod(), s.inputs()
	return d
}

// inputs are those of the pod, and the resources that it is granted where its
// volumes show them.
func (s *State) inputs() pod.Inputs {
	in := s.Desired.Inputs
	if rs := s.resize(); rs != nil && rs.Allocated.Generation > 1 && showsResources(&s.Desired.Pod.Spec) {
		in.Version += fmt.Sprintf(";resources=%d", rs.Allocated.Generation)
	}
	return in
}

func (s *State) grantedPod() *v1.Pod {
	p := s.mergedPod()
	rs := s.resize()
	if rs == nil || p == nil {
		return p
	}
	p = rs.Allocated.Into(p)
	p.Generation = rs.Desired.Generation
	return p
}

// Held is the pod with the resources that it holds: of what is allocated and
// what is in force the larger. nil: those of its spec.
func (s *State) Held() *v1.Pod {
	rs := s.Record.Durable.Resize
	if rs == nil {
		return nil
	}
	held := pod.Resources{Generation: rs.Desired.Generation, Pod: rs.Allocated.Pod, Containers: map[pod.ContainerName]v1.ResourceRequirements{}}
	for name, r := range rs.Allocated.Containers {
		held.Containers[name] = r
	}
	actuated := s.Record.Boot.Actuated
	if actuated.Pod != nil && held.Pod != nil && rs.Progress != nil {
		larger := larger(*held.Pod, *actuated.Pod)
		held.Pod = &larger
	}
	for i := range s.Observed.Containers {
		c := &s.Observed.Containers[i]
		r, known := held.Containers[c.Name]
		if have, ok := actuated.Of(c); known && ok && alive(c) {
			held.Containers[c.Name] = larger(r, have)
		}
	}
	return held.Into(s.mergedPod())
}

// larger is a with the requests of b that are larger.
func larger(a, b v1.ResourceRequirements) v1.ResourceRequirements {
	out := *a.DeepCopy()
	for name, q := range b.Requests {
		if have, ok := out.Requests[name]; ok && q.Cmp(have) > 0 {
			out.Requests[name] = q
		}
	}
	return out
}

// resize is where the pod's resources stand. Another spec of the same UID asks
// for a resize too, where its resources differ from the last one's.
func (s *State) resize() *pod.Resize {
	rs, last := s.Record.Durable.Resize, s.Record.Durable.Pod
	if last == nil || last == s.Desired.Pod || s.Desired.Pod == nil {
		return rs
	}
	was, next := pod.ResourcesOf(last), pod.ResourcesOf(s.Desired.Pod)
	if was.Same(next) {
		return rs
	}
	return askFor(rs, was, next)
}

// askFor returns rs with want desired; base is what a pod that was never resized has.
func askFor(rs *pod.Resize, base, want pod.Resources) *pod.Resize {
	if rs == nil {
		base.Generation = max(base.Generation, 1)
		rs = &pod.Resize{Desired: base, Allocated: base}
	}
	next := *rs
	want.Generation = max(rs.Desired.Generation+1, want.Generation)
	next.Desired, next.Pending = want, nil
	if want.Same(next.Allocated) {
		next.Allocated.Generation = want.Generation // asked back before it was granted
	}
	return &next
}

// SetResources asks for other resources, for good. next is given the pod as it
// is shown, and returns what it shall ask for, or why that cannot be. Asking for
// what is asked for already changes nothing.
func (s *State) SetResources(next func(shown *v1.Pod) (pod.Resources, error)) error {
	if err := s.open(); err != nil {
		return &pod.Error{Op: "resize pod", Kind: pod.Exhausted, Err: err}
	}
	shown := s.Shown().Pod
	want, err := next(shown)
	if err != nil {
		return err
	}
	have := pod.ResourcesOf(shown)
	if have.Same(want) {
		return nil
	}
	rs := s.resize()
	want.Generation = 0
	s.Record.Durable.Resize, s.Unsaved.Durable = askFor(rs, have, want), true
	return nil
}

// SetAllocation takes in the node's decision about the pod's resources.
func (s *State) SetAllocation(a pod.Allocation) {
	s.Allocation = &a
	if a.Granted {
		delete(s.Failures, pod.SlotResize) // other resources deserve a try at once
	}
}

// rememberResize records what was asked for, what the node has decided, and
// when all of it is in force. It comes before the record's spec is replaced.
func (d *decision) rememberResize() {
	dur := &d.rec.Durable
	rs := d.State.resize()
	if rs != dur.Resize {
		dur.Resize, d.unsaved.Durable = rs, true
	}
	if rs == nil || dur.Outcome != nil {
		return
	}
	ending := dur.Termination != nil || d.Desired.Termination != nil
	if a := d.Allocation; a != nil && !ending && a.Generation == rs.Desired.Generation && rs.Allocated.Generation != a.Generation {
		d.rememberAllocation(rs, *a)
	}
	if rs = dur.Resize; rs.Progress != nil && d.seen() && d.actuated() {
		next := *rs
		next.Progress = nil
		dur.Resize, d.unsaved.Durable = &next, true
		d.event(false, pod.EventResizeCompleted, "", "Pod resize completed: "+resizeText(d.pod, rs.Progress.Generation, ""))
	}
}

func (d *decision) rememberAllocation(rs *pod.Resize, a pod.Allocation) {
	next := *rs
	switch {
	case a.Granted:
		next.Allocated, next.Pending = rs.Desired, nil
		next.Progress = &pod.ResizeProgress{Generation: a.Generation, Since: d.Now}
	case rs.Pending != nil && rs.Pending.Reason == a.Pending.Reason && rs.Pending.Message == a.Pending.Message:
		return
	default:
		pending := a.Pending
		pending.Since = d.Now
		if rs.Pending != nil && rs.Pending.Reason == pending.Reason {
			pending.Since = rs.Pending.Since
		}
		next.Pending = &pending
	}
	d.rec.Durable.Resize, d.unsaved.Durable = &next, true
	d.State.Record.Durable.Resize = &next
	wanted := rs.Desired.Into(d.mergedPod())
	if !a.Granted {
		d.event(true, "Resize"+a.Pending.Reason, "", fmt.Sprintf("Pod resize %s: %s", a.Pending.Reason, resizeText(wanted, a.Generation, a.Pending.Message)))
		return
	}
	d.event(false, pod.EventResizeStarted, "", "Pod resize started: "+resizeText(wanted, a.Generation, ""))
	d.pod = d.grantedPod()
	for _, m := range d.members {
		if spec := containerOf(d.pod, m.name); spec != nil {
			m.spec = spec
		}
	}
}

func containerOf(p *v1.Pod, name pod.ContainerName) *v1.Container {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == string(name) {
				return &list[i]
			}
		}
	}
	return nil
}

// actuated says that nothing is left to do for what is allocated.
func (d *decision) actuated() bool {
	if d.rec.Boot.Actuated.Generation != d.rec.Durable.Resize.Allocated.Generation {
		return false
	}
	for _, m := range d.members {
		if m.running() && (d.resized(m) || d.busy(m.slot)) || d.awaitsSuccessor(m) {
			return false
		}
	}
	return true
}

// awaitsSuccessor says that m was stopped to be started with other resources,
// and that this has not happened yet.
func (d *decision) awaitsSuccessor(m *member) bool {
	return m.exited() && m.kind != pod.Ephemeral && d.rec.Boot.Stopping[m.last.ID].Reason == pod.ResizeRestart
}

// resizables are what can be changed while a container runs.
var resizables = []v1.ResourceName{v1.ResourceCPU, v1.ResourceMemory}

// resized says that m's running instance has other resources than it is to have.
func (d *decision) resized(m *member) bool {
	for _, name := range resizables {
		if d.differs(m, name) {
			return true
		}
	}
	return false
}

func (d *decision) differs(m *member, name v1.ResourceName) bool {
	if d.rec.Durable.Resize == nil || !m.known || m.kind == pod.Ephemeral || m.cur == nil {
		return false
	}
	have, ok := d.rec.Boot.Actuated.Of(m.cur)
	if !ok { // made before anybody wrote it down: by the spec
		if spec := containerOf(d.Desired.Pod, m.name); spec != nil {
			have = spec.Resources
		}
	}
	want := m.spec.Resources
	request, limit := want.Requests[name], want.Limits[name]
	return request.Cmp(have.Requests[name]) != 0 || limit.Cmp(have.Limits[name]) != 0
}

// restartsForResize says that m's running instance must be replaced, because a
// resource of it changes that it cannot take in while it runs.
func (d *decision) restartsForResize(m *member) bool {
	if m.kind == pod.Init || !m.running() {
		return false
	}
	for _, policy := range m.spec.ResizePolicy {
		if policy.RestartPolicy == v1.RestartContainer && d.differs(m, policy.ResourceName) {
			return true
		}
	}
	return false
}

// putInForce begins what brings the running pod to what is allocated. It waits
// for containers that are to be replaced: until they have ended they hold what
// they had.
func (d *decision) putInForce() {
	rs := d.rec.Durable.Resize
	if rs == nil || d.sandbox == nil || d.sandboxBusy() {
		return
	}
	due := rs.Progress != nil && d.rec.Boot.Actuated.Generation != rs.Allocated.Generation
	for _, m := range d.members {
		if a, ok := d.InFlight[m.slot]; ok && a.Op == pod.OpStartContainer || d.Stale[m.slot] || d.restartsForResize(m) {
			return
		}
		due = due || m.running() && d.resized(m)
	}
	if due {
		d.start(pod.Action{Slot: pod.SlotResize, Op: pod.OpResize, SandboxID: d.sandbox.ID, Generation: rs.Allocated.Generation})
	}
}

// foldResize notes what OpResize has put in force.
func (s *State) foldResize(r pod.Result) {
	if r.Actuated != nil {
		s.Record.Boot.Actuated, s.Unsaved.Boot = s.Record.Boot.Actuated.Merge(*r.Actuated), true
	}
}

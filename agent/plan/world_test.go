package plan

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

var epoch = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// world is a node in memory: it does what a plan says, on a clock of its own,
// fails where it is told to, and watches the laws that every plan must keep.
type world struct {
	now        time.Time
	state      State
	sandboxes  []pod.Sandbox
	containers []pod.Container
	mounted    bool
	disk       pod.Record // as saved
	plan       Plan
	log        []string
	// flight holds the actions in flight, in order of their start.
	flight   []pod.Action
	canceled map[pod.Slot]bool
	hold     map[string]bool // actions (see key) that do not end by themselves
	fails    map[string]*planned
	ids      int
	seen     *pod.Observed // the answer to the look in flight
	broken   []string
	lies     string           // the action that succeeds without effect
	counts   map[string]int32 // restart counts as last published
	pulls    map[string]int   // how often each image volume was tried
	phase    v1.PodPhase
	decided  int
	// deny is why the node grants no resize; zero: it grants all.
	deny pod.ResizePending
}

type planned struct {
	times int
	err   *pod.Error
}

func newWorld(d pod.Desired) *world {
	w := &world{now: epoch, canceled: map[pod.Slot]bool{}, hold: map[string]bool{}, fails: map[string]*planned{}, counts: map[string]int32{}, pulls: map[string]int{}}
	w.state = NewState(d, pod.Record{}, pod.Observed{}, testConfig())
	return w
}

func testConfig() Config { return Config{NodeName: "node", HostIPs: []string{"192.0.2.1"}} }

// key names an action in scripts: "start-container app", "create-sandbox".
func key(a pod.Action) string {
	return strings.TrimSpace(string(a.Op) + " " + string(a.Container) + a.Volume)
}

func (w *world) breaks(format string, args ...any) {
	w.broken = append(w.broken, fmt.Sprintf(format, args...))
}

func (w *world) logf(format string, args ...any) { w.log = append(w.log, fmt.Sprintf(format, args...)) }

// decide decides once and starts what was decided.
func (w *world) decide() int {
	w.state.Now = w.now
	w.decided++
	p := Decide(w.state)
	w.plan = p
	w.state.Record, w.state.Unsaved = p.Record, Parts{}
	w.disk = p.Record
	for _, e := range p.Events {
		w.event(e)
	}
	for _, slot := range p.Cancel {
		if _, ok := w.state.InFlight[slot]; ok && !w.canceled[slot] {
			w.canceled[slot] = true
			w.logf("cancel %s", slot)
		}
	}
	for _, a := range p.Start {
		w.begin(a)
	}
	w.watchStatus(p.Status)
	return len(p.Start) + w.allocate()
}

func (w *world) event(e pod.Event) {
	kind := "event"
	if e.Warning {
		kind = "warning"
	}
	w.logf("%s %s %s: %s", kind, e.Reason, e.Container, e.Message)
}

func (w *world) begin(a pod.Action) {
	w.watchStart(a)
	w.state.Begin(a)
	w.flight = append(w.flight, a)
	if a.Op == pod.OpObserve {
		w.seen = w.look() // the worst that may happen: the answer is as old as the question
		return
	}
	detail := ""
	switch a.Op {
	case pod.OpCreateSandbox, pod.OpStartContainer:
		detail = fmt.Sprintf(" attempt=%d", a.Attempt)
	case pod.OpStopContainer, pod.OpPreStop:
		detail = fmt.Sprintf(" grace=%v", a.Grace)
		if a.PreStop {
			detail += " hook"
		}
	}
	w.logf("start %s%s", key(a), detail)
}

// finish ends the i-th action in flight, with err or with its effect.
func (w *world) finish(i int, err *pod.Error) {
	a := w.flight[i]
	w.flight = slices.Delete(w.flight, i, i+1)
	if a.Op == pod.OpPullImage && a.Volume != "" {
		w.pulls[a.Volume]++
	}
	r := pod.Result{Action: a}
	switch {
	case w.canceled[a.Slot]:
		r.Err = &pod.Error{Op: string(a.Op), Kind: pod.Canceled, Err: errors.New("canceled")}
		if a.Op == pod.OpStartContainer && a.Attempt%2 == 0 {
			w.create(a, pod.Created) // canceled half-way
		}
	case err != nil:
		r.Err = err
		w.logf("failed %s: %v", key(a), err.Err)
	case key(a) != w.lies:
		w.effect(a, &r)
	}
	delete(w.canceled, a.Slot)
	for _, e := range w.state.Fold(r, w.now) {
		w.event(e)
	}
}

func (w *world) create(a pod.Action, s pod.ContainerState) {
	for i := range w.containers {
		if c := &w.containers[i]; c.Name == a.Container && c.Attempt == a.Attempt && c.SandboxID == a.SandboxID {
			if c.State == pod.Created {
				c.State, c.StartedAt = s, w.now
			}
			return
		}
	}
	w.ids++
	c := pod.Container{ID: pod.ContainerID(fmt.Sprintf("c%d", w.ids)), Name: a.Container, Attempt: a.Attempt, SandboxID: a.SandboxID, State: s, CreatedAt: w.now, Image: imageOf(w.state.mergedPod(), a.Container)}
	c.SpecHash = pod.SpecHash(&v1.Container{Name: string(a.Container), Image: c.Image})
	if s == pod.Running {
		c.StartedAt = w.now
	}
	c.Resources = w.created(a.Container)
	w.containers = append(w.containers, c)
}

func (w *world) effect(a pod.Action, r *pod.Result) {
	switch a.Op {
	case pod.OpObserve:
		r.Observed = w.seen
	case pod.OpMountVolumes:
		w.mounted = true
		r.Volumes, r.VolumesVersion = map[string]pod.Volume{}, a.Message
	case pod.OpUnmountVolumes:
		w.mounted = false
	case pod.OpPullImage:
		r.Image = pod.Image{Ref: "sha256:" + string(a.Container) + a.Volume}
	case pod.OpCreateSandbox:
		w.ids++
		host := w.state.Desired.Pod.Spec.HostNetwork
		s := pod.Sandbox{ID: pod.SandboxID(fmt.Sprintf("s%d", w.ids)), Attempt: a.Attempt, Ready: true, CreatedAt: w.now, HostNetwork: host}
		if !host {
			s.IPs = []string{fmt.Sprintf("10.0.0.%d", w.ids)}
		}
		w.sandboxes = append([]pod.Sandbox{s}, w.sandboxes...)
	case pod.OpStopSandbox:
		w.dropSandbox(a.SandboxID, false)
	case pod.OpRemoveSandbox:
		w.dropSandbox(a.SandboxID, true)
	case pod.OpResize:
		r.Actuated = w.actuate(a)
	case pod.OpStartContainer:
		w.create(a, pod.Running)
	case pod.OpStopContainer:
		w.exit(a.ContainerID, 143)
	case pod.OpRemoveContainer:
		w.containers = slices.DeleteFunc(w.containers, func(c pod.Container) bool { return c.ID == a.ContainerID })
	}
}

func (w *world) dropSandbox(id pod.SandboxID, gone bool) {
	for i := range w.sandboxes {
		if w.sandboxes[i].ID == id {
			w.sandboxes[i].Ready = false
		}
	}
	for _, c := range w.containers {
		if c.SandboxID == id {
			w.exit(c.ID, 137)
		}
	}
	if gone {
		w.sandboxes = slices.DeleteFunc(w.sandboxes, func(s pod.Sandbox) bool { return s.ID == id })
		w.containers = slices.DeleteFunc(w.containers, func(c pod.Container) bool { return c.SandboxID == id })
	}
}

func (w *world) exit(id pod.ContainerID, code int32) {
	for i := range w.containers {
		if c := &w.containers[i]; c.ID == id && alive(c) {
			c.State, c.ExitCode, c.FinishedAt = pod.Exited, code, w.now
		}
	}
}

func (w *world) look() *pod.Observed {
	o := &pod.Observed{At: w.now, Sandboxes: slices.Clone(w.sandboxes), Containers: slices.Clone(w.containers), Dirty: w.mounted}
	sort.SliceStable(o.Containers, func(i, j int) bool { return o.Containers[i].Attempt > o.Containers[j].Attempt })
	return o
}

// running finds the running instance of a name.
func (w *world) running(name pod.ContainerName) *pod.Container {
	for i := range w.containers {
		if c := &w.containers[i]; c.Name == name && alive(c) {
			return c
		}
	}
	return nil
}

// settle decides and lets everything in flight end, except what is held, until
// nothing more happens at this instant.
func (w *world) settle() {
	for range 500 {
		n := w.decide()
		i := slices.IndexFunc(w.flight, func(a pod.Action) bool { return w.canceled[a.Slot] || !w.hold[key(a)] })
		if i >= 0 {
			w.finish(i, w.planned(w.flight[i]))
			continue
		}
		if n == 0 {
			return
		}
	}
	w.breaks("busy loop: still acting after 500 rounds at one instant")
}

func (w *world) planned(a pod.Action) *pod.Error {
	f := w.fails[key(a)]
	if f == nil || f.times == 0 || w.canceled[a.Slot] {
		return nil
	}
	f.times--
	return f.err
}

// advance lets time pass, waking where plans ask for it.
func (w *world) advance(by time.Duration) {
	end := w.now.Add(by)
	for range 2000 {
		w.settle()
		if w.plan.Wake.IsZero() || w.plan.Wake.After(end) {
			w.now = end
			w.settle()
			return
		}
		if !w.plan.Wake.After(w.now) {
			w.breaks("wake %v is not in the future of %v", w.plan.Wake, w.now)
			return
		}
		w.now = w.plan.Wake
	}
	w.breaks("more than 2000 wakes in %v", by)
}

// restartAgent forgets what is in memory only; actions in flight end as they may.
func (w *world) restartAgent() {
	w.flight, w.canceled = nil, map[pod.Slot]bool{}
	d := w.state.Desired
	w.state = NewState(d, w.disk, *w.look(), testConfig())
}

// reboot also loses sandboxes, containers, mounts and the boot-scoped record.
func (w *world) reboot() {
	w.sandboxes, w.containers, w.mounted = nil, nil, false
	w.disk.Boot = pod.Boot{}
	w.restartAgent()
}

// keys are the sorted keys of a map.
func keys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

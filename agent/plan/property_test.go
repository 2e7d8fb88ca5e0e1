package plan

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"

	"github.com/berthd/berth/agent/pod"
)

// TestProperty throws random events at random pods and watches the laws (see
// world). Then the world becomes perfect: every pod that should run must run,
// every pod that should end must be gone, and then nothing may happen any more.
func TestProperty(t *testing.T) {
	for i := range 5 {
		t.Run(fmt.Sprint(i), func(t *testing.T) { rapid.Check(t, property) })
	}
}

func property(t *rapid.T) {
	w := newWorld(pod.Desired{Pod: drawPod(t)})
	for range rapid.IntRange(5, 60).Draw(t, "steps") {
		chaos(t, w)
		check(t, w)
		idempotent(t, w)
	}
	peace(t, w)
}

func check(t *rapid.T, w *world) {
	if len(w.broken) > 0 {
		t.Fatalf("%s\nlog:\n%s", strings.Join(w.broken, "\n"), strings.Join(w.log, "\n"))
	}
}

func drawPod(t *rapid.T) *v1.Pod {
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", "p", "u"
	p.Spec.RestartPolicy = rapid.SampledFrom([]v1.RestartPolicy{v1.RestartPolicyAlways, v1.RestartPolicyOnFailure, v1.RestartPolicyNever}).Draw(t, "policy")
	p.Spec.HostNetwork = rapid.Bool().Draw(t, "hostNetwork")
	grace := int64(rapid.IntRange(0, 40).Draw(t, "grace"))
	p.Spec.TerminationGracePeriodSeconds = &grace
	if rapid.IntRange(0, 5).Draw(t, "deadline") == 0 {
		s := int64(rapid.IntRange(1, 100).Draw(t, "activeDeadlineSeconds"))
		p.Spec.ActiveDeadlineSeconds = &s
	}
	for i := range rapid.IntRange(0, 3).Draw(t, "inits") {
		c := drawContainer(t, fmt.Sprintf("i%d", i))
		if rapid.Bool().Draw(t, "sidecar") {
			always := v1.ContainerRestartPolicyAlways
			c.RestartPolicy = &always
		} else {
			c.StartupProbe, c.LivenessProbe, c.ReadinessProbe, c.Lifecycle = nil, nil, nil, nil
		}
		p.Spec.InitContainers = append(p.Spec.InitContainers, c)
	}
	for i := range rapid.IntRange(1, 2).Draw(t, "mains") {
		c := drawContainer(t, fmt.Sprintf("m%d", i))
		if rapid.IntRange(0, 3).Draw(t, "image volume") == 0 {
			p.Spec.Volumes = []v1.Volume{{Name: "image", VolumeSource: v1.VolumeSource{Image: &v1.ImageVolumeSource{Reference: "data"}}}}
			c.VolumeMounts = []v1.VolumeMount{{Name: "image"}}
		}
		p.Spec.Containers = append(p.Spec.Containers, c)
	}
	for i := range p.Spec.InitContainers {
		drawRules(t, &p.Spec.InitContainers[i])
	}
	for i := range p.Spec.Containers {
		drawRules(t, &p.Spec.Containers[i])
	}
	if rapid.IntRange(0, 5).Draw(t, "gate") == 0 {
		p.Spec.ReadinessGates = []v1.PodReadinessGate{{ConditionType: "gate"}}
	}
	return p
}

// drawRules gives some containers a policy of their own, and rules for exit code 42.
func drawRules(t *rapid.T, c *v1.Container) {
	if rapid.IntRange(0, 2).Draw(t, "rules") > 0 {
		return
	}
	if !isSidecar(c) {
		policy := rapid.SampledFrom([]v1.ContainerRestartPolicy{v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyOnFailure}).Draw(t, "own policy")
		c.RestartPolicy = &policy
	}
	action := rapid.SampledFrom([]v1.ContainerRestartRuleAction{v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers}).Draw(t, "action")
	c.RestartPolicyRules = []v1.ContainerRestartRule{{Action: action, ExitCodes: &v1.ContainerRestartRuleOnExitCodes{
		Operator: v1.ContainerRestartRuleOnExitCodesOpIn, Values: []int32{42},
	}}}
}

func drawContainer(t *rapid.T, name string) v1.Container {
	c := v1.Container{Name: name, Image: "img"}
	probe := &v1.Probe{ProbeHandler: v1.ProbeHandler{TCPSocket: &v1.TCPSocketAction{}}}
	bits := rapid.IntRange(0, 63).Draw(t, "features")
	if bits&1 != 0 {
		c.StartupProbe = probe
	}
	if bits&2 != 0 {
		c.LivenessProbe = probe
	}
	if bits&4 != 0 {
		c.ReadinessProbe = probe
	}
	hook := &v1.LifecycleHandler{Exec: &v1.ExecAction{Command: []string{"x"}}}
	if bits&24 != 0 {
		c.Lifecycle = &v1.Lifecycle{}
		if bits&8 != 0 {
			c.Lifecycle.PostStart = hook
		}
		if bits&16 != 0 {
			c.Lifecycle.PreStop = hook
		}
	}
	if bits&32 != 0 {
		c.ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: v1.RestartContainer}}
	}
	return c
}

// chaos lets one thing happen.
func chaos(t *rapid.T, w *world) {
	hint := rapid.IntRange(0, 3).Draw(t, "hinted") != 0 // else the event is lost
	desired := w.state.Desired
	switch rapid.IntRange(0, 17).Draw(t, "event") {
	case 16, 17:
		amendAny(t, w)
	case 0, 1, 2, 3, 4, 5: // an action ends
		w.decide()
		if len(w.flight) == 0 {
			return
		}
		i := rapid.IntRange(0, len(w.flight)-1).Draw(t, "which")
		var err *pod.Error
		if rapid.IntRange(0, 4).Draw(t, "fails") == 0 {
			err = &pod.Error{Kind: rapid.SampledFrom([]pod.Kind{pod.Unavailable, pod.Invalid, pod.Timeout, pod.Internal}).Draw(t, "kind"), Err: errors.New("chaos")}
			if a := w.flight[i]; a.Op == pod.OpStartContainer && rapid.Bool().Draw(t, "half") {
				w.create(a, pod.Created)
			}
		}
		w.finish(i, err)
	case 6, 7:
		w.decide()
		w.now = w.now.Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "seconds")) * time.Second)
	case 8, 9:
		if c := drawRunning(t, w); c != nil {
			w.exit(c.ID, rapid.SampledFrom([]int32{0, 1, 42}).Draw(t, "code"))
		}
	case 10, 11:
		if c := drawRunning(t, w); c != nil {
			kind := rapid.SampledFrom([]pod.ProbeKind{pod.Startup, pod.Liveness, pod.Readiness}).Draw(t, "probe")
			verdict := rapid.SampledFrom([]pod.Verdict{pod.Success, pod.Success, pod.Failed}).Draw(t, "verdict")
			w.state.SetVerdict(pod.ProbeVerdict{Container: c.ID, Kind: kind, Verdict: verdict, At: w.now})
		}
	case 12:
		if len(w.sandboxes) > 0 {
			w.sandboxes[0].Ready = false
		}
	case 13:
		if c := drawRunning(t, w); c != nil {
			w.state.Desired.Inputs.Version += "x"
			w.running(c.Name).State = rapid.SampledFrom([]pod.ContainerState{pod.Running, pod.Unknown}).Draw(t, "state")
		}
	case 14:
		if rapid.IntRange(0, 4).Draw(t, "reboot") == 0 {
			w.reboot()
		} else {
			w.restartAgent()
		}
	case 15:
		if rapid.IntRange(0, 3).Draw(t, "really") == 0 {
			g := time.Duration(rapid.IntRange(0, 20).Draw(t, "override")) * time.Second
			desired.Termination = &pod.Termination{Requested: w.now, Grace: &g}
			w.state.SetDesired(desired)
		}
	}
	w.state.Look = w.state.Look || hint
	w.decide()
}

// amendAny changes something from outside the manifest; it is refused when the
// pod has ended, or has a container of that name already.
func amendAny(t *rapid.T, w *world) {
	if rapid.IntRange(0, 2).Draw(t, "resized") == 0 {
		resizeAny(t, w)
		return
	}
	if rapid.Bool().Draw(t, "ephemeral") {
		c := v1.EphemeralContainer{}
		c.Name, c.Image = fmt.Sprintf("e%d", rapid.IntRange(0, 3).Draw(t, "name")), "img"
		_ = w.state.AddEphemeral(c, nil)
		return
	}
	status := rapid.SampledFrom([]v1.ConditionStatus{v1.ConditionTrue, v1.ConditionFalse}).Draw(t, "gate status")
	_ = w.state.SetCondition(v1.PodCondition{Type: "gate", Status: status}, w.now)
}

func drawRunning(t *rapid.T, w *world) *pod.Container {
	var running []*pod.Container
	for i := range w.containers {
		if alive(&w.containers[i]) {
			running = append(running, &w.containers[i])
		}
	}
	if len(running) == 0 {
		return nil
	}
	return rapid.SampledFrom(running).Draw(t, "container")
}

// idempotent checks that deciding again about the same facts starts nothing new.
func idempotent(t *rapid.T, w *world) {
	w.decide()
	w.decide() // the node may have answered the first
	before := len(w.flight)
	s := w.state
	s.Now = w.now
	first, second := Decide(s), Decide(s)
	if !reflect.DeepEqual(first, second) {
		t.Fatalf("two decisions about one state differ: %+v, %+v", first.Explanation, second.Explanation)
	}
	if len(first.Start) > 0 || len(first.Events) > 0 {
		t.Fatalf("deciding again starts %v and tells %v beside %d actions in flight", first.Start, first.Events, before)
	}
	if first.Unsaved != (Parts{}) {
		t.Fatalf("deciding again changes the record")
	}
}

// peace makes the world perfect and sees where the pod comes to rest.
func peace(t *rapid.T, w *world) {
	w.hold, w.fails, w.deny = map[string]bool{}, map[string]*planned{}, pod.ResizePending{}
	for i := range w.containers {
		if w.containers[i].State == pod.Unknown {
			w.containers[i].State = pod.Running
		}
	}
	w.state.Look = true
	for range 40 {
		w.advance(5 * time.Minute)
		check(t, w)
		benign(w)
		if rests(w) {
			break
		}
	}
	if !rests(w) {
		t.Fatalf("no rest: phase %s, why %+v\nlog:\n%s", w.plan.Status.Phase, w.plan.Explanation, tail(w.log))
	}
	running := w.plan.Status.Phase == v1.PodRunning
	ended := w.disk.Durable.Outcome != nil
	if running == ended {
		t.Fatalf("rests in phase %s with outcome %v: %+v\nlog:\n%s", w.plan.Status.Phase, ended, w.plan.Explanation, tail(w.log))
	}
	if running {
		wellRun(t, w)
	}
	remove(t, w)
}

func wellRun(t *rapid.T, w *world) {
	for _, cs := range w.plan.Status.ContainerStatuses {
		if cs.State.Running == nil && cs.State.Terminated == nil {
			t.Fatalf("container %s is not running at rest: %+v\nlog:\n%s", cs.Name, cs.State, tail(w.log))
		}
		i := slices.IndexFunc(w.state.Desired.Pod.Spec.Containers, func(c v1.Container) bool { return c.Name == cs.Name })
		own := w.state.Desired.Pod.Spec.Containers[i].RestartPolicy
		if w.running(pod.ContainerName(cs.Name)) == nil && own == nil && w.state.Desired.Pod.Spec.RestartPolicy == v1.RestartPolicyAlways {
			t.Fatalf("container %s, always to be restarted, does not run at rest", cs.Name)
		}
	}
	if w.disk.Durable.Reset != nil {
		t.Fatalf("a reset is not over at rest: %+v", w.disk.Durable.Reset)
	}
	wellResized(t, w)
	if len(w.sandboxes) != 1 {
		t.Fatalf("%d sandboxes at rest", len(w.sandboxes))
	}
	per := map[pod.ContainerName]int{}
	for _, c := range w.containers {
		if per[c.Name]++; per[c.Name] > 2 {
			t.Fatalf("more than two instances of %s are kept", c.Name)
		}
	}
}

// remove has the pod forgotten, and expects nothing to be left of it.
func remove(t *rapid.T, w *world) {
	d := w.state.Desired
	d.Forget, d.Termination = true, &pod.Termination{Requested: w.now}
	w.state.SetDesired(d)
	w.advance(time.Hour)
	check(t, w)
	if !w.plan.Done {
		t.Fatalf("forgotten, but not done: %+v\nlog:\n%s", w.plan.Explanation, tail(w.log))
	}
	if len(w.sandboxes)+len(w.containers) > 0 || w.mounted {
		t.Fatalf("done, but %d sandboxes, %d containers, mounted=%v are left", len(w.sandboxes), len(w.containers), w.mounted)
	}
}

// benign lets init containers succeed and probes answer well.
func benign(w *world) {
	spec := &w.state.Desired.Pod.Spec
	for _, c := range spec.InitContainers {
		if r := w.running(pod.ContainerName(c.Name)); r != nil && !isSidecar(&c) {
			w.exit(r.ID, 0)
		}
	}
	for i := range w.containers {
		c := &w.containers[i]
		if !alive(c) {
			continue
		}
		for _, k := range []pod.ProbeKind{pod.Startup, pod.Liveness, pod.Readiness} {
			if w.state.Record.Boot.Verdicts[c.ID][k].Verdict != pod.Success {
				w.state.SetVerdict(pod.ProbeVerdict{Container: c.ID, Kind: k, Verdict: pod.Success, At: w.now})
			}
		}
	}
	if len(spec.ReadinessGates) > 0 {
		_ = w.state.SetCondition(v1.PodCondition{Type: "gate", Status: v1.ConditionTrue}, w.now) // refused when the pod has ended
	}
	w.state.Look = true
	w.settle()
}

// rests says that nothing more will happen by itself.
func rests(w *world) bool {
	if w.disk.Durable.Outcome != nil {
		return len(w.flight) == 0 && w.plan.Wake.IsZero()
	}
	for _, c := range w.plan.Status.Conditions {
		if c.Type == v1.PodReady && c.Status == v1.ConditionTrue {
			return len(w.flight) == 0
		}
	}
	done := w.plan.Status.Phase == v1.PodRunning && len(w.flight) == 0 && w.plan.Wake.IsZero()
	for _, cs := range w.plan.Status.ContainerStatuses {
		done = done && (cs.Ready || cs.State.Terminated != nil)
	}
	return done
}

func tail(log []string) string { return strings.Join(log[max(0, len(log)-60):], "\n") }

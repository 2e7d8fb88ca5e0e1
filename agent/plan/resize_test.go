package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"pgregory.net/rapid"

	"github.com/berthd/berth/agent/pod"
)

// allocate is the node: it grants every resize, or none. It says how many
// decisions it has told the worker, who then decides anew.
func (w *world) allocate() int {
	rs := w.disk.Durable.Resize
	if !rs.Undecided() {
		return 0
	}
	a := pod.Allocation{Generation: rs.Desired.Generation, Granted: w.deny.Reason == "", Pending: w.deny}
	if !a.Granted && rs.Pending != nil && rs.Pending.Reason == a.Pending.Reason {
		return 0
	}
	if last := w.state.Allocation; last != nil && *last == a {
		return 0
	}
	w.state.SetAllocation(a)
	return 1
}

// created are the resources that a container is made with.
func (w *world) created(name pod.ContainerName) *v1.ResourceRequirements {
	if c := containerOf(w.state.Granted().Pod, name); c != nil {
		return c.Resources.DeepCopy()
	}
	return nil
}

func (w *world) actuate(a pod.Action) *pod.Actuated {
	p := w.state.Granted().Pod
	done := &pod.Actuated{Generation: a.Generation, Pod: p.Spec.Resources, Containers: map[pod.ContainerID]v1.ResourceRequirements{}}
	for _, c := range w.containers {
		if spec := containerOf(p, c.Name); spec != nil && c.State == pod.Running {
			done.Containers[c.ID] = spec.Resources
		}
	}
	return done
}

// TestGoldenResize plays the scripts in testdata/resize. Beyond TestGolden's commands:
//
//	resize [CONTAINER] [requests=(cpu=R,memory=R)] [limits=(...)]  no container: the pod's own
//	deny REASON msg=M | grant
//	resources
func TestGoldenResize(t *testing.T) {
	datadriven.Walk(t, "testdata/resize", func(t *testing.T, path string) {
		var w *world
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "pod" {
				w = newWorld(pod.Desired{Pod: parsePod(t, d.Input)})
				return ""
			}
			w.log = nil
			switch d.Cmd {
			case "resize":
				playResize(t, w, d)
			case "deny":
				w.deny = pod.ResizePending{Reason: pod.Reason(words(d)[0]), Message: arg(d, "msg")}
			case "grant":
				w.deny = pod.ResizePending{}
				w.settle()
			case "resources":
				describeResources(w)
			default:
				play(t, w, d)
			}
			if len(w.broken) > 0 {
				t.Fatalf("%s: %s", d.Pos, strings.Join(w.broken, "\n"))
			}
			if len(w.log) == 0 {
				return "ok"
			}
			return strings.Join(w.log, "\n")
		})
	})
}

func quantities(text string) v1.ResourceList {
	out := v1.ResourceList{}
	for _, one := range strings.FieldsFunc(text, func(r rune) bool { return r == ',' }) {
		name, q, _ := strings.Cut(one, "=")
		out[v1.ResourceName(name)] = resource.MustParse(q)
	}
	return out
}

func playResize(t *testing.T, w *world, d *datadriven.TestData) {
	t.Helper()
	err := w.state.SetResources(func(p *v1.Pod) (pod.Resources, error) {
		want := pod.ResourcesOf(p)
		r := v1.ResourceRequirements{}
		if want.Pod != nil {
			r = *want.Pod.DeepCopy()
		}
		name := pod.ContainerName("")
		if args := words(d); len(args) > 0 {
			name = pod.ContainerName(args[0])
			had := want.Containers[name]
			r = *had.DeepCopy()
		}
		for kind, list := range map[string]*v1.ResourceList{"requests": &r.Requests, "limits": &r.Limits} {
			if *list == nil {
				*list = v1.ResourceList{}
			}
			for k, q := range quantities(arg(d, kind)) {
				(*list)[k] = q
			}
		}
		if name == "" {
			want.Pod = &r
		} else {
			want.Containers[name] = r
		}
		return want, nil
	})
	if err != nil {
		w.logf("error: %v", err)
	}
	w.settle()
}

func describeResources(w *world) {
	st := w.plan.Status
	shown := w.state.Shown().Pod
	w.logf("generation %d observed %d", shown.Generation, st.ObservedGeneration)
	if st.Resources != nil {
		w.logf("pod: %s allocated %s", listText(st.Resources), quantityText(st.AllocatedResources))
	}
	for _, cs := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses) {
		spec := containerOf(shown, pod.ContainerName(cs.Name))
		actual := "none"
		if cs.Resources != nil {
			actual = listText(cs.Resources)
		}
		w.logf("%s: desired %s, allocated %s, actual %s, restarts=%d", cs.Name, listText(&spec.Resources), quantityText(cs.AllocatedResources), actual, cs.RestartCount)
	}
	if held := w.state.Held(); held != nil {
		var all []string
		for _, c := range held.Spec.Containers {
			all = append(all, c.Name+" "+quantityText(c.Resources.Requests))
		}
		w.logf("held: %s", strings.Join(all, ", "))
	}
	for _, c := range st.Conditions {
		if c.Type == v1.PodResizePending || c.Type == v1.PodResizeInProgress {
			w.logf("%s %s generation=%d since +%v %s", c.Type, c.Reason, c.ObservedGeneration, c.LastTransitionTime.Sub(epoch), c.Message)
		}
	}
	e := w.plan.Explanation
	w.logf("why: well=%v %s %s %s", e.Well, e.Reason, e.Cause, e.Next)
}

func quantityText(l v1.ResourceList) string {
	var out []string
	for _, name := range resizables {
		if q, ok := l[name]; ok {
			out = append(out, fmt.Sprintf("%s=%s", name, q.String()))
		}
	}
	return strings.Join(out, ",")
}

func listText(r *v1.ResourceRequirements) string {
	return fmt.Sprintf("(%s; %s)", quantityText(r.Requests), quantityText(r.Limits))
}

// resizeAny asks for other resources for some container, on a node that may have
// no room for them.
func resizeAny(t *rapid.T, w *world) {
	w.deny = rapid.SampledFrom([]pod.ResizePending{{}, {}, {Reason: pod.ResizeDeferred, Message: "no room"}, {Reason: pod.ResizeInfeasible, Message: "never"}}).Draw(t, "node")
	name := rapid.SampledFrom(w.members()).Draw(t, "resized container")
	q := quantities(fmt.Sprintf("memory=%dMi,cpu=%dm", rapid.IntRange(1, 3).Draw(t, "memory"), rapid.IntRange(1, 3).Draw(t, "cpu")))
	_ = w.state.SetResources(func(shown *v1.Pod) (pod.Resources, error) { // refused when the pod has ended
		want := pod.ResourcesOf(shown)
		want.Containers[name] = v1.ResourceRequirements{Requests: q}
		return want, nil
	})
}

func (w *world) members() (names []pod.ContainerName) {
	spec := &w.state.Desired.Pod.Spec
	for _, c := range slices.Concat(spec.InitContainers, spec.Containers) {
		names = append(names, pod.ContainerName(c.Name))
	}
	return names
}

// wellResized checks that at rest every resize that can be granted is in force.
func wellResized(t *rapid.T, w *world) {
	rs := w.disk.Durable.Resize
	if rs == nil {
		return
	}
	if rs.Progress != nil || rs.Undecided() {
		t.Fatalf("a resize is not over at rest: %+v\nlog:\n%s", rs, tail(w.log))
	}
	granted := w.state.Granted().Pod
	for i := range w.containers {
		c := &w.containers[i]
		want := containerOf(granted, c.Name)
		if have, ok := w.disk.Boot.Actuated.Of(c); alive(c) && want != nil && (!ok || quantityText(have.Requests) != quantityText(want.Resources.Requests)) {
			t.Fatalf("%s runs with %s at rest, not with %s\nlog:\n%s", c.Name, quantityText(have.Requests), quantityText(want.Resources.Requests), tail(w.log))
		}
	}
}

// TestActualResources: what the runtime rounds is shown as it was asked for.
func TestActualResources(t *testing.T) {
	for _, tt := range []struct {
		asked  string
		limits pod.Limits
		want   string
	}{
		{"cpu=1m,memory=1Mi", pod.Limits{CPUShares: 2, CPUQuota: 1000, CPUPeriod: 100000, Memory: 1 << 20}, "(cpu=1m,memory=1Mi; cpu=1m,memory=1Mi)"},
		{"cpu=5m,memory=1Mi", pod.Limits{CPUShares: 5, CPUQuota: 1000, CPUPeriod: 100000, Memory: 1 << 20}, "(cpu=5m,memory=1Mi; cpu=5m,memory=1Mi)"},
		{"cpu=333m,memory=64Mi", pod.Limits{CPUShares: 340, CPUQuota: 33300, CPUPeriod: 100000, Memory: 64 << 20}, "(cpu=333m,memory=64Mi; cpu=333m,memory=64Mi)"},
		{"cpu=500m,memory=64Mi", pod.Limits{CPUShares: 102, CPUQuota: 20000, CPUPeriod: 100000, Memory: 32 << 20}, "(cpu=100m,memory=64Mi; cpu=200m,memory=32Mi)"},
	} {
		p := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "a", Resources: v1.ResourceRequirements{Requests: quantities(tt.asked), Limits: quantities(tt.asked)}}}}}
		d := newDecision(NewState(pod.Desired{Pod: p}, pod.Record{}, pod.Observed{}, testConfig()))
		d.members[0].cur = &pod.Container{ID: "1", Name: "a", State: pod.Running, Limits: &tt.limits}
		if got := listText(d.actualResources(d.members[0])); got != tt.want {
			t.Errorf("%s under %+v: %s, want %s", tt.asked, tt.limits, got, tt.want)
		}
	}
}

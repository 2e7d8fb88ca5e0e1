package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// TestLyingRuntime: a runtime that reports success and does nothing is asked
// again ever more slowly, never in a loop.
func TestLyingRuntime(t *testing.T) {
	for _, op := range []string{"create-sandbox", "start-container app", "stop-container app", "remove-sandbox"} {
		w := newWorld(pod.Desired{Pod: parsePod(t, "containers: [{name: app, image: img}]")})
		w.lies = op
		w.settle()
		if op == "stop-container app" || op == "remove-sandbox" {
			d := w.state.Desired
			d.Forget, d.Termination = true, &pod.Termination{Requested: w.now}
			w.state.SetDesired(d)
		}
		w.decided = 0
		w.advance(10 * time.Minute)
		if len(w.broken) > 0 {
			t.Errorf("%s: %v", op, w.broken)
		}
		if w.decided > 200 {
			t.Errorf("%s: %d decisions in ten minutes", op, w.decided)
		}
		if w.plan.Wake.IsZero() {
			t.Errorf("%s: given up: %+v", op, w.plan.Explanation)
		}
	}
}

// TestOrphan: of a pod whose spec is not known everything is stopped and removed.
func TestOrphan(t *testing.T) {
	w := newWorld(pod.Desired{Pod: parsePod(t, "terminationGracePeriodSeconds: 1"), Forget: true, Termination: &pod.Termination{Requested: epoch}})
	w.sandboxes = []pod.Sandbox{{ID: "s", Ready: true, IPs: []string{"10.0.0.1"}}}
	w.containers = []pod.Container{{ID: "c", Name: "x", SandboxID: "s", State: pod.Running}}
	w.mounted = true
	w.settle()
	if !w.plan.Done || len(w.sandboxes)+len(w.containers) > 0 || w.mounted {
		t.Fatalf("done=%v, left: %v %v %v, %+v", w.plan.Done, w.sandboxes, w.containers, w.mounted, w.plan.Explanation)
	}
}

// TestHungObserve: without an answer from the runtime a known container is still stopped.
func TestHungObserve(t *testing.T) {
	w := newWorld(pod.Desired{Pod: parsePod(t, "containers: [{name: app, image: img}]")})
	w.settle()
	w.hold["observe"] = true
	w.state.Look = true
	w.settle()
	d := w.state.Desired
	d.Termination = &pod.Termination{Requested: w.now}
	w.state.SetDesired(d)
	w.settle()
	if w.running("app") != nil {
		t.Fatalf("the container runs on: %v", w.log)
	}
}

// TestDuplicate: of two ready sandboxes the older goes, with its containers.
func TestDuplicate(t *testing.T) {
	w := newWorld(pod.Desired{Pod: parsePod(t, "containers: [{name: app, image: img}]")})
	w.sandboxes = []pod.Sandbox{{ID: "new", Attempt: 1, Ready: true, IPs: []string{"10.0.0.2"}}, {ID: "old", Ready: true, IPs: []string{"10.0.0.1"}}}
	w.containers = []pod.Container{{ID: "c0", Name: "app", SandboxID: "old", State: pod.Running}}
	w.fails["stop-container app"] = &planned{3, &pod.Error{Err: errors.New("busy")}}
	w.advance(time.Minute)
	if len(w.broken) > 0 {
		t.Fatal(w.broken)
	}
	if len(w.sandboxes) != 1 || w.sandboxes[0].ID != "new" || w.running("app") == nil || w.running("app").Attempt != 1 {
		t.Fatalf("sandboxes %v, containers %v", w.sandboxes, w.containers)
	}
}

// TestNoFinishTime: a runtime that tells no time of exit, or a wrong one, makes
// neither a hot loop nor an endless wait.
func TestNoFinishTime(t *testing.T) {
	for _, at := range []time.Time{{}, epoch.Add(1000 * time.Hour)} {
		w := newWorld(pod.Desired{Pod: parsePod(t, "containers: [{name: app, image: img}]")})
		w.settle()
		for range 2 {
			c := w.running("app")
			w.exit(c.ID, 1)
			c.FinishedAt = at
			w.state.Look = true
			w.settle()
		}
		if want := epoch.Add(10 * time.Second); !w.plan.Wake.Equal(want) {
			t.Errorf("finished at %v: next start at %v, want %v", at, w.plan.Wake, want)
		}
	}
}

func TestFail(t *testing.T) {
	for _, c := range []struct {
		op   pod.Op
		kind pod.Kind
		want []time.Duration
	}{
		{pod.OpPullImage, pod.Unavailable, []time.Duration{10, 20, 40, 80, 160, 300, 300}},
		{pod.OpCreateSandbox, pod.Exhausted, []time.Duration{1, 2, 4, 8, 16, 32, 60, 60}},
		{pod.OpMountVolumes, pod.Invalid, []time.Duration{10, 20, 40, 60}},
		{pod.OpObserve, pod.Timeout, []time.Duration{1, 2, 4, 8, 10, 10}},
	} {
		f := pod.Failure{}
		now := epoch
		for i, want := range c.want {
			f = Fail(f, pod.Result{Action: pod.Action{Op: c.op}, Err: &pod.Error{Kind: c.kind, Err: errors.New("x")}}, now)
			if got := f.NotBefore.Sub(now); got != want*time.Second || f.Count != i+1 || !f.First.Equal(epoch) {
				t.Errorf("%s failure %d: waits %v, want %vs; %+v", c.op, i+1, got, int(want), f)
			}
			now = f.NotBefore
		}
	}
}

func TestQoS(t *testing.T) {
	for spec, want := range map[string]v1.PodQOSClass{
		"containers: [{name: a}]":                                                        v1.PodQOSBestEffort,
		"containers: [{name: a, resources: {requests: {cpu: 1}}}]":                       v1.PodQOSBurstable,
		"containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}]":            v1.PodQOSGuaranteed,
		"containers: [{name: a, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: b}]": v1.PodQOSBurstable,
	} {
		if got := pod.QOSClass(parsePod(t, spec)); got != want {
			t.Errorf("%s: %s, want %s", spec, got, want)
		}
	}
}

// BenchmarkDecide is one decision about a pod at rest, the common case.
func BenchmarkDecide(b *testing.B) {
	spec := `
initContainers: [{name: i, image: img}]
containers: [{name: app, image: img, livenessProbe: {tcpSocket: {port: 1}}}, {name: side, image: img}]`
	w := newWorld(pod.Desired{Pod: parsePod(b, spec)})
	w.settle()
	w.exit(w.running("i").ID, 0)
	w.state.Look = true
	w.settle()
	if w.plan.Status.Phase != v1.PodRunning {
		b.Fatal(fmt.Sprint(w.plan.Status))
	}
	s := w.state
	s.Now = w.now
	b.ReportAllocs()
	for b.Loop() {
		Decide(s)
	}
}

// TestOrderedIPs: one address of each family, the node's own family first.
func TestOrderedIPs(t *testing.T) {
	for _, c := range []struct{ ips, host, want []string }{
		{[]string{"10.0.0.1"}, nil, []string{"10.0.0.1"}},
		{[]string{"fd00::1", "10.0.0.1"}, nil, []string{"10.0.0.1", "fd00::1"}},
		{[]string{"10.0.0.1", "fd00::1", "10.0.0.2"}, []string{"2001:db8::1", "192.0.2.1"}, []string{"fd00::1", "10.0.0.1"}},
		{[]string{"fd00::1"}, []string{"192.0.2.1"}, []string{"fd00::1"}},
		{nil, []string{"192.0.2.1"}, nil},
	} {
		if got := orderedIPs(c.ips, c.host); !slices.Equal(got, c.want) {
			t.Errorf("%v on a node with %v: %v, want %v", c.ips, c.host, got, c.want)
		}
	}
}

// TestHostNetworkIPs: a pod of the host's network keeps the address it has, and
// gains the one of a family that the node has come to have.
func TestHostNetworkIPs(t *testing.T) {
	w := newWorld(pod.Desired{Pod: parsePod(t, "{hostNetwork: true, containers: [{name: app, image: img}]}")})
	w.settle()
	w.state.Config.HostIPs = []string{"192.0.2.9", "2001:db8::9"}
	w.state.Look = true
	w.settle()
	st := w.plan.Status
	if st.HostIP != "192.0.2.9" || st.PodIP != "192.0.2.1" || len(st.PodIPs) != 2 || st.PodIPs[1].IP != "2001:db8::9" {
		t.Errorf("host %s %v, pod %s %v", st.HostIP, st.HostIPs, st.PodIP, st.PodIPs)
	}
}

// TestMessageBudget: the last words of all containers fit into a status together.
func TestMessageBudget(t *testing.T) {
	w := newWorld(pod.Desired{Pod: parsePod(t, "{restartPolicy: Never, initContainers: [{name: i, image: img}], containers: [{name: a, image: img}, {name: b, image: img}]}")})
	w.settle()
	w.exit(w.running("i").ID, 0)
	w.state.Look = true
	w.settle()
	for i := range w.containers {
		w.containers[i].State, w.containers[i].ExitCode, w.containers[i].Message = pod.Exited, 1, strings.Repeat("ä", 4096)
	}
	w.containers[0].ExitCode = 0
	w.state.Look = true
	w.settle()
	for _, cs := range slices.Concat(w.plan.Status.InitContainerStatuses, w.plan.Status.ContainerStatuses) {
		if m := cs.State.Terminated.Message; len(m) != 4096 || !utf8.ValidString(m) {
			t.Errorf("%s: %d bytes", cs.Name, len(m))
		}
	}
}

// TestMountStatuses tells what became of "recursive read-only if possible".
func TestMountStatuses(t *testing.T) {
	spec := `
containers:
- name: app
  image: img
  volumeMounts:
  - {name: a, mountPath: /a}
  - {name: b, mountPath: /b, readOnly: true}
  - {name: c, mountPath: /c, readOnly: true, recursiveReadOnly: IfPossible}
  - {name: d, mountPath: /d, readOnly: true, recursiveReadOnly: Enabled}
  - {name: e, mountPath: /e, readOnly: true, recursiveReadOnly: IfPossible, mountPropagation: HostToContainer}`
	for handler, want := range map[string]string{"": "- Disabled Enabled Enabled Disabled", "old": "- Disabled Disabled Enabled Disabled"} {
		w := newWorld(pod.Desired{Pod: parsePod(t, spec), RuntimeHandler: handler})
		w.state.Config.RecursiveReadOnly = map[string]bool{"": true}
		w.settle()
		var got []string
		for _, m := range w.plan.Status.ContainerStatuses[0].VolumeMounts {
			mode := "-"
			if m.RecursiveReadOnly != nil {
				mode = string(*m.RecursiveReadOnly)
			}
			got = append(got, mode)
		}
		if text := strings.Join(got, " "); text != want {
			t.Errorf("handler %q: %s, want %s", handler, text, want)
		}
	}
}

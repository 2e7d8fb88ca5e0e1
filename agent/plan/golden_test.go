package plan

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/datadriven"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/agent/pod"
)

// TestGolden plays the scripts in testdata/golden. Commands:
//
//	pod                         a pod spec; decides nothing yet
//	settle | advance 10s        let things happen, now or for a while
//	fail OP [CONTAINER] times=N kind=K reason=R msg=M
//	hold | release OP [CONTAINER]
//	exit CONTAINER code=N       a container ends by itself
//	state CONTAINER unknown     its monitor is lost
//	verdict CONTAINER kind=K v=success|failed msg=M
//	sandbox-lost [vanish] | restart-agent | reboot
//	terminate [grace=5s] [reason=R msg=M] | forget | reject reason=R msg=M
//	inputs VERSION | image CONTAINER IMAGE | memory CONTAINER LIMIT
//	ephemeral NAME IMAGE [target=CONTAINER] | condition TYPE status=S [reason=R msg=M]
//	created CONTAINER           its newest instance is made and was never started
//	status | probes | record
func TestGolden(t *testing.T) {
	datadriven.Walk(t, "testdata/golden", func(t *testing.T, path string) {
		var w *world
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			if d.Cmd == "pod" {
				w = newWorld(pod.Desired{Pod: parsePod(t, d.Input)})
				return ""
			}
			w.log = nil
			play(t, w, d)
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

func parsePod(t testing.TB, spec string) *v1.Pod {
	t.Helper()
	p := &v1.Pod{}
	p.Namespace, p.Name, p.UID = "ns", "web", "u1"
	if err := yaml.UnmarshalStrict([]byte(spec), &p.Spec); err != nil {
		t.Fatal(err)
	}
	return p
}

func arg(d *datadriven.TestData, key string) string {
	for _, a := range d.CmdArgs {
		if a.Key == key {
			return strings.Join(a.Vals, ",")
		}
	}
	return ""
}

// words are the arguments without a value.
func words(d *datadriven.TestData) []string {
	var out []string
	for _, a := range d.CmdArgs {
		if len(a.Vals) == 0 {
			out = append(out, a.Key)
		}
	}
	return out
}

func play(t *testing.T, w *world, d *datadriven.TestData) {
	t.Helper()
	args := words(d)
	first := ""
	if len(args) > 0 {
		first = args[0]
	}
	switch d.Cmd {
	case "settle":
		w.settle()
	case "advance":
		by, err := time.ParseDuration(first)
		if err != nil {
			t.Fatal(err)
		}
		w.advance(by)
		w.logf("at +%v", w.now.Sub(epoch))
	case "fail":
		playFail(t, w, d)
	case "hold":
		w.hold[strings.Join(args, " ")] = true
	case "release":
		delete(w.hold, strings.Join(args, " "))
		w.settle()
	case "status":
		describe(w)
	case "probes":
		for _, p := range w.plan.Probes {
			w.logf("%s %s", p.Name, p.Kind)
		}
	case "record":
		describeRecord(w)
	default:
		playWorld(t, w, d, first)
	}
}

func playFail(t *testing.T, w *world, d *datadriven.TestData) {
	kinds := map[string]pod.Kind{"": pod.Unavailable, "invalid": pod.Invalid, "notfound": pod.NotFound, "timeout": pod.Timeout}
	kind, ok := kinds[arg(d, "kind")]
	if !ok {
		t.Fatalf("unknown kind %q", arg(d, "kind"))
	}
	times := -1
	if n := arg(d, "times"); n != "" {
		fmt.Sscan(n, &times)
	}
	w.fails[strings.Join(words(d), " ")] = &planned{times, &pod.Error{Kind: kind, Reason: pod.Reason(arg(d, "reason")), Err: errors.New(arg(d, "msg"))}}
}

// playWorld changes the world or the desire, and lets the worker hear of it.
func playWorld(t *testing.T, w *world, d *datadriven.TestData, first string) {
	t.Helper()
	desired := w.state.Desired
	switch d.Cmd {
	case "exit":
		code := int32(0)
		fmt.Sscan(arg(d, "code"), &code)
		w.exit(w.running(pod.ContainerName(first)).ID, code)
	case "state":
		w.running(pod.ContainerName(first)).State = pod.Unknown
	case "verdict":
		v := map[string]pod.Verdict{"success": pod.Success, "failed": pod.Failed}[arg(d, "v")]
		w.state.SetVerdict(pod.ProbeVerdict{Container: w.running(pod.ContainerName(first)).ID, Kind: pod.ProbeKind(arg(d, "kind")), Verdict: v, Message: arg(d, "msg"), At: w.now})
	case "sandbox-lost":
		if first == "vanish" {
			w.sandboxes, w.containers = nil, nil
		} else {
			w.sandboxes[0].Ready = false
		}
	case "restart-agent":
		w.restartAgent()
	case "reboot":
		w.reboot()
	case "terminate":
		term := &pod.Termination{Requested: w.now, Reason: pod.Reason(arg(d, "reason")), Message: arg(d, "msg")}
		if g, err := time.ParseDuration(arg(d, "grace")); err == nil {
			term.Grace = &g
		}
		term.Disruption = arg(d, "disruption")
		desired.Termination = term
	case "forget":
		desired.Forget = true
		if desired.Termination == nil {
			desired.Termination = &pod.Termination{Requested: w.now}
		}
	case "reject":
		desired.Rejection = &pod.Rejection{Reason: pod.Reason(arg(d, "reason")), Message: arg(d, "msg")}
	case "inputs":
		desired.Inputs.Version = first
	case "ephemeral", "condition":
		playAmend(w, d, first)
	case "created":
		w.running(pod.ContainerName(first)).State = pod.Created
	case "memory":
		desired.Pod = desired.Pod.DeepCopy()
		desired.Pod.Spec.Containers[0].Resources.Limits = v1.ResourceList{v1.ResourceMemory: resource.MustParse(words(d)[1])}
	case "image":
		desired.Pod = desired.Pod.DeepCopy()
		desired.Pod.Spec.Containers[0].Image = words(d)[1]
	default:
		t.Fatalf("%s: unknown command %q", d.Pos, d.Cmd)
	}
	w.state.SetDesired(desired)
	w.state.Look = true
	w.settle()
}

// playAmend changes what is kept of the pod from outside.
func playAmend(w *world, d *datadriven.TestData, first string) {
	var err error
	if d.Cmd == "ephemeral" {
		c := v1.EphemeralContainer{TargetContainerName: arg(d, "target")}
		c.Name, c.Image = first, words(d)[1]
		err = w.state.AddEphemeral(c, nil)
	} else {
		err = w.state.SetCondition(v1.PodCondition{Type: v1.PodConditionType(first), Status: v1.ConditionStatus(arg(d, "status")), Reason: arg(d, "reason"), Message: arg(d, "msg")}, w.now)
	}
	if err != nil {
		w.logf("refused: %v", err)
	}
}

func describe(w *world) {
	st := w.plan.Status
	line := "phase " + string(st.Phase)
	if st.Reason != "" {
		line += " (" + st.Reason + ": " + st.Message + ")"
	}
	w.logf("%s", line)
	for _, c := range st.Conditions {
		line := fmt.Sprintf("  %s=%s", c.Type, c.Status)
		if c.Reason != "" {
			line += " " + c.Reason
		}
		if c.Message != "" {
			line += ": " + c.Message
		}
		w.logf("%s (since +%v)", line, c.LastTransitionTime.Sub(epoch))
	}
	for _, list := range [][]v1.ContainerStatus{st.InitContainerStatuses, st.ContainerStatuses, st.EphemeralContainerStatuses} {
		for _, cs := range list {
			w.logf("  %s: %s ready=%v started=%v restarts=%d%s", cs.Name, stateText(cs.State), cs.Ready, cs.Started != nil && *cs.Started, cs.RestartCount, lastText(cs.LastTerminationState))
		}
	}
	e := w.plan.Explanation
	line = fmt.Sprintf("why: well=%v %s %s", e.Well, e.Reason, e.Cause)
	if e.Next != "" {
		line += " " + e.Next
	}
	if !e.NextAt.IsZero() {
		line += fmt.Sprintf(" (at +%v)", e.NextAt.Sub(epoch))
	}
	w.logf("%s", line)
	if e.Advice != "" {
		w.logf("do: %s", e.Advice)
	}
	if !w.plan.Wake.IsZero() {
		w.logf("wake +%v", w.plan.Wake.Sub(epoch))
	}
	if w.plan.Done {
		w.logf("done")
	}
}

func stateText(s v1.ContainerState) string {
	switch {
	case s.Running != nil:
		return "running"
	case s.Terminated != nil:
		return fmt.Sprintf("terminated %s %d", s.Terminated.Reason, s.Terminated.ExitCode)
	case s.Waiting != nil:
		text := "waiting " + s.Waiting.Reason
		if s.Waiting.Message != "" {
			text += " (" + s.Waiting.Message + ")"
		}
		return text
	}
	return "none"
}

func lastText(s v1.ContainerState) string {
	if s.Terminated == nil {
		return ""
	}
	return " last=" + stateText(s)
}

func describeRecord(w *world) {
	r := w.disk
	for _, n := range keys(plain(r.Durable.Restarts)) {
		w.logf("restarts %s=%d", n, r.Durable.Restarts[pod.ContainerName(n)])
	}
	w.logf("sandboxes %d outcome %v termination %v", r.Boot.Sandboxes, r.Durable.Outcome != nil, r.Durable.Termination != nil)
}

func plain(m map[pod.ContainerName]uint32) map[string]uint32 {
	out := map[string]uint32{}
	for k, v := range m {
		out[string(k)] = v
	}
	return out
}

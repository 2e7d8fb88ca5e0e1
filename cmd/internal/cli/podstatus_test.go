package cli

import (
	"bytes"
	"fmt"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"
)

// TestSummary checks READY, STATUS and RESTARTS as kubectl shows them.
func TestSummary(t *testing.T) {
	const two = "spec: {containers: [{name: a}, {name: b}]}\n"
	const inits = "spec: {initContainers: [{name: i}, {name: s, restartPolicy: Always}], containers: [{name: a}]}\n"
	for _, c := range []struct{ name, pod, want string }{
		{"fresh", two + "status: {phase: Pending}", "0/2 Pending 0"},
		{"running", two + "status: {phase: Running, containerStatuses: [{name: a, ready: true, state: {running: {}}}, {name: b, ready: true, state: {running: {}}}]}", "2/2 Running 0"},
		{"crash loop", two + "status: {phase: Running, containerStatuses: [{name: a, restartCount: 4, state: {waiting: {reason: CrashLoopBackOff}}, lastState: {terminated: {finishedAt: '2026-01-01T11:59:00Z'}}}, {name: b, ready: true, state: {running: {}}}]}", "1/2 CrashLoopBackOff 4 (60s ago)"},
		{"completed", two + "status: {phase: Succeeded, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}]}", "0/2 Completed 0"},
		{"one completed, not ready", two + "status: {phase: Running, containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}", "1/2 NotReady 0"},
		{"one completed, ready", two + "status: {phase: Running, conditions: [{type: Ready, status: 'True'}], containerStatuses: [{name: a, state: {terminated: {reason: Completed}}}, {name: b, ready: true, state: {running: {}}}]}", "1/2 Running 0"},
		{"exit code", two + "status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 3}}}]}", "0/2 ExitCode:3 0"},
		{"signal", two + "status: {phase: Failed, containerStatuses: [{name: a, state: {terminated: {exitCode: 137, signal: 9}}}]}", "0/2 Signal:9 0"},
		{"evicted", two + "status: {phase: Failed, reason: Evicted}", "0/2 Evicted 0"},
		{"terminating", "metadata: {deletionTimestamp: '2026-01-01T12:00:00Z'}\n" + two + "status: {phase: Running}", "0/2 Terminating 0"},
		{"init", inits + "status: {phase: Pending, initContainerStatuses: [{name: i, state: {running: {}}}, {name: s, state: {waiting: {reason: PodInitializing}}}]}", "0/2 Init:0/2 0"},
		{"init failed", inits + "status: {phase: Pending, initContainerStatuses: [{name: i, restartCount: 2, state: {waiting: {reason: CrashLoopBackOff}}}]}", "0/2 Init:CrashLoopBackOff 2"},
		{"init exit", inits + "status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {exitCode: 2}}}]}", "0/2 Init:ExitCode:2 0"},
		{"sidecar starts", inits + "status: {phase: Pending, initContainerStatuses: [{name: i, state: {terminated: {reason: Completed}}}, {name: s, state: {running: {}}}]}", "0/2 Init:1/2 0"},
		{"sidecar runs", inits + "status: {phase: Running, initContainerStatuses: [{name: i, restartCount: 5, state: {terminated: {reason: Completed}}}, {name: s, started: true, ready: true, restartCount: 1, state: {running: {}}}], containerStatuses: [{name: a, ready: true, state: {running: {}}}]}", "2/2 Running 1"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var p v1.Pod
			if err := yaml.UnmarshalStrict([]byte(c.pod), &p); err != nil {
				t.Fatal(err)
			}
			s := summarize(&p)
			got := fmt.Sprintf("%d/%d %s %s", s.ready, s.total, s.status, s.restartsText(time.Date(2026, 1, 1, 12, 0, 0, 0, time.UTC)))
			if got != c.want {
				t.Errorf("got  %s\nwant %s", got, c.want)
			}
		})
	}
}

// TestTableKeepsWidths checks that rows of a watch line up with those before.
func TestTableKeepsWidths(t *testing.T) {
	var b bytes.Buffer
	tab := table{w: &b, head: []string{"NAME", "X"}}
	tab.row("a-long-name", "1")
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	tab.row("b", "2")
	if err := tab.flush(); err != nil {
		t.Fatal(err)
	}
	if want := "NAME          X\na-long-name   1\nb             2\n"; b.String() != want {
		t.Errorf("got\n%s\nwant\n%s", b.String(), want)
	}
}

func readyPod(name string) v1.Pod {
	return v1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "default", UID: "uid-1", CreationTimestamp: metav1.NewTime(time.Now().Add(-30*time.Hour - 30*time.Minute))},
		Spec:       v1.PodSpec{NodeName: "node", Containers: []v1.Container{{Name: "web", Image: "busybox:1"}, {Name: "log", Image: "busybox:1"}}},
		Status: v1.PodStatus{Phase: v1.PodRunning, PodIP: "10.0.0.2", Conditions: []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}},
			ContainerStatuses: []v1.ContainerStatus{{Name: "web", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}, {Name: "log", Ready: true, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}}}},
	}
}

package node

import (
	"fmt"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// reason is a pod in some trouble, and what Kubernetes' words for it are.
type reason struct {
	spec, inits, mains string
	// states and conditions are patterns; states are told as "app waiting Reason: message",
	// "app running" and "app terminated Reason 3: message", a container's last end with "last" before it.
	states     []string
	conditions map[v1.PodConditionType]string
	phase      v1.PodPhase
	// events are patterns of "Type Reason message".
	events []string
}

// main is a container of a reason's pod that runs until TERM; more are further fields.
func mainContainer(name, more string) string {
	return fmt.Sprintf("  - {name: %s, image: %s, %s}\n", name, Busybox, more)
}

const (
	idle    = `command: [sh, -c, "trap 'exit 0' TERM; while :; do sleep 1 & wait $!; done"]`
	crashes = `command: [sh, -c, "exit 3"]`
)

// reasons are those that a container runtime and a few seconds bring about.
var reasons = map[string]reason{
	"crash loop": {
		mains:      mainContainer("app", crashes),
		states:     []string{`^app waiting CrashLoopBackOff: back-off 10s restarting failed container=app pod=crash-loop_default\(.+\)$`, `^app last terminated Error 3: $`},
		conditions: map[v1.PodConditionType]string{v1.PodReady: `^False ContainersNotReady containers with unready status: \[app\]$`, v1.ContainersReady: `^False ContainersNotReady `},
		phase:      v1.PodRunning,
		events:     []string{`^Warning BackOff Back-off restarting failed container app in pod crash-loop_default\(.+\)$`},
	},
	"ended well": {
		spec: "  restartPolicy: Never\n", mains: mainContainer("app", `command: ["true"]`),
		states:     []string{`^app terminated Completed 0: $`},
		conditions: map[v1.PodConditionType]string{v1.PodReady: `^False PodCompleted`, v1.ContainersReady: `^False PodCompleted`, v1.PodInitialized: `^True PodCompleted`, v1.PodReadyToStartContainers: `^False`, v1.PodScheduled: `^True`},
		phase:      v1.PodSucceeded,
		events:     []string{`^Normal Created Container created$`, `^Normal Started Container started$`, `^Normal Pulled Container image ".+" already present on machine$`},
	},
	"init fails for good": {
		spec: "  restartPolicy: Never\n", inits: mainContainer("first", crashes), mains: mainContainer("app", idle),
		states:     []string{`^first terminated Error 3: $`, `^app waiting PodInitializing: $`},
		conditions: map[v1.PodConditionType]string{v1.PodInitialized: `^False ContainersNotInitialized containers with incomplete status: \[first\]$`, v1.PodReady: `^False PodFailed`, v1.ContainersReady: `^False PodFailed`},
		phase:      v1.PodFailed,
	},
	"init crash loop": {
		inits: mainContainer("first", crashes), mains: mainContainer("app", idle),
		states:     []string{`^first waiting CrashLoopBackOff: `, `^app waiting PodInitializing: $`},
		conditions: map[v1.PodConditionType]string{v1.PodInitialized: `^False ContainersNotInitialized `},
		phase:      v1.PodPending,
	},
	"bad name": {
		mains:  "  - {name: app, image: 'x.example/UPPER:1'}\n",
		states: []string{`^app waiting InvalidImageName: .+`}, phase: v1.PodPending,
		events: []string{`^Warning InspectFailed .+`, `^Warning Failed Error: InvalidImageName$`},
	},
	"never pulled": {
		mains:  "  - {name: app, image: 'absent.example/x:1', imagePullPolicy: Never}\n",
		states: []string{`^app waiting ErrImageNeverPull: .+`}, phase: v1.PodPending,
		events: []string{`^Warning ErrImageNeverPull Container image "absent.example/x:1" is not present with pull policy of Never$`, `^Warning Failed Error: ErrImageNeverPull$`},
	},
	"registry down": {
		mains:  "  - {name: app, image: '127.0.0.1:1/x:1'}\n",
		states: []string{`^app waiting ImagePullBackOff: Back-off pulling image "127.0.0.1:1/x:1": .+`}, phase: v1.PodPending,
		events: []string{`^Normal Pulling Pulling image "127.0.0.1:1/x:1"$`, `^Warning Failed Failed to pull image "127.0.0.1:1/x:1": .+`, `^Normal BackOff Back-off pulling image "127.0.0.1:1/x:1"$`, `^Warning Failed Error: ImagePullBackOff$`},
	},
	"no such config": {
		mains:  mainContainer("app", idle+`, env: [{name: X, valueFrom: {configMapKeyRef: {name: absent, key: x}}}]`),
		states: []string{`^app waiting CreateContainerConfigError: .*absent.*`}, phase: v1.PodPending,
		events: []string{`^Warning Failed Error: .*absent.*`},
	},
	"post-start fails": {
		mains:  mainContainer("app", idle+`, lifecycle: {postStart: {exec: {command: [sh, -c, "exit 4"]}}}`),
		states: []string{`^app waiting (PostStartHookError|CrashLoopBackOff): .+`}, phase: v1.PodRunning,
		events: []string{`^Warning FailedPostStartHook PostStartHook failed.*`, `^Normal Killing FailedPostStartHook$`},
	},
	"startup probe fails": {
		mains:  mainContainer("app", idle+`, startupProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}`),
		states: []string{`^app last terminated Completed 0: $`}, phase: v1.PodRunning,
		events: []string{`^Warning Unhealthy Startup probe failed:.*`, `^Normal Killing Container app failed startup probe, will be restarted$`},
	},
	"sidecar probe fails": {
		inits:  mainContainer("side", idle+`, restartPolicy: Always, livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}`),
		mains:  mainContainer("app", idle),
		states: []string{`^side last terminated Completed 0: $`}, phase: v1.PodRunning,
		events: []string{`^Warning Unhealthy Liveness probe failed:.*`, `^Normal Killing Init container side failed liveness probe$`},
	},
	"never probed again": {
		spec: "  restartPolicy: Never\n", mains: mainContainer("app", idle+`, livenessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}`),
		states: []string{`^app terminated Completed 0: $`}, phase: v1.PodSucceeded,
		events: []string{`^Normal Killing Container app failed liveness probe$`},
	},
	"unready": {
		mains:      mainContainer("app", idle+`, readinessProbe: {exec: {command: ["false"]}, periodSeconds: 1, failureThreshold: 1}`),
		states:     []string{`^app running$`},
		conditions: map[v1.PodConditionType]string{v1.PodReady: `^False ContainersNotReady `, v1.PodInitialized: `^True`, v1.PodReadyToStartContainers: `^True`},
		phase:      v1.PodRunning,
		events:     []string{`^Warning Unhealthy Readiness probe failed:.*`},
	},
	"last words": {
		spec: "  restartPolicy: Never\n", mains: mainContainer("app", `command: [sh, -c, "echo why; exit 5"], terminationMessagePolicy: FallbackToLogsOnError`),
		states: []string{`^app terminated Error 5: why`}, phase: v1.PodFailed,
	},
	"no such program": {
		spec: "  restartPolicy: Never\n", mains: mainContainer("app", `command: [no-such-program]`),
		states: []string{`^app (terminated (StartError|ContainerCannotRun) \d+|waiting RunContainerError): .*no-such-program`},
		events: []string{`^Warning Failed Error: .*no-such-program.*`},
	},
}

// told renders the states of a pod's containers for the patterns.
func told(p *v1.Pod) []string {
	one := func(of string, s v1.ContainerState) []string {
		switch {
		case s.Running != nil:
			return []string{of + " running"}
		case s.Waiting != nil:
			return []string{fmt.Sprintf("%s waiting %s: %s", of, s.Waiting.Reason, s.Waiting.Message)}
		case s.Terminated != nil:
			return []string{fmt.Sprintf("%s terminated %s %d: %s", of, s.Terminated.Reason, s.Terminated.ExitCode, s.Terminated.Message)}
		}
		return nil
	}
	var out []string
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, s := range list {
			out = append(append(out, one(s.Name, s.State)...), one(s.Name+" last", s.LastTerminationState)...)
		}
	}
	return out
}

func anyMatches(pattern string, lines []string) bool {
	re := regexp.MustCompile(pattern)
	for _, l := range lines {
		if re.MatchString(l) {
			return true
		}
	}
	return false
}

// check says what of r's words the pod does not say.
func (r *reason) check(p *v1.Pod) error {
	if r.phase != "" && p.Status.Phase != r.phase {
		return fmt.Errorf("phase %s, want %s", p.Status.Phase, r.phase)
	}
	for _, pattern := range r.states {
		if !anyMatches(pattern, told(p)) {
			return fmt.Errorf("no container is in state %q: %q", pattern, told(p))
		}
	}
	for kind, pattern := range r.conditions {
		var have []string
		for _, c := range p.Status.Conditions {
			if c.Type == kind {
				have = append(have, fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message))
			}
		}
		if !anyMatches(pattern, have) {
			return fmt.Errorf("condition %s is %q, want %q", kind, have, pattern)
		}
	}
	return nil
}

// TestReasons brings about, on a real runtime, the reasons, messages,
// conditions and events by which Kubernetes tells of a pod's containers.
func TestReasons(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	for name, r := range reasons {
		pod := strings.ReplaceAll(name, " ", "-")
		inits := r.inits
		if inits != "" {
			inits = "  initContainers:\n" + inits
		}
		a.Place(pod+".yaml", fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 2\n%s%s  containers:\n%s", pod, r.spec, inits, r.mains))
	}
	for name, r := range reasons {
		t.Run(name, func(t *testing.T) {
			a, pod := a.For(t), strings.ReplaceAll(name, " ", "-")
			a.Wait(pod, 60*time.Second, r.check)
			for _, pattern := range r.events {
				a.waitEvent(pod, pattern)
			}
		})
	}
	t.Run("sandbox changed", func(t *testing.T) { testSandboxChanged(t, a.For(t)) })
}

// waitEvent waits for an event of the pod that matches pattern.
func (a *Agent) waitEvent(pod, pattern string) {
	a.T.Helper()
	Eventually(a.T, 20*time.Second, func() error {
		var have []string
		for line := range strings.SplitSeq(a.Must("get", "events"), "\n") {
			if f := strings.Fields(line); len(f) > 4 && f[3] == "pod/"+pod {
				have = append(have, f[1]+" "+f[2]+" "+strings.Join(f[4:], " "))
			}
		}
		if anyMatches(pattern, have) {
			return nil
		}
		return fmt.Errorf("no event of %s is %q:\n%s", pod, pattern, strings.Join(have, "\n"))
	})
}

// testSandboxChanged stops a sandbox behind the agent's back.
func testSandboxChanged(t *testing.T, a *Agent) {
	runtime, _ := a.CRI()
	was := a.Wait("unready", 60*time.Second, Phase(v1.PodRunning))
	l, err := runtime.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{
		LabelSelector: map[string]string{"io.kubernetes.pod.uid": string(was.UID)},
	}})
	if err != nil || len(l.Items) != 1 {
		t.Fatalf("%v: %v", err, l)
	}
	if _, err := runtime.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: l.Items[0].Id}); err != nil {
		t.Fatal(err)
	}
	a.waitEvent("unready", "^Normal SandboxChanged Pod sandbox changed, it will be killed and re-created.$")
	a.Wait("unready", 60*time.Second, func(p *v1.Pod) error {
		if s := statusOf(p, "app"); s.State.Running == nil || s.RestartCount < 1 || s.LastTerminationState.Terminated == nil {
			return fmt.Errorf("%d restarts, last %+v", s.RestartCount, s.LastTerminationState)
		}
		return condition(v1.PodInitialized, "True")(p)
	})
}

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// obedient is a program that ends with the code that the test writes to
// /ctl/NAME, and ignores TERM: who is killed is gone after the grace period only.
const obedient = `trap "" TERM; while :; do if [ -s /ctl/%[1]s ]; then c=$(cat /ctl/%[1]s); rm /ctl/%[1]s; exit $c; fi; sleep 0.05; done`

// life is a pod of obedient containers, and the directory that rules them.
type life struct {
	*Agent
	name, ctl string
}

func (a *Agent) life(name string) *life {
	a.T.Helper()
	l := &life{Agent: a, name: name, ctl: filepath.Join(a.Dir, "ctl-"+name)}
	if err := os.Mkdir(l.ctl, 0o777); err != nil {
		a.T.Fatal(err)
	}
	return l
}

// container is one of the pod's; more are further fields.
func (l *life) container(name, script, more string) string {
	return fmt.Sprintf("  - {name: %s, image: %s, command: [sh, -c, %q], volumeMounts: [{name: ctl, mountPath: /ctl}, {name: scratch, mountPath: /scratch}]%s}\n", name, Busybox, script, more)
}

func (l *life) manifest(spec, inits, mains string) string {
	if inits != "" {
		inits = "  initContainers:\n" + inits
	}
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec:\n  terminationGracePeriodSeconds: 20\n%s"+
		"  volumes: [{name: ctl, hostPath: {path: %s}}, {name: scratch, emptyDir: {}}]\n%s  containers:\n%s", l.name, spec, l.ctl, inits, mains)
}

// exits has a container end with code.
func (l *life) exits(container string, code int) {
	l.T.Helper()
	path := filepath.Join(l.ctl, container)
	if err := os.WriteFile(path+".tmp", fmt.Appendf(nil, "%d", code), 0o600); err != nil {
		l.T.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		l.T.Fatal(err)
	}
}

// lines counts the lines of a file that the pod's containers write.
func (l *life) lines(file string) int {
	body, _ := os.ReadFile(filepath.Join(l.ctl, file)) // none yet: no lines
	return strings.Count(string(body), "\n")
}

// stop removes the pod without waiting for its grace period.
func (l *life) stop() {
	l.T.Helper()
	l.Unplace(l.name + ".yaml")
	Eventually(l.T, 10*time.Second, func() error { // the agent may not have seen that the manifest is gone
		_, err := l.Berth("stop", l.name, "--grace-period", "1", "--timeout", "40s")
		if err != nil && strings.Contains(err.Error(), "not found") {
			return nil
		}
		return err
	})
}

// statusOf is the status of a container, of whatever kind.
func statusOf(p *v1.Pod, name string) *v1.ContainerStatus {
	for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses, p.Status.EphemeralContainerStatuses} {
		for i := range list {
			if list[i].Name == name {
				return &list[i]
			}
		}
	}
	return &v1.ContainerStatus{}
}

// condition checks a condition of a pod: "False ContainersNotReady", or more of it.
func condition(t v1.PodConditionType, want string) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		for _, c := range p.Status.Conditions {
			if c.Type == t {
				if got := strings.TrimSpace(fmt.Sprintf("%s %s %s", c.Status, c.Reason, c.Message)); !strings.HasPrefix(got, want) {
					return fmt.Errorf("condition %s is %q, want %q", t, got, want)
				}
				return nil
			}
		}
		return fmt.Errorf("no condition %s", t)
	}
}

// all checks with each of checks.
func all(checks ...func(*v1.Pod) error) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		for _, check := range checks {
			if err := check(p); err != nil {
				return err
			}
		}
		return nil
	}
}

// lifeEvent waits for an event of the pod.
func (a *Agent) lifeEvent(name, reason, text string) {
	a.T.Helper()
	Eventually(a.T, 10*time.Second, func() error {
		out := a.Must("get", "events")
		for line := range strings.SplitSeq(out, "\n") {
			if strings.Contains(line, "pod/"+name+" ") && strings.Contains(line, reason) && strings.Contains(line, text) {
				return nil
			}
		}
		return fmt.Errorf("no event %s %q of %s:\n%s", reason, text, name, out)
	})
}

// TestLife runs what is subtle in a pod's life on one real agent.
func TestLife(t *testing.T) {
	before, marks := ReadHost(t), []string(nil)
	t.Cleanup(func() {
		if added := ReadHost(t).Added(before, marks); len(added) > 0 {
			t.Errorf("left behind on the host:\n%s", strings.Join(added, "\n"))
		}
	})
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	marks = a.Marks()
	a.ImportBusybox()
	t.Run("one agent", func(t *testing.T) {
		for name, test := range map[string]func(*testing.T, *Agent){
			"restart all, by a main": testResetByMain, "restart all, by an init container": testResetByInit, "debug": testDebug,
			"readiness gate": testGate, "restart rules": testRules, "deadline": testDeadline, "definition changed": testDefinition,
			"grace of a probe": testProbeGrace, "successor": testSuccessor, "stopped by force": testForced, "lost monitor": testLostMonitor,
		} {
			t.Run(name, func(t *testing.T) {
				t.Parallel()
				test(t, a.For(t))
			})
		}
	})
}

const resetRule = `, restartPolicy: Never, restartPolicyRules: [{action: RestartAllContainers, exitCodes: {operator: In, values: [42]}}]`

// resetPod has an init container, a sidecar, a source and another main that is
// never restarted otherwise; each init run and each preStop hook leaves a line.
func (l *life) resetPod() string {
	hook := `, restartPolicy: Never, lifecycle: {preStop: {exec: {command: [sh, -c, "echo >> /ctl/hooks"]}}}`
	return l.manifest("", l.container("init", "echo >> /ctl/inits; date +%N >> /scratch/kept", "")+l.container("side", fmt.Sprintf(obedient, "side"), ", restartPolicy: Always"),
		l.container("source", fmt.Sprintf(obedient, "source"), resetRule)+l.container("other", fmt.Sprintf(obedient, "other"), hook))
}

// wasReset checks that every container was restarted n times, last by a reset.
func wasReset(n int32, names ...string) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		for _, name := range names {
			s := statusOf(p, name)
			last := s.LastTerminationState.Terminated
			if s.RestartCount != n || last == nil || last.ExitCode != 137 || last.Reason != "RestartingAllContainers" {
				return fmt.Errorf("container %s: %d restarts, last %+v", name, s.RestartCount, last)
			}
		}
		return nil
	}
}

func testResetByMain(t *testing.T, a *Agent) {
	l := a.life("reset")
	l.Place("reset.yaml", l.resetPod())
	was := l.Wait("reset", 60*time.Second, all(Ready, condition(v1.AllContainersRestarting, "False")))
	l.exits("source", 42)
	l.Wait("reset", 10*time.Second, all(
		condition(v1.AllContainersRestarting, "True RestartAllContainersStarted container exited with restart policy rule"),
		condition(v1.PodInitialized, "True"), Phase(v1.PodRunning)))
	is := l.Wait("reset", 60*time.Second, all(Ready, condition(v1.AllContainersRestarting, "False"), wasReset(1, "init", "side", "source", "other")))
	if is.Status.PodIP != was.Status.PodIP || is.UID != was.UID {
		t.Errorf("address and UID went from %s, %s to %s, %s", was.Status.PodIP, was.UID, is.Status.PodIP, is.UID)
	}
	if inits, hooks := l.lines("inits"), l.lines("hooks"); inits != 2 || hooks != 0 {
		t.Errorf("%d runs of the init container, want 2; %d preStop hooks, want none", inits, hooks)
	}
	if out := l.Must("exec", "reset", "-c", "other", "--", "wc", "-l", "/scratch/kept"); !strings.HasPrefix(out, "2 ") {
		t.Errorf("the volume did not stay: %q", out)
	}
	for _, log := range []string{"source/0.log", "source/1.log", "other/0.log"} {
		if found, _ := filepath.Glob(filepath.Join(l.Dir, "log", "default_reset_*", log)); len(found) != 1 {
			t.Errorf("log %s is not there", log)
		}
	}
	l.exits("source", 1) // no rule for it, and Never
	l.Wait("reset", 20*time.Second, func(p *v1.Pod) error {
		if s := statusOf(p, "source").State.Terminated; s == nil || s.ExitCode != 1 {
			return fmt.Errorf("source has not ended with 1")
		}
		return nil
	})
	l.exits("other", 0)
	l.exits("side", 0)
	l.Wait("reset", 40*time.Second, all(Phase(v1.PodFailed), condition(v1.AllContainersRestarting, "False PodFailed")))
	l.stop()
}

func testResetByInit(t *testing.T, a *Agent) {
	l := a.life("resetinit")
	l.Place("resetinit.yaml", l.manifest("", l.container("first", "echo >> /ctl/inits", "")+l.container("source", fmt.Sprintf(obedient, "source"), resetRule),
		l.container("app", fmt.Sprintf(obedient, "app"), "")))
	l.Wait("resetinit", 60*time.Second, func(p *v1.Pod) error {
		if statusOf(p, "source").State.Running == nil {
			return fmt.Errorf("source does not run")
		}
		return all(condition(v1.AllContainersRestarting, "False"), condition(v1.PodInitialized, "False ContainersNotInitialized containers with incomplete status: [source]"))(p)
	})
	l.exits("source", 42)
	l.Wait("resetinit", 30*time.Second, func(p *v1.Pod) error {
		if statusOf(p, "source").State.Running == nil {
			return fmt.Errorf("source does not run again")
		}
		return wasReset(1, "first", "source")(p)
	})
	l.exits("source", 0)
	p := l.Wait("resetinit", 30*time.Second, Ready)
	if n := statusOf(p, "app").RestartCount; n != 0 || l.lines("inits") != 2 {
		t.Errorf("app was restarted %d times, the first init container ran %d times", n, l.lines("inits"))
	}
	l.exits("app", 0)
	l.stop()
}

// TestLifeResetKilled kills the agent in the middle of a RestartAllContainers.
func TestLifeResetKilled(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	l := a.life("reset")
	l.Place("reset.yaml", l.resetPod())
	was := l.Wait("reset", 60*time.Second, Ready)
	for round := int32(1); round <= 2; round++ {
		l.exits("source", 42)
		l.Wait("reset", 10*time.Second, condition(v1.AllContainersRestarting, "True"))
		l.Kill9()
		if round == 2 {
			time.Sleep(3 * time.Second) // what was being stopped is dead by then
		}
		l.Start()
		l.Wait("reset", 60*time.Second, all(Ready, condition(v1.AllContainersRestarting, "False"), wasReset(round, "init", "side", "other", "source")))
		if n := l.lines("inits"); n != int(round)+1 {
			t.Errorf("%d runs of the init container after %d resets", n, round)
		}
	}
	p, err := l.Pod("reset")
	if err != nil || p.Status.PodIP != was.Status.PodIP {
		t.Errorf("%v; address %s, was %s", err, p.Status.PodIP, was.Status.PodIP)
	}
}

func testDebug(t *testing.T, a *Agent) {
	a.Place("bug.yaml", podOf("bug", "    securityContext: {runAsUser: 0}", ""))
	a.Wait("bug", 60*time.Second, Ready)
	a.Must("exec", "bug", "--", "sh", "-c", "sleep 98765 >/dev/null 2>&1 &")
	seen := func(name string, args ...string) string {
		a.Must(append([]string{"debug", "bug", "-c", name}, append(args, "--", "ps", "-ef")...)...)
		a.Wait("bug", 30*time.Second, func(p *v1.Pod) error {
			if s := statusOf(p, name).State.Terminated; s == nil || s.ExitCode != 0 {
				return fmt.Errorf("%s has not ended with 0", name)
			}
			return Ready(p)
		})
		return a.Must("logs", "bug", "-c", name)
	}
	if out := seen("with", "--target", "c"); !strings.Contains(out, "98765") {
		t.Errorf("the target's process is not seen:\n%s", out)
	}
	if out := seen("without"); strings.Contains(out, "98765") {
		t.Errorf("processes of another container are seen without --target:\n%s", out)
	}
	if _, err := a.Berth("debug", "bug", "-c", "with"); err == nil || !strings.Contains(err.Error(), "with") {
		t.Errorf("a second container of the same name: %v", err)
	}
	if _, err := a.Berth("debug", "bug", "--target", "nobody"); err == nil || !strings.Contains(err.Error(), "nobody") {
		t.Errorf("a target that is not there: %v", err)
	}
	cmd := a.command(t.Context(), "debug", "bug", "-i", "--image", Busybox, "--", "sh")
	cmd.Stdin = strings.NewReader("sleep 1; echo sum $((20+3)); exit\n")
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "sum 23") {
		t.Errorf("an attached debugger: %v\n%s", err, out)
	}
	p, err := a.Pod("bug")
	if err != nil || len(p.Spec.EphemeralContainers) != 3 || len(p.Status.EphemeralContainerStatuses) != 3 || !strings.HasPrefix(p.Spec.EphemeralContainers[2].Name, "debugger-") {
		t.Errorf("%v; ephemeral containers %+v", err, p.Spec.EphemeralContainers)
	}
	a.Unplace("bug.yaml")
	a.WaitGone("bug", 30*time.Second)
}

func testGate(t *testing.T, a *Agent) {
	a.Place("gate.yaml", podOf("gate", "", "  readinessGates: [{conditionType: example.com/lb}]"))
	a.Wait("gate", 60*time.Second, all(condition(v1.ContainersReady, "True"),
		condition(v1.PodReady, `False ReadinessGatesNotReady corresponding condition of pod readiness gate "example.com/lb" does not exist.`)))
	a.Must("set-condition", "gate", "example.com/lb=False", "--reason", "Detached")
	a.Wait("gate", 5*time.Second, all(condition("example.com/lb", "False Detached"),
		condition(v1.PodReady, `False ReadinessGatesNotReady the status of pod readiness gate "example.com/lb" is not "True", but False`)))
	a.Must("set-condition", "gate", "example.com/lb=True")
	a.Wait("gate", 5*time.Second, Ready)
	if _, err := a.Berth("set-condition", "gate", "Ready=False"); err == nil || !strings.Contains(err.Error(), "node's own") {
		t.Errorf("the node's own condition can be set: %v", err)
	}
	a.Unplace("gate.yaml")
	a.WaitGone("gate", 30*time.Second)
}

func testRules(t *testing.T, a *Agent) {
	l := a.life("rules")
	rules := `, restartPolicy: Never, restartPolicyRules: [{action: Restart, exitCodes: {operator: In, values: [3]}}]`
	l.Place("rules.yaml", l.manifest("  restartPolicy: Never\n", "", l.container("app", fmt.Sprintf(obedient, "app"), rules)))
	l.Wait("rules", 60*time.Second, Ready)
	l.exits("app", 3)
	l.Wait("rules", 30*time.Second, func(p *v1.Pod) error {
		s := statusOf(p, "app")
		if last := s.LastTerminationState.Terminated; s.RestartCount != 1 || s.State.Running == nil || last == nil || last.ExitCode != 3 {
			return fmt.Errorf("not restarted by its rule")
		}
		return Ready(p)
	})
	l.exits("app", 4)
	l.Wait("rules", 30*time.Second, all(Phase(v1.PodFailed), condition(v1.PodReady, "False PodFailed"), condition(v1.ContainersReady, "False PodFailed")))
	l.stop()
}

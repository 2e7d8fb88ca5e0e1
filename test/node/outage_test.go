package node

import (
	"fmt"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// watched is a pod that would be restarted, or be told not to be ready, if a
// probe that cannot be made counted.
const watched = `    livenessProbe: {exec: {command: ['true']}, periodSeconds: 1, failureThreshold: 1}
    readinessProbe: {exec: {command: ['true']}, periodSeconds: 1, failureThreshold: 1}`

// TestOutage takes the runtime away from below a living agent, and gives it back.
// Nothing is restarted for it, what is told stays true, and what happened
// meanwhile is found.
func TestOutage(t *testing.T) {
	NotOver(t, Embedded, "the runtime ends with the agent, whose process it is in")
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	for _, test := range []struct {
		name string
		run  func(*testing.T, *Agent)
	}{
		{"killed", func(t *testing.T, a *Agent) { testOutage(t, a, "killed", a.KillRuntime) }},
		{"restarted", func(t *testing.T, a *Agent) { testOutage(t, a, "restarted", a.StopRuntime) }},
		{"asked", testAskedMeanwhile}, {"ended", testEndedMeanwhile}, {"both", testBothAway}, {"agent", testAgentKilled},
	} {
		t.Run(test.name, func(t *testing.T) { test.run(t, a.For(t)) })
	}
}

// same says that the pod's container is still instance id, and was never restarted.
func same(id string) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		if s := statusOf(p, "c"); s.ContainerID != id || s.RestartCount != 0 || !s.Ready {
			return fmt.Errorf("container %s, %d restarts, ready: %t; it was %s", s.ContainerID, s.RestartCount, s.Ready, id)
		}
		return Ready(p)
	}
}

func testOutage(t *testing.T, a *Agent, name string, away func()) {
	a.Place(name+".yaml", podOf(name, watched, ""))
	id := statusOf(a.Wait(name, 60*time.Second, Ready), "c").ContainerID
	began := time.Now()
	away()
	Eventually(t, 10*time.Second, func() error {
		if out := a.Must("why", name); !strings.Contains(out, "The container runtime does not answer") || !strings.Contains(out, "Since:") || !strings.Contains(out, "Start the container runtime") {
			return fmt.Errorf("why says\n%s", out)
		}
		return nil
	})
	time.Sleep(6 * time.Second) // probes would have failed, and everything been tried again
	p, err := a.Pod(name)
	if err != nil {
		t.Fatal(err)
	}
	if err := same(id)(p); err != nil {
		t.Errorf("without its runtime: %v", err)
	}
	if out := a.Must("why", name); !strings.Contains(out, "The container runtime does not answer") {
		t.Errorf("why says\n%s", out)
	}
	if _, err := a.Berth("exec", name, "--", "true"); err == nil {
		t.Error("a command ran without a runtime")
	}
	a.StartRuntime()
	Eventually(t, 20*time.Second, func() error {
		out, err := a.Berth("why", name)
		if err != nil || !strings.Contains(out, "runs and is ready") {
			return fmt.Errorf("%w: why says\n%s", err, out)
		}
		return nil
	})
	a.Wait(name, 20*time.Second, same(id))
	a.Must("exec", name, "--", "true")
	if out := a.Must("get", "events", name); strings.Contains(out, "Killing") {
		t.Errorf("an outage of %v has been held against the pod:\n%s", time.Since(began), out)
	}
	a.Unplace(name + ".yaml")
	a.WaitGone(name, 60*time.Second)
}

// testAskedMeanwhile: a pod that is placed and one that is taken away during an
// outage come and go when it is over.
func testAskedMeanwhile(t *testing.T, a *Agent) {
	a.Place("goes.yaml", podOf("goes", "", ""))
	a.Wait("goes", 60*time.Second, Ready)
	a.KillRuntime()
	a.Unplace("goes.yaml")
	a.Place("comes.yaml", podOf("comes", "", ""))
	a.Wait("comes", 20*time.Second, Phase(v1.PodPending))
	Eventually(t, 20*time.Second, func() error {
		for _, name := range []string{"goes", "comes"} {
			if out := a.Must("why", name); !strings.Contains(out, "does not answer") && !strings.Contains(out, "connection") {
				return fmt.Errorf("why %s says\n%s", name, out)
			}
		}
		return nil
	})
	a.StartRuntime()
	a.WaitGone("goes", 60*time.Second)
	a.Wait("comes", 60*time.Second, Ready)
	a.Unplace("comes.yaml")
	a.WaitGone("comes", 60*time.Second)
}

// testEndedMeanwhile: a container that ends during an outage is found dead, and
// started again. containerd does not ask the shim for the exit code: it tells 255.
func testEndedMeanwhile(t *testing.T, a *Agent) {
	a.Place("ended.yaml", podOf("ended", "", ""))
	p := a.Wait("ended", 60*time.Second, Ready)
	pid := a.hostPid(p)
	a.KillRuntime()
	if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	time.Sleep(time.Second)
	a.StartRuntime()
	a.Wait("ended", 60*time.Second, func(p *v1.Pod) error {
		s := statusOf(p, "c")
		if last := s.LastTerminationState.Terminated; s.RestartCount != 1 || last == nil || last.ExitCode != 137 && (Chosen(t) != Containerd || last.ExitCode != 255) {
			return fmt.Errorf("%d restarts, last: %v", s.RestartCount, last)
		}
		return Ready(p)
	})
	a.Unplace("ended.yaml")
	a.WaitGone("ended", 60*time.Second)
}

// hostPid is the first process of the pod's container, on the host: the one in its cgroup.
func (a *Agent) hostPid(p *v1.Pod) int {
	a.T.Helper()
	_, id, _ := strings.Cut(statusOf(p, "c").ContainerID, "://")
	out, err := exec.Command("sh", "-c", fmt.Sprintf(`cat $(find /sys/fs/cgroup -path '*%s*' -path '*%s*' -name cgroup.procs) | sort -n | uniq | head -1`, a.cgroupRoot(), id)).Output()
	if err != nil {
		a.T.Fatal(err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(out)))
	if err != nil {
		a.T.Fatalf("the processes of %s: %q", id, out)
	}
	return pid
}

// testBothAway: an agent that is started before its runtime says what it waits
// for, and since when; pods that run are taken over then.
func testBothAway(t *testing.T, a *Agent) {
	a.Place("both.yaml", podOf("both", watched, ""))
	id := statusOf(a.Wait("both", 60*time.Second, Ready), "c").ContainerID
	a.Kill9()
	a.KillRuntime()
	a.SpawnAlone()
	for _, args := range [][]string{{"get", "pods"}, {"why", "both"}, {"exec", "both", "--", "true"}} {
		Eventually(t, 20*time.Second, func() error {
			_, err := a.Berth(args...)
			if err == nil {
				t.Fatalf("berth %v was answered without a runtime", args)
			}
			if s := err.Error(); !strings.Contains(s, a.CRISocket()+" does not answer since 2") || !strings.Contains(s, "Start the container runtime") {
				return err
			}
			return nil
		})
	}
	a.Must("version")
	a.StartRuntime()
	Eventually(t, 20*time.Second, func() error { _, err := a.Berth("get", "pods"); return err })
	a.Wait("both", 30*time.Second, same(id))
	a.Unplace("both.yaml")
	a.WaitGone("both", 60*time.Second)
}

// testAgentKilled: the agent alone is killed; the next one takes the pods over.
func testAgentKilled(t *testing.T, a *Agent) {
	a.Place("alone.yaml", podOf("alone", watched, ""))
	id := statusOf(a.Wait("alone", 60*time.Second, Ready), "c").ContainerID
	a.Kill9()
	a.Start()
	a.Wait("alone", 30*time.Second, same(id))
	a.Unplace("alone.yaml")
	a.WaitGone("alone", 60*time.Second)
}

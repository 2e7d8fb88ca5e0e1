package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/image"
)

func testDeadline(t *testing.T, a *Agent) {
	const words = "Pod was active on the node longer than the specified deadline"
	a.Place("deadline.yaml", podOf("deadline", "", "  activeDeadlineSeconds: 4"))
	a.Wait("deadline", 60*time.Second, func(p *v1.Pod) error {
		if p.Status.Reason != "DeadlineExceeded" || p.Status.Message != words {
			return fmt.Errorf("reason %q, message %q", p.Status.Reason, p.Status.Message)
		}
		return all(Phase(v1.PodFailed), condition(v1.PodReady, "False PodFailed"))(p)
	})
	a.lifeEvent("deadline", "DeadlineExceeded", words)
	a.Unplace("deadline.yaml")
	a.WaitGone("deadline", 30*time.Second)
}

// testDefinition: a manifest that names its pod's UID changes the pod in place.
func testDefinition(t *testing.T, a *Agent) {
	const other = "docker.io/library/other:2"
	spec, err := image.BusyboxSpec(other)
	if err != nil {
		t.Fatal(err)
	}
	path := a.Dir + "/other.tar"
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := image.WriteOCI(f, spec); err != nil {
		t.Fatal(err)
	}
	if err := a.Load(path); err != nil {
		t.Fatal(err)
	}
	manifest := strings.Replace(podOf("changed", "", "  restartPolicy: Never"), "{name: changed}", "{name: changed, uid: 5ec0ffee-0000-4000-8000-000000000001}", 1)
	a.Place("changed.yaml", manifest)
	was := a.Wait("changed", 60*time.Second, Ready)
	a.Place("changed.yaml", strings.Replace(manifest, Busybox, other, 1))
	is := a.Wait("changed", 30*time.Second, func(p *v1.Pod) error {
		if s := statusOf(p, "c"); s.RestartCount != 1 || s.Image != other {
			return fmt.Errorf("%d restarts, image %s", s.RestartCount, s.Image)
		}
		return Ready(p)
	})
	if is.UID != was.UID || is.Status.PodIP != was.Status.PodIP {
		t.Errorf("UID and address went from %s, %s to %s, %s", was.UID, was.Status.PodIP, is.UID, is.Status.PodIP)
	}
	a.lifeEvent("changed", "Killing", "Container c definition changed, will be restarted")
	a.Unplace("changed.yaml")
	a.WaitGone("changed", 30*time.Second)
}

func testProbeGrace(t *testing.T, a *Agent) {
	l := a.life("probed")
	probe := `, livenessProbe: {exec: {command: [test, "!", -e, /ctl/ill]}, periodSeconds: 1, failureThreshold: 1, terminationGracePeriodSeconds: 2}`
	l.Place("probed.yaml", l.manifest("", "", l.container("app", fmt.Sprintf(obedient, "app"), probe)))
	l.Wait("probed", 60*time.Second, Ready)
	l.exits("ill", 1)
	begun := time.Now()
	l.Wait("probed", 30*time.Second, func(p *v1.Pod) error {
		if last := statusOf(p, "app").LastTerminationState.Terminated; last == nil || last.ExitCode != 137 {
			return fmt.Errorf("not killed")
		}
		return nil
	})
	if took := time.Since(begun); took > 15*time.Second {
		t.Errorf("killed after %v: the pod's grace of 20 s was taken", took)
	}
	if err := os.Remove(filepath.Join(l.ctl, "ill")); err != nil {
		t.Error(err)
	}
	l.lifeEvent("probed", "Killing", "Container app failed liveness probe, will be restarted")
	l.stop()
}

// testSuccessor: the pod that waits for its predecessor is seen, and says so.
func testSuccessor(t *testing.T, a *Agent) {
	l := a.life("next")
	manifest := l.manifest("", "", l.container("app", fmt.Sprintf(obedient, "app"), ""))
	l.Place("next.yaml", manifest)
	was := l.Wait("next", 60*time.Second, Ready)
	l.Place("next.yaml", strings.Replace(manifest, "terminationGracePeriodSeconds: 20", "terminationGracePeriodSeconds: 2", 1))
	Eventually(t, 10*time.Second, func() error {
		pods, err := l.Pods()
		if err != nil {
			return err
		}
		var old, waits bool
		for _, p := range pods {
			old = old || p.UID == was.UID && p.DeletionTimestamp != nil
			waits = waits || p.Name == "next" && p.UID != was.UID && p.Status.Phase == v1.PodPending && strings.Contains(p.Status.Message, "waits for the end of the pod of the same name")
		}
		if !old || !waits {
			return fmt.Errorf("the old pod ends: %v, the new one waits: %v", old, waits)
		}
		return nil
	})
	l.exits("app", 0)
	l.Wait("next", 40*time.Second, func(p *v1.Pod) error {
		if p.UID == was.UID {
			return fmt.Errorf("still the old one")
		}
		return Ready(p)
	})
	l.stop()
}

func testForced(t *testing.T, a *Agent) {
	l := a.life("forced")
	l.Place("forced.yaml", l.manifest("", "", l.container("app", fmt.Sprintf(obedient, "app"), "")))
	l.Wait("forced", 60*time.Second, Ready)
	l.Must("stop", "forced", "--force", "--wait=false", "--grace-period", "5")
	Eventually(t, 4*time.Second, func() error {
		if out := l.Must("get", "pods"); !strings.Contains(strings.Join(strings.Fields(out), " "), "forced 1/1 Terminating") {
			return fmt.Errorf("a pod that is being stopped by force is shown as\n%s", out)
		}
		return nil
	})
	p := l.Wait("forced", 30*time.Second, Phase(v1.PodFailed))
	if p.DeletionTimestamp != nil {
		t.Error("it has ended and stays, but is shown as being deleted")
	}
	l.stop()
}

// testLostMonitor: of a container without its monitor nobody can tell what has
// become of it; it is stopped and made anew.
func testLostMonitor(t *testing.T, a *Agent) {
	NotOver(t, Containerd, "no process of it watches one container: a shim holds a whole pod")
	l := a.life("lost")
	l.Place("lost.yaml", l.manifest("", "", l.container("app", fmt.Sprintf(obedient, "app"), "")))
	p := l.Wait("lost", 60*time.Second, Ready)
	_, id, _ := strings.Cut(statusOf(p, "app").ContainerID, "://")
	out, err := exec.Command("pgrep", "-f", "conmon.*"+id).Output()
	if err != nil {
		t.Fatalf("the monitor of %s: %v", id, err)
	}
	if msg, err := exec.Command("kill", append([]string{"-9"}, strings.Fields(string(out))...)...).CombinedOutput(); err != nil {
		t.Fatalf("kill the monitor: %v: %s", err, msg)
	}
	l.Wait("lost", 60*time.Second, func(p *v1.Pod) error {
		if s := statusOf(p, "app"); s.RestartCount != 1 {
			return fmt.Errorf("not restarted")
		}
		return Ready(p)
	})
	l.stop()
}

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// cgroupFile reads a file of the cgroup of p, or of its container if one is
// named, under the name that the host's version of cgroups gives it.
func (a *Agent) cgroupFile(p *v1.Pod, container, controller, file1, file2 string) (string, error) {
	class := map[v1.PodQOSClass]string{v1.PodQOSBurstable: "burstable", v1.PodQOSBestEffort: "besteffort"}[p.Status.QOSClass]
	path := filepath.Join("/", filepath.Base(a.Dir), "kubepods", class, "pod"+string(p.UID))
	if container != "" {
		id := ""
		for _, list := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
			for _, s := range list {
				if s.Name == container {
					_, id, _ = strings.Cut(s.ContainerID, "://")
				}
			}
		}
		if id == "" {
			return "", fmt.Errorf("container %s has no ID", container)
		}
		path = filepath.Join(path, id)
	}
	file := filepath.Join("/sys/fs/cgroup", controller, path, file1)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		file = filepath.Join("/sys/fs/cgroup", path, file2)
	}
	content, err := os.ReadFile(file)
	return strings.TrimSpace(string(content)), err
}

// limits expects the cgroup of p, or of its container, to limit memory (bytes)
// and cpu (microseconds in each 100 ms).
func (a *Agent) limits(p *v1.Pod, container string, memory, quota int64) error {
	got, err := a.cgroupFile(p, container, "memory", "memory.limit_in_bytes", "memory.max")
	if err != nil {
		return err
	}
	if got != strconv.FormatInt(memory, 10) {
		return fmt.Errorf("memory of %q is limited to %s, want %d", container, got, memory)
	}
	if got, err = a.cgroupFile(p, container, "cpu", "cpu.cfs_quota_us", "cpu.max"); err != nil {
		return err
	}
	if got, _, _ = strings.Cut(got, " "); got != strconv.FormatInt(quota, 10) {
		return fmt.Errorf("cpu of %q is limited to %s, want %d", container, got, quota)
	}
	return nil
}

// resizeCondition returns the pod's condition, nil if it has none.
func resizeCondition(p *v1.Pod, kind v1.PodConditionType) *v1.PodCondition {
	for i := range p.Status.Conditions {
		if p.Status.Conditions[i].Type == kind {
			return &p.Status.Conditions[i]
		}
	}
	return nil
}

func settled(generation int64, restarts int32) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		switch {
		case p.Generation != generation || p.Status.ObservedGeneration != generation:
			return fmt.Errorf("generation %d, observed %d, want %d", p.Generation, p.Status.ObservedGeneration, generation)
		case resizeCondition(p, v1.PodResizePending) != nil || resizeCondition(p, v1.PodResizeInProgress) != nil:
			return fmt.Errorf("the resize is not over")
		case p.Status.ContainerStatuses[0].RestartCount != restarts:
			return fmt.Errorf("%d restarts, want %d", p.Status.ContainerStatuses[0].RestartCount, restarts)
		}
		return Ready(p)
	}
}

const sized = "    resources: {requests: {cpu: 100m, memory: 32Mi}, limits: {cpu: 200m, memory: 64Mi}}"

const mib = 1 << 20

// TestResize changes what running pods may use, and sees it in their cgroups.
func TestResize(t *testing.T) {
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
	for name, test := range map[string]func(*testing.T, *Agent){
		"in place": resizeInPlace, "restart": resizeWithRestart, "deferred": resizeDeferred, "below usage": resizeBelowUsage,
		"pod level": resizePodLevel, "refused": resizeRefused, "sidecar": resizeSidecar,
	} {
		t.Run(name, func(t *testing.T) { test(t, a.For(t)) })
	}
	t.Run("kill", func(t *testing.T) { resizeAndKill(t, a.For(t)) })
}

func resizeInPlace(t *testing.T, a *Agent) {
	a.Place("inplace.yaml", podOf("inplace", sized+"\n    volumeMounts: [{name: show, mountPath: /show}]",
		"  volumes: [{name: show, downwardAPI: {items: [{path: limit, resourceFieldRef: {containerName: c, resource: limits.memory, divisor: 1Mi}}]}}]"))
	p := a.Wait("inplace", 30*time.Second, Ready)
	if err := a.limits(p, "c", 64*mib, 20000); err != nil {
		t.Fatal(err)
	}
	for i, step := range []struct {
		flags         []string
		memory, quota int64
	}{
		{[]string{"--limits", "cpu=400m,memory=128Mi", "--requests", "cpu=200m,memory=64Mi"}, 128 * mib, 40000},
		{[]string{"--limits", "cpu=150m,memory=48Mi", "--requests", "cpu=50m,memory=16Mi"}, 48 * mib, 15000},
		{[]string{"--limits", "memory=96Mi"}, 96 * mib, 15000},
	} {
		if out := a.Must(append([]string{"resize", "inplace"}, step.flags...)...); out != "pod/inplace resized\n" {
			t.Errorf("it says %q", out)
		}
		p = a.Wait("inplace", 20*time.Second, settled(int64(i)+2, 0))
		for _, container := range []string{"", "c"} {
			if err := a.limits(p, container, step.memory, step.quota); err != nil {
				t.Errorf("%v: %v", step.flags, err)
			}
		}
		Eventually(t, 10*time.Second, func() error { // volumes show what is in force
			if got := a.Must("exec", "inplace", "--", "cat", "/show/limit"); got != strconv.FormatInt(step.memory/mib, 10) {
				return fmt.Errorf("the volume shows a limit of %s MiB, want %d", got, step.memory/mib)
			}
			return nil
		})
		got := p.Status.ContainerStatuses[0].Resources.Limits
		if got.Memory().Value() != step.memory || got.Cpu().MilliValue() != step.quota/100 {
			t.Errorf("%v: the status shows %v", step.flags, got)
		}
	}
	shares, err := a.cgroupFile(p, "c", "cpu", "cpu.shares", "cpu.weight")
	if err != nil || shares != "51" && shares != "2" { // 50m; v2 counts from 1 to 10000
		t.Errorf("shares %s, %v", shares, err)
	}
	if events := a.Must("get", "events"); !strings.Contains(events, "ResizeCompleted") || !strings.Contains(events,
		`Pod resize started: {"containers":[{"name":"c","resources":{"limits":{"cpu":"400m","memory":"128Mi"},"requests":{"cpu":"200m","memory":"64Mi"}}}],"generation":2}`) {
		t.Errorf("events:\n%s", events)
	}
	a.Unplace("inplace.yaml")
	a.WaitGone("inplace", 20*time.Second)
}

const restartForMemory = sized + "\n    resizePolicy: [{resourceName: cpu, restartPolicy: NotRequired}, {resourceName: memory, restartPolicy: RestartContainer}]"

func resizeWithRestart(t *testing.T, a *Agent) {
	a.Place("again.yaml", podOf("again", restartForMemory, ""))
	a.Wait("again", 30*time.Second, Ready)
	a.Must("resize", "again", "--limits", "cpu=300m")
	a.Wait("again", 20*time.Second, settled(2, 0))
	a.Must("resize", "again", "--limits", "memory=96Mi")
	p := a.Wait("again", 20*time.Second, settled(3, 1))
	if err := a.limits(p, "c", 96*mib, 30000); err != nil {
		t.Error(err)
	}
	a.Must("resize", "again", "--limits", "memory=48Mi")
	p = a.Wait("again", 20*time.Second, settled(4, 2))
	for _, container := range []string{"", "c"} {
		if err := a.limits(p, container, 48*mib, 30000); err != nil {
			t.Error(err)
		}
	}
	if events := a.Must("get", "events"); !strings.Contains(events, "Container c resize requires restart") {
		t.Errorf("events:\n%s", events)
	}
	a.Unplace("again.yaml")
	a.WaitGone("again", 20*time.Second)
}

// nodeMemory is what the node can give, in MiB.
func nodeMemory(t *testing.T) int64 {
	t.Helper()
	body, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		t.Fatal(err)
	}
	kib, err := strconv.ParseInt(strings.Fields(string(body))[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kib / 1024
}

func deferredIs(p *v1.Pod) error {
	c := resizeCondition(p, v1.PodResizePending)
	if c == nil || c.Reason != v1.PodReasonDeferred || !strings.Contains(c.Message, "Node didn't have enough resource: memory") || c.ObservedGeneration != 2 {
		return fmt.Errorf("not deferred: %+v", c)
	}
	return nil
}

func resizeDeferred(t *testing.T, a *Agent) {
	a.Place("holder.yaml", podOf("holder", fmt.Sprintf("    resources: {requests: {memory: %dMi}}", nodeMemory(t)-600), ""))
	a.Place("waits.yaml", podOf("waits", "    resources: {requests: {memory: 32Mi}}", ""))
	a.Wait("holder", 30*time.Second, Ready)
	a.Wait("waits", 30*time.Second, Ready)
	if _, err := a.Berth("resize", "waits", "--requests", "memory=700Mi"); err == nil || !strings.Contains(err.Error(), "as soon as there is room") {
		t.Errorf("it says %v", err)
	}
	p := a.Wait("waits", 10*time.Second, deferredIs)
	if got := p.Status.ContainerStatuses[0].AllocatedResources.Memory().Value(); got != 32*mib {
		t.Errorf("allocated %d", got)
	}
	a.why("waits", "no room", "Node didn't have enough resource: memory")
	a.Kill9()
	a.Start()
	a.Wait("waits", 10*time.Second, deferredIs)
	a.Unplace("holder.yaml")
	p = a.Wait("waits", 20*time.Second, settled(2, 0))
	if got := p.Status.ContainerStatuses[0].AllocatedResources.Memory().Value(); got != 700*mib {
		t.Errorf("allocated %d", got)
	}
	a.WaitGone("holder", 20*time.Second)
	a.Unplace("waits.yaml")
	a.WaitGone("waits", 20*time.Second)
}

func resizeBelowUsage(t *testing.T, a *Agent) {
	a.Place("full.yaml", podOf("full", sized, ""))
	a.Wait("full", 30*time.Second, Ready)
	a.Must("exec", "full", "--", "dd", "if=/dev/zero", "of=/dev/shm/x", "bs=1M", "count=40")
	if _, err := a.Berth("resize", "full", "--limits", "memory=32Mi"); err == nil || !strings.Contains(err.Error(), "below current usage") {
		t.Errorf("it says %v", err)
	}
	p := a.Wait("full", 10*time.Second, func(p *v1.Pod) error {
		c := resizeCondition(p, v1.PodResizeInProgress)
		if c == nil || c.Reason != v1.PodReasonError || !strings.Contains(c.Message, `cannot decrease memory limits: [attempting to set pod memory limit (33554432) below current usage (`) {
			return fmt.Errorf("no error: %+v", c)
		}
		return nil
	})
	if err := a.limits(p, "c", 64*mib, 20000); err != nil {
		t.Error(err)
	}
	a.why("full", "cannot be put in force")
	a.Must("exec", "full", "--", "rm", "/dev/shm/x")
	p = a.Wait("full", 60*time.Second, settled(2, 0))
	if err := a.limits(p, "c", 32*mib, 20000); err != nil {
		t.Error(err)
	}
	a.Unplace("full.yaml")
	a.WaitGone("full", 20*time.Second)
}

func resizePodLevel(t *testing.T, a *Agent) {
	a.Place("whole.yaml", podOf("whole", "", "  resources: {requests: {cpu: 100m, memory: 64Mi}, limits: {cpu: 200m, memory: 64Mi}}"))
	p := a.Wait("whole", 30*time.Second, Ready)
	for _, container := range []string{"", "c"} { // a container without limits is held to the pod's
		if err := a.limits(p, container, 64*mib, 20000); err != nil {
			t.Error(err)
		}
	}
	a.Must("resize", "whole", "--pod", "--requests", "memory=96Mi", "--limits", "cpu=500m,memory=96Mi")
	p = a.Wait("whole", 20*time.Second, settled(2, 0))
	for _, container := range []string{"", "c"} {
		if err := a.limits(p, container, 96*mib, 50000); err != nil {
			t.Error(err)
		}
	}
	if r := p.Status.Resources; r == nil || r.Limits.Cpu().MilliValue() != 500 || p.Status.AllocatedResources.Memory().Value() != 96*mib {
		t.Errorf("the status shows %v, %v", r, p.Status.AllocatedResources)
	}
	a.Unplace("whole.yaml")
	a.WaitGone("whole", 20*time.Second)
}

func resizeRefused(t *testing.T, a *Agent) {
	a.Place("never.yaml", podOf("never", sized, ""))
	a.Wait("never", 30*time.Second, Ready)
	for flags, want := range map[string]string{
		"--requests cpu=1":                      "must be less than or equal to cpu limit",
		"--limits memory=32Mi,cpu=100m":         "QOS Class may not change", // requests and limits would be equal
		"-c other --limits cpu=1":               "no container other",
		"--limits ephemeral-storage=1Gi":        "give cpu=N",
		"--requests memory=x":                   "no quantity",
		"--requests cpu=100m --limits cpu=200m": "", // what it has: nothing to do
	} {
		_, err := a.Berth(append([]string{"resize", "never"}, strings.Fields(flags)...)...)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", flags, err, want)
		}
	}
	p, err := a.Pod("never")
	if err != nil || p.Generation > 1 || resizeCondition(p, v1.PodResizePending) != nil {
		t.Errorf("generation %d, %v", p.Generation, err)
	}
	a.Unplace("never.yaml")
	a.WaitGone("never", 20*time.Second)
}

func resizeSidecar(t *testing.T, a *Agent) {
	sidecar := fmt.Sprintf(`  initContainers:
  - name: side
    image: %s
    restartPolicy: Always
    command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 1 & wait $!; done']
%s`, Busybox, sized)
	a.Place("side.yaml", podOf("side", sized, sidecar))
	a.Wait("side", 30*time.Second, Ready)
	a.Must("resize", "side", "-c", "side", "--limits", "cpu=300m,memory=80Mi")
	p := a.Wait("side", 20*time.Second, settled(2, 0))
	if err := a.limits(p, "side", 80*mib, 30000); err != nil {
		t.Error(err)
	}
	if err := a.limits(p, "", 144*mib, 50000); err != nil {
		t.Error(err)
	}
	if n := p.Status.InitContainerStatuses[0].RestartCount; n != 0 {
		t.Errorf("the sidecar was restarted %d times", n)
	}
	a.Unplace("side.yaml")
	a.WaitGone("side", 20*time.Second)
}

// resizeAndKill kills the agent at the moments around a resize.
// settledAfterKill is settled. containerd gives up a start whose caller is killed,
// and tells of a container that has failed: it has restarted once more for each.
func settledAfterKill(a *Agent, generation int64, restarts int32) func(*v1.Pod) error {
	most := restarts
	if Chosen(a.T) == Containerd {
		most *= 2
	}
	return func(p *v1.Pod) error {
		err := settled(generation, restarts)(p)
		for more := restarts + 1; err != nil && more <= most; more++ {
			if settled(generation, more)(p) == nil {
				err = nil
			}
		}
		return err
	}
}

func resizeAndKill(t *testing.T, a *Agent) {
	a.Place("k1.yaml", podOf("k1", sized, ""))
	a.Place("k2.yaml", podOf("k2", restartForMemory, ""))
	a.Wait("k1", 30*time.Second, Ready)
	a.Wait("k2", 30*time.Second, Ready)
	for i, wait := range []time.Duration{0, 20 * time.Millisecond, 60 * time.Millisecond, 150 * time.Millisecond, 400 * time.Millisecond} {
		memory := fmt.Sprintf("memory=%dMi", 80+16*(i%2)+i)
		a.Must("resize", "k1", "--wait=false", "--limits", memory)
		a.Must("resize", "k2", "--wait=false", "--limits", memory)
		time.Sleep(wait)
		a.Kill9()
		a.Start()
		for name, restarts := range map[string]int32{"k1": 0, "k2": int32(i) + 1} {
			p := a.Wait(name, 30*time.Second, settledAfterKill(a, int64(i)+2, restarts))
			for _, container := range []string{"", "c"} {
				if err := a.limits(p, container, int64(80+16*(i%2)+i)*mib, 20000); err != nil {
					t.Errorf("%s, killed after %v: %v", name, wait, err)
				}
			}
		}
	}
	for _, name := range []string{"k1", "k2"} {
		a.Unplace(name + ".yaml")
		a.WaitGone(name, 20*time.Second)
	}
}

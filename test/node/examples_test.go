package node

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// example places examples/NAME.yaml in the manifest directory and takes it
// away, and waits for its end, when the test does.
func example(t *testing.T, a *Agent, name string) {
	t.Helper()
	body, err := os.ReadFile(filepath.Join("../../examples", name+".yaml"))
	if err != nil {
		t.Fatal(err)
	}
	a.Place(name+".yaml", string(body))
	t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(a.Manifests, name+".yaml")); err == nil {
			a.Unplace(name + ".yaml")
		}
		a.WaitGone(name, 30*time.Second)
	})
}

// criContainers lists the containers of a pod as the CRI socket tells them.
func criContainers(t *testing.T, a *Agent, pod string) []*runtimeapi.Container {
	t.Helper()
	rt, _ := a.CRI()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	r, err := rt.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{LabelSelector: map[string]string{"io.kubernetes.pod.name": pod}}})
	if err != nil {
		t.Fatal(err)
	}
	return r.Containers
}

// criStatus returns the CRI status of the newest instance of a container.
func criStatus(t *testing.T, a *Agent, pod, container string) *runtimeapi.ContainerStatus {
	t.Helper()
	rt, _ := a.CRI()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	var newest *runtimeapi.Container
	for _, c := range criContainers(t, a, pod) {
		if c.Metadata.Name == container && (newest == nil || c.Metadata.Attempt > newest.Metadata.Attempt) {
			newest = c
		}
	}
	if newest == nil {
		t.Fatalf("the CRI socket knows no container %s of pod %s", container, pod)
	}
	r, err := rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{ContainerId: newest.Id})
	if err != nil {
		t.Fatal(err)
	}
	return r.Status
}

func get(url string) (string, error) {
	c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(url)
	if err != nil {
		return "", err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(io.LimitReader(r.Body, 1<<20))
	if err == nil && r.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s", r.Status)
	}
	return string(body), err
}

func containerStatus(p *v1.Pod, name string) v1.ContainerStatus {
	for _, l := range [][]v1.ContainerStatus{p.Status.InitContainerStatuses, p.Status.ContainerStatuses} {
		for _, s := range l {
			if s.Name == name {
				return s
			}
		}
	}
	return v1.ContainerStatus{}
}

// TestExamples runs every manifest of examples/ on one agent, once with each
// OCI runtime, and sees that nothing is left on the host afterwards.
func TestExamples(t *testing.T) {
	binary := Binary(t, "BERTH_BIN")
	for _, oci := range []string{"crun", "runc"} {
		t.Run(oci, func(t *testing.T) {
			before, marks := ReadHost(t), []string(nil)
			t.Cleanup(func() { // runs after the agent's own clean-up
				if added := ReadHost(t).Added(before, marks); len(added) > 0 {
					t.Errorf("left behind on the host:\n%s", strings.Join(added, "\n"))
				}
			})
			a := New(t, binary)
			a.Flags = []string{"--oci-runtime", oci}
			a.Start()
			marks = a.Marks()
			a.ImportBusybox()
			covered := map[string]func(*testing.T, *Agent){
				"web": testWeb, "init-sidecar": testInitSidecar, "completes": testCompletes, "crash-loop": testCrashLoop,
				"shared-volume": testSharedVolume, "host-privileged": testHostPrivileged, "shared-pid": testSharedPID, "oom": testOOM, "hooks": testHooks,
			}
			files, err := filepath.Glob("../../examples/*.yaml")
			if err != nil || len(files) < 8 {
				t.Fatalf("examples: %v, %v", files, err)
			}
			for _, f := range files {
				name := strings.TrimSuffix(filepath.Base(f), ".yaml")
				test, ok := covered[name]
				if !ok {
					t.Errorf("examples/%s.yaml is asserted by no test", name)
					continue
				}
				t.Run(name, func(t *testing.T) {
					test(t, a.For(t))
				})
			}
		})
	}
}

func testWeb(t *testing.T, a *Agent) {
	example(t, a, "web")
	p := a.Wait("web", 30*time.Second, Ready)
	page, err := get("http://" + p.Status.PodIP + ":8080/")
	if err != nil || !strings.Contains(page, "It works") {
		t.Fatalf("the page through the pod network: %q, %v", page, err)
	}
	if s := criStatus(t, a, "web", "web"); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING || cmp.Or(s.Image.UserSpecifiedImage, s.Image.Image) != Busybox {
		t.Errorf("CRI says %v, image %v", s.State, s.Image)
	}
	out := a.Must("exec", "web", "--", "id", "-u")
	if strings.TrimSpace(out) != "1000" {
		t.Errorf("id -u in the container says %q", out)
	}
	// A changed ConfigMap reaches the running pod within a second, without a restart.
	body, err := os.ReadFile(filepath.Join(a.Manifests, "web.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	a.Place("web.yaml", strings.Replace(string(body), "It works", "It changed", 1))
	changed := time.Now()
	Eventually(t, 10*time.Second, func() error {
		page, err := get("http://" + p.Status.PodIP + ":8080/")
		if err == nil && !strings.Contains(page, "It changed") {
			err = fmt.Errorf("still %q", page)
		}
		return err
	})
	t.Logf("the changed page arrived after %v", time.Since(changed).Round(time.Millisecond))
	if n := containerStatus(a.Wait("web", 5*time.Second, Ready), "web").RestartCount; n != 0 {
		t.Errorf("restart count is %d after a ConfigMap update", n)
	}
}

func testInitSidecar(t *testing.T, a *Agent) {
	example(t, a, "init-sidecar")
	p := a.Wait("init-sidecar", 30*time.Second, Ready)
	if s := containerStatus(p, "prepare"); s.State.Terminated == nil || s.State.Terminated.Reason != "Completed" {
		t.Errorf("prepare: %+v", s.State)
	}
	if s := containerStatus(p, "clock"); s.State.Running == nil || s.Started == nil || !*s.Started {
		t.Errorf("clock: %+v", s)
	}
	Eventually(t, 5*time.Second, func() error {
		out := a.Must("logs", "init-sidecar", "-c", "main")
		if out != "prepared\nclock runs\n" {
			return fmt.Errorf("main's log is %q", out)
		}
		return nil
	})
	if s := criStatus(t, a, "init-sidecar", "prepare"); s.State != runtimeapi.ContainerState_CONTAINER_EXITED || s.ExitCode != 0 {
		t.Errorf("CRI says of prepare: %v %d", s.State, s.ExitCode)
	}
	// The main container is stopped before the sidecar.
	order := filepath.Join(a.Dir, "root/pods", string(p.UID), "volumes/kubernetes.io~empty-dir/work/order")
	got := make(chan string, 1)
	go func() {
		last := ""
		for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
			body, err := os.ReadFile(order)
			if err != nil && last != "" {
				break
			}
			if err == nil {
				last = string(body)
			}
		}
		got <- last
	}()
	a.Unplace("init-sidecar.yaml")
	if order := <-got; order != "main stopped\nclock stopped\n" {
		t.Errorf("stop order: %q", order)
	}
}

func testCompletes(t *testing.T, a *Agent) {
	example(t, a, "completes")
	p := a.Wait("completes", 30*time.Second, Phase(v1.PodSucceeded))
	s := containerStatus(p, "work").State.Terminated
	if s == nil || s.ExitCode != 0 || s.Reason != "Completed" || strings.TrimSpace(s.Message) != "42" {
		t.Errorf("terminated state: %+v", s)
	}
	if out := a.Must("logs", "completes"); out != "6 x 7 = 42\n" {
		t.Errorf("logs: %q", out)
	}
	if s := criStatus(t, a, "completes", "work"); s.Reason != "Completed" {
		t.Errorf("CRI's reason is %q", s.Reason)
	}
	if out := a.Must("why", "completes"); !strings.Contains(strings.ToLower(out), "complete") {
		t.Errorf("why says %q", out)
	}
}

func testCrashLoop(t *testing.T, a *Agent) {
	example(t, a, "crash-loop")
	p := a.Wait("crash-loop", 40*time.Second, func(p *v1.Pod) error {
		s := containerStatus(p, "broken")
		if s.RestartCount < 1 || s.State.Waiting == nil || s.State.Waiting.Reason != "CrashLoopBackOff" {
			return fmt.Errorf("not yet in its second back-off")
		}
		return nil
	})
	s := containerStatus(p, "broken")
	if last := s.LastTerminationState.Terminated; last == nil || last.ExitCode != 3 || last.Reason != "Error" || !strings.Contains(last.Message, "cannot find my configuration") {
		t.Errorf("last state: %+v", last)
	}
	out := a.Must("why", "crash-loop")
	if !strings.Contains(out, "3") || !strings.Contains(strings.ToLower(out), "back-off") && !strings.Contains(strings.ToLower(out), "again") {
		t.Errorf("why does not tell the exit code and what is next: %q", out)
	}
	if out := a.Must("logs", "crash-loop", "--previous"); !strings.Contains(out, "cannot find my configuration") {
		t.Errorf("logs --previous: %q", out)
	}
	if s := criStatus(t, a, "crash-loop", "broken"); s.ExitCode != 3 {
		t.Errorf("CRI's exit code is %d", s.ExitCode)
	}
}

func testSharedVolume(t *testing.T, a *Agent) {
	example(t, a, "shared-volume")
	a.Wait("shared-volume", 30*time.Second, Ready)
	Eventually(t, 10*time.Second, func() error {
		if out := a.Must("logs", "shared-volume", "-c", "reader", "--tail", "3"); !strings.Contains(out, "line ") {
			return fmt.Errorf("the reader has read %q", out)
		}
		return nil
	})
	if out, err := a.Berth("exec", "shared-volume", "-c", "reader", "--", "sh", "-c", "echo x > /in/y"); err == nil {
		t.Errorf("a read-only mount could be written: %q", out)
	}
	if n := len(criContainers(t, a, "shared-volume")); n != 2 {
		t.Errorf("CRI lists %d containers", n)
	}
}

func testHostPrivileged(t *testing.T, a *Agent) {
	example(t, a, "host-privileged")
	p := a.Wait("host-privileged", 30*time.Second, Ready)
	hostNet, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if out := a.Must("exec", "host-privileged", "--", "readlink", "/proc/self/ns/net"); strings.TrimSpace(out) != hostNet {
		t.Errorf("network namespace in the container is %q, the host's %q", out, hostNet)
	}
	if out := a.Must("exec", "host-privileged", "--", "cat", fmt.Sprintf("/proc/%d/comm", os.Getpid())); out == "" {
		t.Error("the host's processes are not seen")
	}
	host, err := os.ReadFile("/etc/hostname")
	if err == nil {
		if out := a.Must("exec", "host-privileged", "--", "cat", "/host/etc/hostname"); out != string(host) {
			t.Errorf("/host/etc/hostname is %q, the host's %q", out, host)
		}
	}
	if s := criStatus(t, a, "host-privileged", "tool"); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("CRI says %v", s.State)
	}
	if !p.Spec.HostNetwork {
		t.Error("spec lost hostNetwork")
	}
}

func testSharedPID(t *testing.T, a *Agent) {
	example(t, a, "shared-pid")
	a.Wait("shared-pid", 30*time.Second, Ready)
	Eventually(t, 10*time.Second, func() error {
		if out := a.Must("logs", "shared-pid", "-c", "watcher"); !strings.Contains(out, "I see the worker") {
			return fmt.Errorf("the watcher says %q", out)
		}
		return nil
	})
	if s := criStatus(t, a, "shared-pid", "watcher"); s.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("CRI says %v", s.State)
	}
}

func testOOM(t *testing.T, a *Agent) {
	example(t, a, "oom")
	p := a.Wait("oom", 60*time.Second, func(p *v1.Pod) error {
		s := containerStatus(p, "greedy")
		for _, state := range []v1.ContainerState{s.State, s.LastTerminationState} {
			if state.Terminated != nil && state.Terminated.Reason == "OOMKilled" && state.Terminated.ExitCode == 137 {
				return nil
			}
		}
		return fmt.Errorf("greedy is not OOMKilled")
	})
	if s := containerStatus(p, "calm"); s.RestartCount != 0 || s.State.Running == nil {
		t.Errorf("the neighbour was harmed: %+v", s)
	}
	for _, c := range criContainers(t, a, "oom") {
		if c.Metadata.Name == "calm" && c.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Errorf("CRI says of calm: %v", c.State)
		}
	}
}

func testHooks(t *testing.T, a *Agent) {
	const dir = "/tmp/berth-hooks-example"
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	example(t, a, "hooks")
	a.Wait("hooks", 30*time.Second, Ready)
	a.Unplace("hooks.yaml")
	a.WaitGone("hooks", 30*time.Second)
	body, err := os.ReadFile(dir + "/hooks")
	if err != nil || string(body) != "started\nstopping\n" {
		t.Errorf("hooks wrote %q, %v", body, err)
	}
}

package kubelet

import (
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/hostgroup"
	"github.com/berthd/berth/test/patience"
)

// TestKubelet sees a node come up and all that its pods can do.
func TestKubelet(t *testing.T) {
	began := time.Now()
	l := open(t)
	defer l.report(began)
	l.check("the node becomes Ready", (*lab).nodeReady)
	if t.Failed() {
		return
	}
	t.Run("pods", func(t *testing.T) {
		l := l.on(t)
		l.beside("a Deployment of 3 with startup (exec), readiness (HTTP), liveness (gRPC, TCP) probes; rollout and back", (*lab).deployment)
		l.beside("logs, -f, --previous, --tail, --timestamps", (*lab).logs)
		l.beside("exec: output, exit code, stdin, a terminal; a failing command", (*lab).exec)
		l.beside("attach with stdin", (*lab).attach)
		l.beside("port-forward", (*lab).portForward)
		l.beside("cp, there and back", (*lab).copy)
		l.beside("ConfigMap, Secret, downward API, projected token, emptyDir (disk, memory), subPath; updates arrive", (*lab).volumes)
		l.beside("init container and native sidecar in order, both ways", (*lab).initAndSidecar)
		l.beside("kubectl debug: an ephemeral container sees its target's processes", (*lab).debug)
		l.beside("a failing liveness probe restarts; back-off; previous logs", (*lab).liveness)
		l.beside("resize in place, of a container and of a pod", (*lab).resize)
		l.beside("hostUsers: false", (*lab).userNamespace)
		l.beside("an image as a volume", (*lab).imageVolume)
		l.beside("a Job succeeds, one fails", (*lab).jobs)
		l.beside("OOMKilled, termination message, exit codes", (*lab).endings)
		l.beside("postStart and preStop hooks; grace period", (*lab).hooks)
		l.beside("security context: user, groups, read-only root, capabilities, seccomp, no_new_privs", (*lab).security)
		l.beside("host network, host PID, host port; shared PID namespace", (*lab).hostNamespaces)
		l.beside("a static pod and its mirror", (*lab).staticPod)
		l.beside("images: pull from a registry with a secret, ErrImageNeverPull, ErrImagePull", (*lab).pulls)
		l.beside("a RuntimeClass of its own; an unknown one is refused", (*lab).runtimeClass)
	})
	l.check("kubelet restarted: pods unharmed", (*lab).kubeletRestart)
	l.check("runtime killed (SIGKILL) while pods begin and end, three times: the others are unharmed", (*lab).runtimeKilled)
	l.check("node stats: summary, cadvisor and resource metrics", (*lab).statsFromCadvisor)
	l.check("kubelet with EventedPLEG, CRIListStreaming, PodAndContainerStatsFromCRI and other alpha gates", (*lab).alphaGates)
	l.check("everything deleted: nothing is left", (*lab).nothingLeft)
}

// report writes the outcome of every check where $BERTH_KUBELET_RESULTS says.
func (l *lab) report(began time.Time) {
	path := os.Getenv("BERTH_KUBELET_RESULTS")
	if path == "" {
		return
	}
	commit, err := exec.Command("git", "-c", "safe.directory=*", "describe", "--always", "--dirty").Output()
	if err != nil {
		commit = []byte("unknown")
	}
	var b strings.Builder
	fmt.Fprintf(&b, "# The upstream kubelet on %s\n\n`make kubelet-on-berth`, commit %s, %s, %.0f s. Kubelet, API server, controller manager and scheduler 1.36.3, etcd 3.6.8.\n"+
		"Checks of pods run beside each other, so their seconds do not add up.\n\n| check | seconds | outcome |\n|---|---|---|\n",
		l.runtime.Name, strings.TrimSpace(string(commit)), time.Now().UTC().Format("2006-01-02"), time.Since(began).Seconds())
	for _, r := range *l.results {
		outcome := "holds"
		if r.err {
			outcome = "**fails**"
		}
		fmt.Fprintf(&b, "| %s | %.1f | %s |\n", r.name, r.took.Seconds(), outcome)
	}
	if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
		l.t.Error(err)
	}
}

// node reads the node.
func (l *lab) node() (*v1.Node, error) {
	out, err := l.try("", "get", "node", nodeName, "-o", "json")
	if err != nil {
		return nil, err
	}
	n := &v1.Node{}
	return n, json.Unmarshal([]byte(out), n)
}

func (l *lab) awaitReady(since time.Time) *v1.Node {
	l.t.Helper()
	for end := time.Now().Add(patience.For(90 * time.Second)); ; time.Sleep(300 * time.Millisecond) {
		n, err := l.node()
		why := fmt.Sprint(err)
		if err == nil {
			for _, c := range n.Status.Conditions {
				if c.Type == v1.NodeReady {
					if c.Status == v1.ConditionTrue && c.LastHeartbeatTime.After(since) {
						return n
					}
					why = c.Message
				}
			}
		}
		if time.Now().After(end) {
			l.t.Fatalf("the node is not ready: %s\nthe kubelet's log:\n%s", why, l.kubelet.Tail(40))
		}
	}
}

func (l *lab) nodeReady() {
	n := l.awaitReady(time.Time{})
	if _, ok := l.cri.(onBerth); ok {
		l.expect("the node's runtime version", n.Status.NodeInfo.ContainerRuntimeVersion, "berth://")
	}
	if n.Spec.PodCIDR == "" {
		l.t.Error("the node has no range of pod addresses")
	}
	handlers := map[string]v1.NodeRuntimeHandlerFeatures{}
	for _, h := range n.Status.RuntimeHandlers {
		if h.Features != nil {
			handlers[h.Name] = *h.Features
		}
	}
	f, ok := handlers[""]
	if !ok || f.RecursiveReadOnlyMounts == nil || !*f.RecursiveReadOnlyMounts || f.UserNamespaces == nil || !*f.UserNamespaces {
		l.t.Errorf("features of the runtime handlers: %+v", n.Status.RuntimeHandlers)
	}
	if n.Status.Features == nil || n.Status.Features.SupplementalGroupsPolicy == nil || !*n.Status.Features.SupplementalGroupsPolicy {
		l.t.Errorf("the node's features: %+v", n.Status.Features)
	}
}

// undisturbed returns a function that fails the test if a container of the pods
// is not the one it was: its ID, its start and its restart count.
func (l *lab) undisturbed(pods ...string) func() {
	l.t.Helper()
	facts := func() string {
		var b strings.Builder
		for _, name := range pods {
			p := l.ready(name)
			for _, c := range p.Status.ContainerStatuses {
				fmt.Fprintf(&b, "%s/%s %s %d %v\n", name, c.Name, c.ContainerID, c.RestartCount, c.State.Running)
			}
			fmt.Fprintf(&b, "%s %s\n", name, p.Status.PodIP)
		}
		return b.String()
	}
	before := facts()
	return func() {
		l.t.Helper()
		if after := facts(); after != before {
			l.t.Errorf("pods were disturbed; before:\n%s\nafter:\n%s", before, after)
		}
	}
}

func (l *lab) kubeletRestart() {
	l.apply(simple("steady", forever, "readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}", ""))
	l.ready("steady")
	same := l.undisturbed("steady")
	l.kubelet.Stop(20 * time.Second)
	restarted := time.Now()
	if err := l.kubelet.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.awaitReady(restarted)
	same()
	l.kubelet.Kill()
	l.apply(simple("later", forever, "", ""))
	if err := l.kubelet.Start(); err != nil {
		l.t.Fatal(err)
	}
	l.ready("later")
	l.remove("pod", "later")
	same()
}

func (l *lab) runtimeKilled() {
	same := l.undisturbed("steady")
	lines := func() int { return strings.Count(l.kubectl("logs", "steady"), "\n") }
	before := lines()
	for range 3 {
		l.runtime.Kill()
		l.apply(simple("meanwhile", forever, "", ""))
		l.startRuntime()
		l.ready("meanwhile")
		l.expect("exec after the kill", l.kubectl("exec", "steady", "--", "echo", "alive"), "alive")
		l.runtime.Kill()
		deleted := make(chan error, 1)
		go func() { _, err := l.try("", "delete", "pod", "meanwhile", "--timeout=90s"); deleted <- err }()
		time.Sleep(time.Second)
		l.startRuntime()
		if err := <-deleted; err != nil {
			l.t.Fatal(err)
		}
	}
	if after := lines(); after < before {
		l.t.Errorf("the log has %d lines, and had %d", after, before)
	}
	same()
}

// nothingLeft deletes all pods and looks at the host.
func (l *lab) nothingLeft() {
	l.kubectl("delete", "deployments,jobs,pods", "--all", "--wait", "--timeout=120s")
	for _, f := range l.static() {
		if err := os.Remove(f); err != nil {
			l.t.Error(err)
		}
	}
	for end := time.Now().Add(patience.For(time.Minute)); ; time.Sleep(time.Second) {
		left := l.left()
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			l.t.Fatalf("left on the host: %s", strings.Join(left, "\n"))
		}
	}
}

// left lists what is on the host of pods that are gone.
func (l *lab) left() []string {
	left, err := l.cri.leaks(l.t.Context(), socketOf(l.home))
	if err != nil {
		left = append(left, err.Error())
	}
	if out := l.kubectl("get", "pods", "--no-headers", "-o", "name"); strings.TrimSpace(out) != "" {
		left = append(left, "pods: "+out)
	}
	ids, err := l.criThings()
	if err != nil {
		left = append(left, err.Error())
	}
	left = append(left, ids...)
	groups, err := hostgroup.Below(l.group())
	if err != nil {
		left = append(left, err.Error())
	}
	for _, g := range groups {
		if i := strings.LastIndex(g, "/pod"); i >= 0 {
			left = append(left, "cgroup "+g)
		}
	}
	dirs, err := os.ReadDir(l.home + "/kubelet/pods")
	if err != nil {
		left = append(left, err.Error())
	}
	for _, d := range dirs {
		left = append(left, "directory of pod "+d.Name())
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		left = append(left, err.Error())
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, l.home+"/kubelet/pods") {
			left = append(left, "mount "+line)
		}
	}
	return left
}

// healthy asks the kubelet itself.
func (l *lab) healthy() error {
	r, err := http.Get(l.health)
	if err != nil {
		return err
	}
	defer r.Body.Close()
	if r.StatusCode != http.StatusOK {
		return fmt.Errorf("%s", r.Status)
	}
	return nil
}

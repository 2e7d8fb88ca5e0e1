package cli

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

func withWeb(t *testing.T) *fakeAgent {
	f := newFakeAgent(t)
	f.put(client.PodDetail{Pod: readyPod("web"), Manifest: "/etc/berth/manifests/web.yaml", Explanation: client.Explanation{
		Pod: "default/web", Phase: "Running", Cause: "Container web keeps ending.", Reason: "CrashLoopBackOff", Container: "web",
		Since: time.Now().Add(-30*time.Hour - 30*time.Minute), Next: "It is started again", NextAt: time.Now().Add(30*time.Hour + 30*time.Minute), Advice: "Read its log.",
		Containers: []client.ContainerState{{Name: "web", State: "waiting", Detail: "exit code 1"}}}})
	f.events = []v1.Event{{ObjectMeta: metav1.ObjectMeta{Name: "e1", Namespace: "default"}, Type: "Normal", Reason: "Started", Message: "Container started", Count: 1,
		InvolvedObject: v1.ObjectReference{Kind: "Pod", Name: "web"}, LastTimestamp: metav1.NewTime(time.Now().Add(-30*time.Hour - 30*time.Minute))}}
	f.images = []client.Image{{ID: "sha256:0123456789abcdef", Tags: []string{"docker.io/library/busybox:1.36"}, Size: 4261550, InUse: 2}}
	return f
}

// TestOutputs runs commands that only show something.
func TestOutputs(t *testing.T) {
	f := withWeb(t)
	for _, c := range []struct {
		args string
		code int
		out  string // a whole text if it ends in a newline, else a part
		err  string // a part
	}{
		{"get pods", 0, "NAME   READY   STATUS    RESTARTS   AGE\nweb    2/2     Running   0          30h\n", ""},
		{"get pods -A -o wide", 0, "NAMESPACE   NAME   READY   STATUS    RESTARTS   AGE   IP         NODE\ndefault     web    2/2     Running   0          30h   10.0.0.2   node\n", ""},
		{"get pods -o name", 0, "pod/web\n", ""},
		{"get pods none", 1, "", "error: there is no pod default/none"},
		{"get pods -n empty", 0, "", "No pods in namespace empty."},
		{"get pods -o xml", 1, "", `unknown output format "xml"`},
		{"get pods -A web", 1, "", "use -n NAMESPACE"},
		{"get images", 0, "IMAGE                       TAG    IMAGE ID        SIZE     IN USE\ndocker.io/library/busybox   1.36   0123456789abc   4.26MB   2\n", ""},
		{"get images -o name", 0, "docker.io/library/busybox:1.36\n", ""},
		{"images ls -o json", 0, `"kind": "List"`, ""},
		{"get events", 0, "LAST SEEN   TYPE     REASON    OBJECT    MESSAGE\n30h         Normal   Started   pod/web   Container started\n", ""},
		{"describe pod web", 0, "    Do:        Read its log.", ""},
		{"why web -o json", 0, `"advice": "Read its log."`, ""},
		{"describe pod web", 0, "/etc/berth/manifests/web.yaml", ""},
		{"logs web --tail 5", 0, "web?tailLines=5\n", "Defaulted container \"web\" out of: web, log"},
		{"logs web -c log --previous --since 90s", 0, "log?previous=true&sinceSeconds=90\n", ""},
		{"logs web --all-containers", 0, "[pod/web/web] web?\n[pod/web/log] log?\n", ""},
		{"logs web --since 5m --since-time 2026-01-01T00:00:00Z", 1, "", "not both"},
		{"stop web", 1, "", "remove that file"},
		{"stop", 1, "", "--all"},
		{"exec web -c web -- exit 7", 7, "", ""},
		{"exec web -c web -- exit 0", 0, "", ""},
		{"exec web -c log -- both", 0, "out of log", "err"},
		{"exec -i web -c web -- cat", 0, "some input", ""},
		{"exec web", 1, "", "berth exec POD -- COMMAND"},
		{"exec none -- true", 1, "", "there is no pod default/none"},
		{"port-forward web x", 1, "", `"x" is not a port`},
		{"images pull a", 0, "a pulled (2kB, sha256:1)\n", "0123456789ab: downloading (2kB)"},
		{"images pull bad", 1, "", "bad: the registry does not know it"},
		{"images import -", 0, "docker.io/library/a:1 imported (10B)\n", ""},
		{"version", 0, "Agent:  berth test", ""},
		{"completion bash", 0, "__start_berth", ""},
		{"completion ksh", 1, "", "bash, zsh or fish"},
		{"__complete logs ", 0, "web", ""},
		{"__complete logs web -c ", 0, "log", ""},
		{"purge", 1, "", "--yes"},
		{"config default", 0, "kind: Configuration", ""},
	} {
		t.Run(c.args, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
			defer cancel()
			args := strings.Fields(c.args)
			if strings.HasSuffix(c.args, " ") {
				args = append(args, "")
			}
			code, out, errOut := f.berth(ctx, "some input", args...)
			whole := strings.HasSuffix(c.out, "\n")
			if code != c.code || whole && out != c.out || !strings.Contains(out, c.out) || !strings.Contains(errOut, c.err) {
				t.Errorf("exit code %d, want %d\n--- out\n%s\n--- want\n%s\n--- err\n%s\n--- want\n%s", code, c.code, out, c.out, errOut, c.err)
			}
		})
	}
}

func TestJSONIsAList(t *testing.T) {
	f := withWeb(t)
	_, out, _ := f.berth(t.Context(), "", "get", "pods", "-A", "-o", "json")
	var list v1.PodList
	if err := json.Unmarshal([]byte(out), &list); err != nil || list.Kind != "List" || len(list.Items) != 1 || list.Items[0].Kind != "Pod" {
		t.Errorf("%v: %s", err, out)
	}
	_, out, _ = f.berth(t.Context(), "", "get", "pods", "web", "-o", "json")
	var p v1.Pod
	if err := json.Unmarshal([]byte(out), &p); err != nil || p.Kind != "Pod" || p.Name != "web" || !strings.Contains(out, `"podIP": "10.0.0.2"`) {
		t.Errorf("%v: %s", err, out)
	}
}

func TestWhy(t *testing.T) {
	f := withWeb(t)
	code, out, _ := f.berth(t.Context(), "", "why", "web")
	out = regexp.MustCompile(`\d+-\d\d-\d\d \d\d:\d\d:\d\d`).ReplaceAllString(out, "TT")
	want := "Pod default/web is not well (Running).\n  Cause:     Container web keeps ending. [CrashLoopBackOff]\n  Container: web\n" +
		"  Since:     30h ago (TT)\n  Next:      It is started again in 30h (TT)\n  Do:        Read its log.\n  Now:       web waiting: exit code 1\n"
	if code != 0 || out != want {
		t.Errorf("exit code %d\n%s\nwant\n%s", code, out, want)
	}
}

func TestNoAgent(t *testing.T) {
	f := &fakeAgent{socket: filepath.Join(t.TempDir(), "none")}
	for _, args := range [][]string{{"get", "pods"}, {"exec", "x", "-c", "c", "--", "true"}, {"run", "-f", "-"}, {"port-forward", "x", "80"}} {
		code, _, errOut := f.berth(t.Context(), "kind: Pod", args...)
		if code != 1 || !strings.Contains(errOut, "berth agent is not running (no socket at "+f.socket+")") || !strings.Contains(errOut, "`berth agent`") {
			t.Errorf("%v: exit code %d: %s", args, code, errOut)
		}
	}
}

func manifestFile(t *testing.T) string {
	path := filepath.Join(t.TempDir(), "pod.yaml")
	if err := os.WriteFile(path, []byte("kind: Pod\napiVersion: v1\nmetadata: {name: one}\nspec: {containers: [{name: c, image: i}]}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// phase makes what is applied come to a phase.
func (f *fakeAgent) become(phase v1.PodPhase, ready bool) {
	f.onApply = func(p *v1.Pod) {
		go func() {
			q := p.DeepCopy()
			q.Status.Phase = phase
			if ready {
				q.Status.Conditions = []v1.PodCondition{{Type: v1.PodReady, Status: v1.ConditionTrue}}
			}
			f.put(client.PodDetail{Pod: *q, Manifest: "run", Explanation: client.Explanation{Cause: "It ended with exit code 3."}})
		}()
	}
}

func TestRun(t *testing.T) {
	path := manifestFile(t)
	for _, c := range []struct {
		name  string
		phase v1.PodPhase
		ready bool
		args  []string
		code  int
		says  string
		stays bool
	}{
		{"ready", v1.PodRunning, true, nil, 0, "pod/one ready", true},
		{"succeeded", v1.PodSucceeded, false, nil, 0, "pod/one Succeeded", true},
		{"failed", v1.PodFailed, false, nil, 1, "It ended with exit code 3.", true},
		{"timeout", v1.PodRunning, false, []string{"--timeout", "700ms"}, 1, "not ready after 700ms", true},
		{"rm", v1.PodSucceeded, false, []string{"--rm"}, 0, "pod/one stopped", false},
		{"rm of a failed one", v1.PodFailed, false, []string{"--rm"}, 1, "pod/one stopped", false},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := newFakeAgent(t)
			f.become(c.phase, c.ready)
			code, out, errOut := f.berth(t.Context(), "", append([]string{"run", "-f", path}, c.args...)...)
			f.mu.Lock()
			_, there := f.pods[client.PodKey{Namespace: "default", Name: "one"}]
			f.mu.Unlock()
			if code != c.code || !strings.Contains(out+errOut, c.says) || there != c.stays {
				t.Errorf("exit code %d, want %d; the pod is there: %v, want %v\n%s\n%s", code, c.code, there, c.stays, out, errOut)
			}
		})
	}
}

// TestRunInterrupted sees that Ctrl-C leaves the pod, says so, and with --rm removes it.
func TestRunInterrupted(t *testing.T) {
	path := manifestFile(t)
	for _, remove := range []bool{false, true} {
		f := newFakeAgent(t)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(300*time.Millisecond, cancel)
		code, _, errOut := f.berth(ctx, "", "run", "-f", path, fmt.Sprintf("--rm=%v", remove))
		f.mu.Lock()
		left := len(f.pods)
		f.mu.Unlock()
		if code != 130 || remove != (left == 0) || !remove && !strings.Contains(errOut, "the pods go on") {
			t.Errorf("--rm=%v: exit code %d, %d pods left: %s", remove, code, left, errOut)
		}
	}
}

func TestRunRefused(t *testing.T) {
	f := newFakeAgent(t)
	code, _, errOut := f.berth(t.Context(), "kind: Pod\nx: 1", "run", "-f", "-")
	if code != 1 || !strings.HasPrefix(errOut, "stdin:3: spec.x: unknown field") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
}

func TestStopAll(t *testing.T) {
	f := withWeb(t)
	f.put(client.PodDetail{Pod: readyPod("job"), Manifest: "run"})
	code, out, errOut := f.berth(t.Context(), "", "stop", "--all", "--grace-period", "5")
	if code != 0 || !strings.Contains(out, "pod/web stopped") || !strings.Contains(out, "pod/job stopped") {
		t.Errorf("exit code %d\n%s\n%s", code, out, errOut)
	}
}

func TestPortForward(t *testing.T) {
	f := withWeb(t)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	ended := make(chan int, 1)
	go func() {
		code := Main(ctx, "test", []string{"--socket", f.socket, "port-forward", "--address", "127.0.0.1", "web", ":8080"}, IO{In: strings.NewReader(""), Out: w, Err: io.Discard})
		w.Close()
		ended <- code
	}()
	buf := make([]byte, 200)
	n, err := r.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	go io.Copy(io.Discard, r)
	addr := regexp.MustCompile(`127\.0\.0\.1:\d+`).FindString(string(buf[:n]))
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("%q: %v", buf[:n], err)
	}
	defer conn.Close()
	if _, err := conn.Write([]byte("ping")); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(conn)
	if err != nil || string(got) != "8080:ping" {
		t.Errorf("%q, %v", got, err)
	}
	cancel()
	if code := <-ended; code != 130 {
		t.Errorf("exit code %d", code)
	}
}

// TestEveryCommandHasHelp checks that each command says what it does and shows an example.
func TestEveryCommandHasHelp(t *testing.T) {
	root := New("test", IO{In: strings.NewReader(""), Out: io.Discard, Err: io.Discard})
	for _, c := range root.Commands() {
		for _, c := range append(c.Commands(), c) {
			if c.Short == "" || c.Example == "" {
				t.Errorf("%s: short %q, example %q", c.CommandPath(), c.Short, c.Example)
			}
		}
	}
}

package crash

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/node"
)

// sampleSize is how many places a sample run kills at.
const sampleSize = 60

const manifest = `apiVersion: v1
kind: ConfigMap
metadata: {name: crash-config}
data: {value: %[1]q}
---
apiVersion: v1
kind: Pod
metadata: {name: crash}
spec:
  terminationGracePeriodSeconds: 3
  hostUsers: %[4]v
  initContainers:
  - name: prepare
    image: ` + node.Busybox + `
    command: [sh, -c, 'echo prepare >> /host/starts; echo done > /work/prepared']
    volumeMounts: [{name: host, mountPath: /host}, {name: work, mountPath: /work}]
  - name: web
    image: ` + node.Busybox + `
    restartPolicy: Always
    command: [sh, -c, 'echo web >> /host/starts; trap "exit 0" TERM; httpd -p 8080 -h /etc/config; while :; do sleep 1 & wait $!; done']
    ports: [{containerPort: 8080, hostPort: %[3]d}]
    volumeMounts: [{name: host, mountPath: /host}, {name: config, mountPath: /etc/config}]
  containers:
  - name: main
    image: ` + node.Busybox + `
    command: [sh, -c, 'echo main >> /host/starts; trap "exit 0" TERM; i=0; while :; do i=$((i+1)); echo "line $i"; if [ -e /host/crash ]; then rm /host/crash; exit 7; fi; sleep 0.1 & wait $!; done']
    resources: {requests: {cpu: 10m, memory: 16Mi}, limits: {cpu: 500m, memory: 64Mi}}
    lifecycle:
      postStart: {exec: {command: [sh, -c, 'echo hook >> /host/hooks']}}
      preStop: {exec: {command: ["true"]}}
    readinessProbe:
      exec: {command: [test, -e, /work/prepared]}
      periodSeconds: 1
    volumeMounts: [{name: host, mountPath: /host}, {name: work, mountPath: /work}, {name: scratch, mountPath: /scratch, subPath: part}, {name: content, mountPath: /content}]
  volumes:
  - {name: scratch, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: content, image: {reference: "` + node.Busybox + `", pullPolicy: IfNotPresent}}
  - {name: work, emptyDir: {}}
  - {name: config, configMap: {name: crash-config}}
  - {name: host, hostPath: {path: %[2]s, type: DirectoryOrCreate}}
`

const hostPort = 18099

// life is one pod's scripted life under an agent that may be killed once.
type life struct {
	*node.Agent
	host     string // the pod's hostPath: what its containers did
	signal   string // where the agent says that it stands at the failpoint
	killedAt string // the step during which it was killed, "" before
	ready    *v1.Pod
	ownUsers bool // the pod has a user namespace of its own
}

// step does one thing to the pod and waits for it to have come about.
type step struct {
	name string
	do   func(*life)
	done func(*life) error
}

var steps = []step{
	{"start", func(*life) {}, func(l *life) error { _, err := l.Berth("get", "pods"); return err }},
	{"run", func(l *life) { l.Place("crash.yaml", l.manifest("one")) }, (*life).isReady},
	{"update", func(l *life) { l.Place("crash.yaml", l.manifest("two")) }, func(l *life) error { return l.serves("two") }},
	{"resize", func(*life) {}, (*life).isResized},
	{"debug", func(*life) {}, (*life).isDebugged},
	{"crash", func(l *life) { l.write("crash", "") }, (*life).hasRestarted},
	{"end", func(l *life) { l.Unplace("crash.yaml") }, (*life).isGone},
}

func (l *life) manifest(value string) string {
	return fmt.Sprintf(manifest, value, l.host, hostPort, !l.ownUsers)
}

func (l *life) write(name, body string) {
	if err := os.WriteFile(filepath.Join(l.host, name), []byte(body), 0o644); err != nil {
		l.T.Fatal(err)
	}
}

func (l *life) read(name string) string {
	body, err := os.ReadFile(filepath.Join(l.host, name))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		l.T.Fatal(err)
	}
	return string(body)
}

func (l *life) isReady() error {
	p, err := l.Pod("crash")
	if err != nil {
		return err
	}
	if err := node.Ready(p); err != nil {
		return fmt.Errorf("%w: %+v", err, p.Status)
	}
	l.ready = p
	return l.serves("one")
}

// serves asks for the ConfigMap's value through the host port.
func (l *life) serves(want string) error { return l.servesAt(hostPort, want) }

func (l *life) servesAt(port int, want string) error {
	c := http.Client{Timeout: time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	r, err := c.Get(fmt.Sprintf("http://127.0.0.1:%d/value", port))
	if err != nil {
		return err
	}
	defer r.Body.Close()
	body, err := io.ReadAll(r.Body)
	if err == nil && string(body) != want {
		err = fmt.Errorf("the host port serves %q, want %q", body, want)
	}
	return err
}

func (l *life) hasRestarted() error {
	p, err := l.Pod("crash")
	if err != nil {
		return err
	}
	for _, s := range p.Status.ContainerStatuses {
		last := s.LastTerminationState.Terminated
		if s.Name == "main" && s.RestartCount == 1 && s.State.Running != nil && last != nil {
			if last.ExitCode != 7 {
				l.T.Fatalf("exit code 7 became %d", last.ExitCode)
			}
			return node.Ready(p)
		}
	}
	return fmt.Errorf("main has not restarted: %+v", p.Status.ContainerStatuses)
}

func (l *life) isGone() error {
	pods, err := l.Pods()
	if err == nil && len(pods) > 0 {
		err = fmt.Errorf("the pod is still there: %+v", pods[0].Status)
	}
	return err
}

// stopped says whether the agent stands at its failpoint.
func (l *life) stopped() bool {
	body, err := os.ReadFile(l.signal)
	return err == nil && len(body) > 0
}

// live leads the pod through all steps, killing the agent when it stands at its failpoint.
func (l *life) live() {
	for _, s := range steps {
		s.do(l)
		deadline := time.Now().Add(45 * time.Second)
		for {
			if l.killedAt == "" && l.stopped() {
				l.killedAt = s.name
				l.Kill9()
				l.Env = nil
				l.Spawn()
				l.comeBack(s.name)
			}
			err := s.done(l)
			if err == nil {
				break
			}
			if time.Now().After(deadline) {
				l.T.Fatalf("step %q, killed at %q: %v\nstarts: %q", s.name, l.killedAt, err, l.read("starts"))
			}
			time.Sleep(10 * time.Millisecond)
		}
		if s.name == "crash" {
			l.logIsWhole()
		}
	}
	if l.killedAt != "" || len(l.Env) == 0 {
		return
	}
	// It may stand there in the clean-up that nobody waits for, or on its way out.
	l.Terminate()
	for end := time.Now().Add(5 * time.Second); !l.stopped() && l.Running() && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond)
	}
	if l.stopped() {
		l.killedAt = "after"
	}
	l.Kill9()
	l.Env = nil
	l.Start()
}

// comeBack checks what must hold from the first answer after the restart: a
// pod that was Ready is Ready, since the same time.
func (l *life) comeBack(during string) {
	node.Eventually(l.T, 30*time.Second, func() error { _, err := l.Berth("get", "pods"); return err })
	if l.ready == nil || during != "update" {
		return
	}
	p, err := l.Pod("crash")
	if err != nil {
		l.T.Fatal(err)
	}
	if err := node.Ready(p); err != nil {
		l.T.Errorf("readiness flipped: %+v", p.Status)
	}
	for _, was := range l.ready.Status.Conditions {
		for _, is := range p.Status.Conditions {
			if was.Type == is.Type && (was.Status != is.Status || !was.LastTransitionTime.Equal(&is.LastTransitionTime)) {
				l.T.Errorf("condition %s changed from %+v to %+v", was.Type, was, is)
			}
		}
	}
}

// logIsWhole sees that each instance of main logged its lines without a gap.
func (l *life) logIsWhole() {
	files, _ := filepath.Glob(l.Dir + "/log/default_crash_*/main/*.log")
	if len(files) != 2 {
		l.T.Errorf("main has %d log files, want 2: %v", len(files), files)
	}
	for _, file := range files {
		f, err := os.Open(file)
		if err != nil {
			l.T.Fatal(err)
		}
		want := 0
		for s := bufio.NewScanner(f); s.Scan(); {
			want++
			if !strings.HasSuffix(s.Text(), fmt.Sprintf(" line %d", want)) {
				l.T.Errorf("%s: line %d is %q", filepath.Base(file), want, s.Text())
				break
			}
		}
		f.Close()
		if want == 0 {
			l.T.Errorf("%s is empty", file)
		}
	}
}

// check sees that the whole life was what it would have been without a kill,
// and that nothing is left of it.
func (l *life) check(before node.Host) {
	if got := sorted(l.read("starts")); got != "main main prepare web" {
		l.T.Errorf("containers started: %q, want main twice, prepare and web once", got)
	}
	if got := strings.Count(l.read("hooks"), "hook"); got < 2 || got > 3 || got == 3 && l.killedAt == "" {
		l.T.Errorf("postStart ran %d times for two starts", got)
	}
	node.Eventually(l.T, 15*time.Second, func() error {
		var left []string
		for _, x := range node.ReadHost(l.T).Added(before, l.Marks()) {
			if !strings.Contains(x, l.Binary) {
				left = append(left, x)
			}
		}
		for _, pattern := range []string{"run/sandboxes/*", "run/containers/*", "run/exits/*", "run/pods/*", "root/pods/*", "root/records/*", "root/cni/attachments/*", "root/images/rw/[^.]*"} {
			found, _ := filepath.Glob(filepath.Join(l.Dir, pattern))
			left = append(left, found...)
		}
		_ = filepath.Walk(l.Dir+"/root/cni", func(path string, i os.FileInfo, err error) error {
			if err == nil && strings.Count(i.Name(), ".") == 3 && !i.IsDir() { // host-local's leases are named after addresses
				left = append(left, path)
			}
			return nil
		})
		if len(left) > 0 {
			return fmt.Errorf("left behind:\n%s", strings.Join(left, "\n"))
		}
		return nil
	})
}

func sorted(lines string) string {
	f := strings.Fields(lines)
	sort.Strings(f)
	return strings.Join(f, " ")
}

// reset makes the host directory and the signal anew.
func (l *life) reset() {
	l.killedAt, l.ready = "", nil
	if err := errors.Join(os.RemoveAll(l.host), os.Mkdir(l.host, 0o755), os.RemoveAll(l.signal)); err != nil {
		l.T.Fatal(err)
	}
}

// TestKilledAnywhere leads a pod through its life once for each place where the
// agent can be killed, killing it there, and checks every promise of surviving.
// BERTH_CRASH=full takes every place, else a sample is taken.
func TestKilledAnywhere(t *testing.T) {
	a := node.New(t, node.Binary(t, "BERTH_FAILPOINT_BIN", "failpoints"))
	l := &life{Agent: a, host: filepath.Join(a.Dir, "host"), signal: filepath.Join(a.Dir, "signal")}
	a.Start()
	a.ImportBusybox()
	l.ownUsers = canMapUsers(a)
	t.Logf("the pod has a user namespace of its own: %v", l.ownUsers)
	l.reset()
	l.live() // once undisturbed: bridge, cgroup tree and directories are there now
	a.Stop()
	a.Start()
	before := node.ReadHost(t)
	l.check(before)
	a.Stop()

	trace := filepath.Join(a.Dir, "trace")
	a.Env = []string{"BERTH_FAILPOINT_TRACE=" + trace}
	l.reset()
	a.Spawn()
	l.live()
	time.Sleep(500 * time.Millisecond)
	a.Stop()
	places := choose(t, trace, sampleSize)
	for _, place := range places {
		t.Run(strings.ReplaceAll(place, "/", "."), func(t *testing.T) {
			l := &life{Agent: a.For(t), host: l.host, signal: l.signal, ownUsers: l.ownUsers}
			l.reset()
			l.Patience = 3 * time.Second // an agent that stands at its failpoint may accept and not answer
			l.Env = []string{"BERTH_FAILPOINT_STOP=" + place, "BERTH_FAILPOINT_SIGNAL=" + l.signal}
			defer l.Stop()
			l.Spawn()
			l.live()
			if l.killedAt == "" {
				t.Logf("%s was not passed this time", place)
			}
			l.check(before)
		})
		if t.Failed() && os.Getenv("BERTH_CRASH") != "full" {
			break
		}
	}
}

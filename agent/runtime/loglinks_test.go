package runtime

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLogLinks(t *testing.T) {
	b := newBench(t)
	b.cfg.LogLinksDir = filepath.Join(t.TempDir(), "containers")
	links := func() (all []string) {
		entries, _ := os.ReadDir(b.cfg.LogLinksDir)
		for _, e := range entries {
			all = append(all, e.Name())
		}
		return all
	}
	id := b.up()
	name := "web_default_main-" + string(id) + ".log"
	if got := links(); !slices.Equal(got, []string{name}) {
		t.Fatalf("links %v", got)
	}
	log := filepath.Join(b.cfg.LogDir, "default_web_u1", "main", "3.log")
	if to, err := os.Readlink(filepath.Join(b.cfg.LogLinksDir, name)); err != nil || to != log {
		t.Errorf("leads to %s, %v", to, err)
	}
	// A start that was killed after the create makes the link all the same, and
	// puts one right that somebody bent.
	link := filepath.Join(b.cfg.LogLinksDir, name)
	for _, bent := range []string{"", "/elsewhere"} {
		if err := os.Remove(link); err != nil {
			t.Fatal(err)
		}
		if bent != "" {
			if err := os.Symlink(bent, link); err != nil {
				t.Fatal(err)
			}
		}
		b.cri.states[string(id)] = cri.ContainerState_CONTAINER_CREATED
		b.must(pod.Action{Op: pod.OpStartContainer, Container: "main", SandboxID: b.seen.Sandboxes[0].ID, Attempt: 3})
		if to, err := os.Readlink(link); err != nil || to != log {
			t.Errorf("leads to %s, %v", to, err)
		}
	}
	b.cri.fail["RemoveContainer"] = status.Error(codes.Unavailable, "later")
	if r := b.do(pod.Action{Op: pod.OpRemoveContainer, Container: "main", ContainerID: id}); r.Err == nil || len(links()) != 0 {
		t.Errorf("the link goes first: %v, %v", r.Err, links())
	}
	if err := b.linkLog(b.pod, &b.pod.Spec.Containers[0], string(id), log); err != nil {
		t.Fatal(err)
	}
	b.must(pod.Action{Op: pod.OpRemoveSandbox, SandboxID: b.seen.Sandboxes[0].ID})
	if got := links(); len(got) != 0 {
		t.Errorf("the sandbox took its containers, not their links: %v", got)
	}
}

func TestLogLinksAreSwept(t *testing.T) {
	b := newBench(t)
	b.cfg.LogLinksDir = t.TempDir()
	there := filepath.Join(b.cfg.LogDir, "default_web_u1", "main")
	if err := os.MkdirAll(there, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(there, "0.log"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, to := range map[string]string{
		"live_x.log": filepath.Join(there, "0.log"), "dangling_x.log": filepath.Join(there, "9.log"),
		"foreign_x.log": "/var/lib/elsewhere/pods/0.log", "beside_x.log": b.cfg.LogDir + "-other/0.log", "not-a-log": filepath.Join(there, "9.log"),
	} {
		if err := os.Symlink(to, filepath.Join(b.cfg.LogLinksDir, name)); err != nil {
			t.Fatal(err)
		}
	}
	left := func() string {
		entries, _ := os.ReadDir(b.cfg.LogLinksDir)
		var names []string
		for _, e := range entries {
			names = append(names, e.Name())
		}
		return strings.Join(names, " ")
	}
	if err := b.SweepLogLinks(); err != nil || left() != "beside_x.log foreign_x.log live_x.log not-a-log" {
		t.Errorf("after the sweep: %s, %v", left(), err)
	}
	if r := b.Do(t.Context(), pod.Desired{Pod: b.pod, Forget: true}, b.seen, pod.Record{}, pod.Action{Op: pod.OpCleanup}); r.Err != nil || left() != "beside_x.log foreign_x.log not-a-log" {
		t.Errorf("after the pod: %s, %v", left(), r.Err)
	}
	if long := LogLink(strings.Repeat("p", 250), "ns", "c", "0123456789"); len(long) != 255 || !strings.HasSuffix(long, ".log") {
		t.Errorf("%d bytes: %s", len(long), long)
	}
	if linkOf(map[string]string{labelPodName: "../x", labelContainerName: "c"}, "id") != "" {
		t.Error("a label leads out of the directory")
	}
}

func TestAttemptsFromLogs(t *testing.T) {
	for name, want := range map[string]int{"3.log": 3, "12.log.20260102-150405.gz": 12, "0.log.20260102-150405": 0, "x.log": -1, "3.txt": -1, "+3.log": -1, "3.logs": -1, ".log": -1} {
		n, ok := logNumber(name)
		if ok != (want >= 0) || ok && int(n) != want {
			t.Errorf("%s: %d, %v", name, n, ok)
		}
	}
	b := newBench(t)
	for _, file := range []string{"main/0.log", "main/4.log.20260102-150405.gz", "side/1.log", "main/junk", "main/7.log"} {
		path := filepath.Join(b.cfg.LogDir, "default_web_u1", file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		var content []byte
		if file != "main/7.log" { // made, never started
			content = []byte("x")
		}
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.observe().Logged; got["main"] != 5 || got["side"] != 2 || len(got) != 2 {
		t.Errorf("logged %v", got)
	}
	id := b.up()
	if b.seen.Logged != nil {
		t.Error("logs are counted although the runtime knows better")
	}
	b.cri.containers[string(id)].Config.Annotations = nil
	b.cri.containers[string(id)].Config.Metadata.Attempt = 0
	if c := b.observe().Containers[0]; c.Attempt != 3 {
		t.Errorf("without annotations: attempt %d", c.Attempt)
	}
}

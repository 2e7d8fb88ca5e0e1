package source

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

// harness runs a Set and keeps what it delivers.
type harness struct {
	*Set
	t    *testing.T
	root string
	stop func()

	mu        sync.Mutex
	pods      map[pod.Source][]pod.Desired
	delivered map[pod.Source]int
	changed   chan struct{}
}

func start(t *testing.T, root string, change func(*Config)) *harness {
	t.Helper()
	h := &harness{t: t, root: root, pods: map[pod.Source][]pod.Desired{}, delivered: map[pod.Source]int{}, changed: make(chan struct{}, 1)}
	cfg := Config{Node: "n", Root: root, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))}
	cfg.Deliver = func(s pod.Source, pods []pod.Desired) {
		h.mu.Lock()
		h.pods[s] = pods
		h.delivered[s]++
		h.mu.Unlock()
		h.poke()
	}
	cfg.Changed = func([]Problem) { h.poke() }
	if change != nil {
		change(&cfg)
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	h.Set = s
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	t.Cleanup(h.stop)
	return h
}

func (h *harness) poke() {
	select {
	case h.changed <- struct{}{}:
	default:
	}
}

func (h *harness) get(name string) *pod.Desired {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, pods := range h.pods {
		for i := range pods {
			if pods[i].Pod.Name == name {
				return &pods[i]
			}
		}
	}
	return nil
}

// until waits for cond, looking again at each delivery.
func (h *harness) until(what string, cond func() bool) {
	h.t.Helper()
	deadline := time.After(10 * time.Second)
	for !cond() {
		select {
		case <-h.changed:
		case <-time.After(20 * time.Millisecond): // the view is replaced before the callback
		case <-deadline:
			h.t.Fatalf("never: %s; pods %v, problems %v", what, h.pods, h.Problems())
		}
	}
}

func manifest(name, image string) string {
	return fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: %s}\nspec: {containers: [{name: c, image: %s}]}\n", name, image)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path+".tmp", []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".tmp", path); err != nil {
		t.Fatal(err)
	}
}

func TestDirectory(t *testing.T) {
	base := t.TempDir()
	dir := filepath.Join(base, "not", "yet")
	h := start(t, t.TempDir(), func(c *Config) { c.Paths = []string{dir} })
	h.until("all sources delivered, empty", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.delivered[pod.SourceFile] == 1 && h.delivered[pod.SourceHTTP] == 1 && h.delivered[pod.SourceRun] == 1
	})
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	a := filepath.Join(dir, "a.yaml")
	write(t, a, manifest("a", "i:1"))
	h.until("a", func() bool { return h.get("a") != nil })
	first := h.get("a")
	p := first.Pod
	if p.Spec.NodeName != "n" || p.Annotations[pod.AnnotationSource] != "file" || p.Annotations[pod.AnnotationHash] != string(p.UID) || p.Annotations[pod.AnnotationSeen] == "" || p.UID == "" {
		t.Errorf("not a static pod: %+v", p.ObjectMeta)
	}

	f, err := os.Create(filepath.Join(dir, "b.yaml")) // while it is open it is not read
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, manifest("b", "half"))
	write(t, a, manifest("a", "i:2"))
	h.until("a changed", func() bool { return h.get("a").Pod.Spec.Containers[0].Image == "i:2" })
	if h.get("b") != nil {
		t.Error("a file was read before its writer closed it")
	}
	if h.get("a").Pod.UID == first.Pod.UID {
		t.Error("another content, but the same UID")
	}
	f.Close()
	h.until("b", func() bool { return h.get("b") != nil })

	was := h.get("a").Pod
	write(t, a, "apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {containers: [{name: c")
	h.until("problem", func() bool { return len(h.Problems()) == 1 })
	if got := h.get("a"); got == nil || got.Pod != was {
		t.Error("an invalid manifest took the pod, or changed it")
	}
	write(t, a, "# nothing\n")
	h.until("a gone", func() bool { return h.get("a") == nil && len(h.Problems()) == 0 })
	if err := os.Remove(filepath.Join(dir, "b.yaml")); err != nil {
		t.Fatal(err)
	}
	h.until("b gone", func() bool { return h.get("b") == nil })
	write(t, a, manifest("a", "i:3"))
	h.until("a back", func() bool { return h.get("a") != nil })
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	h.until("all gone with the directory", func() bool { return h.get("a") == nil })
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, a, manifest("a", "i:4"))
	h.until("the new directory is watched", func() bool { return h.get("a") != nil })
}

// TestBrokenDocument: of several documents in a file, a broken one keeps what it
// was, and removing another one removes that only.
func TestBrokenDocument(t *testing.T) {
	dir, root := t.TempDir(), t.TempDir()
	file := filepath.Join(dir, "all.yaml")
	write(t, file, manifest("a", "i:1")+"---\n"+manifest("b", "i:1")+"---\n"+manifest("c", "i:1"))
	h := start(t, root, func(c *Config) { c.Paths = []string{file} })
	h.until("three", func() bool { return h.get("a") != nil && h.get("b") != nil && h.get("c") != nil })
	a, b := h.get("a").Pod, h.get("b").Pod
	broken := strings.Replace(manifest("b", "i:2"), "image", "imagee", 1)
	write(t, file, manifest("a", "i:1")+"---\n"+broken)
	h.until("c gone", func() bool { return h.get("c") == nil })
	if h.get("a").Pod != a || h.get("b") == nil || h.get("b").Pod != b {
		t.Error("an unchanged pod or one whose document is broken was touched")
	}
	h.stop()
	// The same with the agent away meanwhile: now the whole file is broken.
	write(t, file, "a: [")
	h = start(t, root, func(c *Config) { c.Paths = []string{file} })
	h.until("read again", func() bool {
		h.mu.Lock()
		defer h.mu.Unlock()
		return h.delivered[pod.SourceFile] > 0
	})
	for _, was := range []*v1.Pod{a, b} {
		got := h.get(was.Name)
		if got == nil || got.Pod.UID != was.UID || got.Pod.Annotations[pod.AnnotationSeen] != was.Annotations[pod.AnnotationSeen] {
			t.Errorf("%s is not as it was before the restart: %+v", was.Name, got)
		}
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	h.until("gone", func() bool { return h.get("a") == nil })
	if left, _ := os.ReadDir(filepath.Join(root, "source")); len(left) > 0 {
		t.Errorf("memory of a removed file is left: %v", left)
	}
}

func TestDuplicatesAndInputs(t *testing.T) {
	dir := t.TempDir()
	cm := func(v string) string {
		return "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\ndata: {v: " + v + "}\n"
	}
	pods := `apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers: [{name: c, image: i, envFrom: [{configMapRef: {name: m}}]}]
  imagePullSecrets: [{name: s}]
`
	write(t, filepath.Join(dir, "1.yaml"), pods)
	write(t, filepath.Join(dir, "2.yaml"), strings.Replace(pods, "image: i", "image: other", 1))
	h := start(t, t.TempDir(), func(c *Config) { c.Paths = []string{dir} })
	h.until("p", func() bool { return h.get("p") != nil && len(h.Problems()) == 1 })
	if got := h.get("p").Pod.Spec.Containers[0].Image; got != "i" {
		t.Errorf("the second file won: %s", got)
	}
	if p := h.Problems()[0]; p.File != filepath.Join(dir, "2.yaml") || !strings.Contains(p.Message, "1.yaml") {
		t.Errorf("unhelpful problem: %v", p)
	}
	seen := map[string]bool{h.get("p").Inputs.Version: true}
	next := func(what string) {
		h.until(what, func() bool { return !seen[h.get("p").Inputs.Version] })
		seen[h.get("p").Inputs.Version] = true
	}
	write(t, filepath.Join(dir, "m.yaml"), cm("one"))
	next("a ConfigMap appeared")
	write(t, filepath.Join(dir, "m.yaml"), cm("two"))
	next("it changed")
	write(t, filepath.Join(dir, "s.yaml"), "apiVersion: v1\nkind: Secret\nmetadata: {name: s}\nstringData: {a: b}\n")
	next("a Secret appeared")
	if m, ok := h.ConfigMap("default", "m"); !ok || m.Data["v"] != "two" {
		t.Errorf("ConfigMap: %v %v", m, ok)
	}
	if s, ok := h.Secret("default", "s"); !ok || string(s.Data["a"]) != "b" {
		t.Errorf("Secret: %v %v", s, ok)
	}
	if _, ok := h.Secret("other", "s"); ok {
		t.Error("a Secret of another namespace")
	}
}

func TestApply(t *testing.T) {
	root, dir := t.TempDir(), t.TempDir()
	write(t, filepath.Join(dir, "f.yaml"), manifest("f", "i"))
	with := func(c *Config) { c.Paths = []string{dir} }
	h := start(t, root, with)
	h.until("f", func() bool { return h.get("f") != nil })
	docs := manifest("a", "i:1") + "---\n" + manifest("f", "x") + "---\nkind: Nonsense\n---\napiVersion: v1\nkind: ConfigMap\nmetadata: {name: m}\n"
	applied, problems, err := h.Apply(t.Context(), []byte(docs))
	if err != nil || len(applied) != 2 || len(problems) != 2 {
		t.Fatalf("%v %v %v", applied, problems, err)
	}
	if applied[0].Change != ObjectCreated || applied[0].UID == "" || h.get("a") == nil || string(h.get("a").Pod.UID) != string(applied[0].UID) {
		t.Errorf("%+v", applied)
	}
	again, _, _ := h.Apply(t.Context(), []byte(manifest("a", "i:1")))
	if again[0].Change != ObjectUnchanged || again[0].UID != applied[0].UID {
		t.Errorf("applied again: %+v", again)
	}
	changed, _, _ := h.Apply(t.Context(), []byte(manifest("a", "i:2")))
	if changed[0].Change != ObjectConfigured || changed[0].UID == applied[0].UID {
		t.Errorf("applied a change: %+v", changed)
	}
	was := h.get("a").Pod
	h.stop()
	if err := os.WriteFile(filepath.Join(root, "run", "pod_default_torn.json"), []byte("{\"uid"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, _, err := h.Apply(t.Context(), nil); pod.KindOf(err) != pod.Unavailable {
		t.Errorf("Apply after the end: %v", err)
	}
	h = start(t, root, with)
	h.until("a is back", func() bool { return h.get("a") != nil })
	if got := h.get("a").Pod; got.UID != was.UID || got.Annotations[pod.AnnotationSeen] != was.Annotations[pod.AnnotationSeen] || got.Annotations[pod.AnnotationSource] != "run" {
		t.Errorf("not the same after a restart: %+v", got.ObjectMeta)
	}
	if len(h.Problems()) != 1 || !strings.Contains(h.Problems()[0].Message, "set aside") {
		t.Errorf("torn record: %v", h.Problems())
	}
	if _, err := h.Remove(t.Context(), Ref{"Pod", "default", "f"}); pod.KindOf(err) != pod.Invalid || !strings.Contains(err.Error(), "f.yaml") {
		t.Errorf("removing a manifest's pod: %v", err)
	}
	for i, want := range []bool{true, false} {
		if removed, err := h.Remove(t.Context(), Ref{"Pod", "default", "a"}); err != nil || removed != want {
			t.Errorf("remove %d: %v %v", i, removed, err)
		}
	}
	if h.get("a") != nil {
		t.Error("removed, but still delivered")
	}
	fresh, _, _ := h.Apply(t.Context(), []byte(manifest("a", "i:2")))
	if string(fresh[0].UID) == string(was.UID) {
		t.Error("applied after removal: the same UID would be taken for the terminated pod")
	}
}

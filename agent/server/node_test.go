package server

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/pod"
)

// node is everything that a Server needs, in memory.
type node struct {
	problems   []Problem // nil: two of no account
	mu         sync.Mutex
	pods       []pod.Snapshot
	changes    chan pod.Snapshot // zero At: gone
	terminated map[pod.UID]pod.Termination
	removed    []string
	dry        bool
	body       string
	auth       *Auth
	hold       chan struct{} // Pull waits for it or for its context
	logs       LogOptions
	path       string
	exec       *runtimeapi.ExecRequest
}

func (n *node) List() []pod.Snapshot {
	n.mu.Lock()
	defer n.mu.Unlock()
	return append([]pod.Snapshot{}, n.pods...)
}

func (n *node) Get(namespace, name string) (pod.Snapshot, bool) {
	for _, s := range n.List() {
		if s.Desired.Pod.Namespace == namespace && s.Desired.Pod.Name == name {
			return s, true
		}
	}
	return pod.Snapshot{}, false
}

func (n *node) Watch(ctx context.Context, emit func(pod.Snapshot, bool) error, synced func() error) error {
	for _, s := range n.List() {
		if err := emit(s, false); err != nil {
			return err
		}
	}
	if err := synced(); err != nil {
		return err
	}
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case s := <-n.changes:
			if err := emit(s, s.At.IsZero()); err != nil {
				return err
			}
		}
	}
}

func (n *node) Render(s pod.Snapshot) *v1.Pod {
	p := s.Desired.Pod.DeepCopy()
	p.Status = s.Status
	return p
}

func (n *node) Events(namespace, name string) []v1.Event {
	e := v1.Event{Reason: "Started", InvolvedObject: v1.ObjectReference{Namespace: "default", Name: "web"}}
	if namespace != "" && namespace != "default" || name != "" && name != "web" {
		return nil
	}
	return []v1.Event{e}
}

func (n *node) WatchEvents(ctx context.Context, namespace, name string, emit func(v1.Event) error) error {
	for _, e := range n.Events(namespace, name) {
		if err := emit(e); err != nil {
			return err
		}
	}
	<-ctx.Done()
	return ctx.Err()
}

func (n *node) Apply(_ context.Context, body []byte, dryRun bool) ([]Applied, []Problem, error) {
	n.dry, n.body = dryRun, string(body)
	bad := []Problem{{File: "run", Line: 3, FieldPath: "spec.x", Message: "unknown field"}}
	switch n.body {
	case "bad":
		return nil, bad, nil
	case "disk":
		return nil, nil, &pod.Error{Op: "apply", Kind: pod.Exhausted, Err: errors.New("the disk is full")}
	}
	return []Applied{{Ref: Ref{"Pod", "default", "web"}, Change: "created"}}, bad, nil
}

func (n *node) Remove(_ context.Context, namespace, name string) (bool, error) {
	n.removed = append(n.removed, namespace+"/"+name)
	return true, nil
}

func (n *node) Problems() []Problem {
	if n.problems != nil {
		return n.problems
	}
	return []Problem{{File: "/m/web.yaml", Line: 1, Message: "x"}, {File: "/m/other.yaml", Message: "y"}}
}

func (n *node) ManifestOf(p *v1.Pod) string { return "/m/" + p.Name + ".yaml" }

func (n *node) Logs(_ context.Context, path string, o LogOptions, stdout, stderr io.Writer) error {
	n.path, n.logs = path, o
	if strings.Contains(path, "lost") {
		return &pod.Error{Kind: pod.NotFound, Err: errors.New("the log is gone")}
	}
	if stdout != nil {
		fmt.Fprintln(stdout, "out", path)
	}
	if stderr != nil {
		fmt.Fprintln(stderr, "err", path)
	}
	for o.Follow && !o.Ended() {
		time.Sleep(time.Millisecond)
	}
	return nil
}

func (n *node) ServeExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest) {
	n.exec = q
	io.WriteString(w, "exec "+q.ContainerId)
}

func (n *node) ServeAttach(w http.ResponseWriter, _ *http.Request, q *runtimeapi.AttachRequest) {
	io.WriteString(w, "attach "+q.ContainerId)
}

func (n *node) ServePortForward(w http.ResponseWriter, _ *http.Request, q *runtimeapi.PortForwardRequest) {
	fmt.Fprint(w, "forward ", q.PodSandboxId, q.Port)
}

// images is the node's Images: Remove and List clash with those of pods and sources.
type images struct{ n *node }

func (i images) List(context.Context) ([]Image, error) {
	return []Image{{ID: "sha256:1", Size: 7}, {ID: "sha256:2"}}, nil
}

func (i images) Pull(ctx context.Context, ref string, auth *Auth, progress func(Progress)) (Image, error) {
	i.n.auth = auth
	progress(Progress{Ref: ref, Phase: "downloading", Done: 1, Total: 2})
	select {
	case <-i.n.hold:
	case <-ctx.Done():
		return Image{}, ctx.Err()
	}
	if ref == "none" {
		return Image{}, &pod.Error{Op: "pull", Kind: pod.NotFound, Err: errors.New("no such image")}
	}
	return Image{ID: "sha256:1"}, nil
}

func (i images) Import(_ context.Context, r io.Reader, progress func(Progress)) ([]Image, error) {
	b := make([]byte, 4)
	for {
		k, err := io.ReadFull(r, b)
		if k > 0 {
			progress(Progress{Phase: string(b[:k])})
		}
		if err != nil {
			return []Image{{ID: "sha256:1"}}, nil
		}
	}
}

func (i images) Remove(_ context.Context, ref string) error {
	if ref == "none" {
		return &pod.Error{Kind: pod.NotFound, Err: errors.New("no such image")}
	}
	return nil
}

func (i images) Verify(_ context.Context, _ bool, _ func(Progress)) ([]Damaged, error) {
	return []Damaged{{Digest: "sha256:3", Why: "differs"}}, nil
}

func snapshot(name string, source pod.Source) pod.Snapshot {
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name}}
	p.Spec.Containers = []v1.Container{{Name: "main"}, {Name: "late"}}
	return pod.Snapshot{
		UID: pod.UID("uid-" + name), At: time.Unix(100, 0), Desired: pod.Desired{Pod: p, Source: source},
		Status: v1.PodStatus{Phase: v1.PodRunning, ContainerStatuses: []v1.ContainerStatus{
			{Name: "main", Ready: true, RestartCount: 1, State: v1.ContainerState{Running: &v1.ContainerStateRunning{}}},
			{Name: "late", State: v1.ContainerState{Waiting: &v1.ContainerStateWaiting{Reason: "ErrImagePull", Message: "no route"}}},
		}},
		Observed: pod.Observed{
			Sandboxes: []pod.Sandbox{{ID: "box", Ready: true}},
			Containers: []pod.Container{
				{ID: "c1", Name: "main", Attempt: 1, State: pod.Running, LogPath: "/log/1.log", ImageID: "sha256:1"},
				{ID: "c0", Name: "main", Attempt: 0, State: pod.Exited, LogPath: "/log/0.log", ImageID: "sha256:1"},
			},
		},
		InFlight:    []pod.Action{{Op: pod.OpPullImage, Container: "late"}},
		Explanation: pod.Explanation{Cause: "The image cannot be pulled.", Reason: "ErrImagePull", Next: "It is tried again."},
	}
}

// serve runs a server on a socket and returns a client of it.
func serve(t *testing.T, n *node) (*http.Client, string, func()) {
	t.Helper()
	n.terminated, n.changes = map[pod.UID]pod.Termination{}, make(chan pod.Snapshot)
	s := New(Config{
		Pods: n, Events: n, Sources: n, Logs: n, Streams: n, Images: images{n}, Log: slog.New(slog.DiscardHandler),
		Terminate: func(uid pod.UID, tm pod.Termination) bool { n.terminated[uid] = tm; return true },
		Audit:     func(context.Context) ([]Leak, error) { return nil, nil },
		Version:   func() Version { return Version{Berth: "v1"} },
	})
	path := filepath.Join(t.TempDir(), "a.sock")
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, path) }()
	for start := time.Now(); ; time.Sleep(time.Millisecond) {
		if _, err := os.Stat(path); err == nil {
			break
		}
		if time.Since(start) > 10*time.Second {
			t.Fatal("no socket")
		}
	}
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", path)
	}}}
	end := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("serve: %v", err)
		}
		client.CloseIdleConnections()
	})
	t.Cleanup(end)
	return client, path, end
}

func call(t *testing.T, c *http.Client, method, path, body string) (int, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, "http://berth"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	defer a.Body.Close()
	b, err := io.ReadAll(a.Body)
	if err != nil {
		t.Fatal(err)
	}
	return a.StatusCode, strings.TrimSpace(string(b))
}

package cli

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	serve "k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/cmd/internal/client"
)

// fakeAgent serves the agent's API from memory.
type fakeAgent struct {
	*http.ServeMux
	socket string

	mu       sync.Mutex
	pods     map[client.PodKey]client.PodDetail
	watchers []chan client.WatchEvent
	onApply  func(*v1.Pod) // what becomes of a pod of run
	events   []v1.Event
	images   []client.Image
}

func newFakeAgent(t *testing.T) *fakeAgent {
	t.Helper()
	f := &fakeAgent{ServeMux: http.NewServeMux(), socket: filepath.Join(t.TempDir(), "s"), pods: map[client.PodKey]client.PodDetail{}}
	l, err := net.Listen("unix", f.socket)
	if err != nil {
		t.Fatal(err)
	}
	s := httptest.NewUnstartedServer(f)
	s.Listener.Close()
	s.Listener = l
	f.routes()
	s.Start()
	t.Cleanup(func() { s.CloseClientConnections(); s.Close() })
	return f
}

func (f *fakeAgent) put(d client.PodDetail) {
	f.mu.Lock()
	defer f.mu.Unlock()
	k := client.PodKey{Namespace: d.Pod.Namespace, Name: d.Pod.Name}
	kind := client.Modified
	if _, ok := f.pods[k]; !ok {
		kind = client.Added
	}
	f.pods[k] = d
	f.tell(client.WatchEvent{Type: kind, Pod: d.Pod, Explanation: d.Explanation})
}

func (f *fakeAgent) drop(k client.PodKey) {
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.pods[k]
	delete(f.pods, k)
	f.tell(client.WatchEvent{Type: client.Deleted, Pod: d.Pod, Explanation: d.Explanation})
}

func (f *fakeAgent) tell(e client.WatchEvent) {
	for _, w := range f.watchers {
		w <- e
	}
}

func refuse(w http.ResponseWriter, code int, format string, args ...any) {
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: "Failure", Message: fmt.Sprintf(format, args...), Code: int32(code)})
}

func answer(w http.ResponseWriter, v any) { _ = json.NewEncoder(w).Encode(v) }

// one serves what there is about one pod.
func (f *fakeAgent) one(serve func(w http.ResponseWriter, r *http.Request, d client.PodDetail)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		k := client.PodKey{Namespace: r.PathValue("ns"), Name: r.PathValue("name")}
		f.mu.Lock()
		d, ok := f.pods[k]
		f.mu.Unlock()
		if !ok {
			refuse(w, 404, "there is no pod %s", k)
			return
		}
		serve(w, r, d)
	}
}

func (f *fakeAgent) routes() {
	f.HandleFunc("GET /version", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, client.Version{Berth: "test", Go: "go1", Pid: 7, Node: "node", Started: time.Now().Add(-time.Minute)})
	})
	f.HandleFunc("GET /pods", func(w http.ResponseWriter, r *http.Request) {
		f.mu.Lock()
		defer f.mu.Unlock()
		var list v1.PodList
		for k, d := range f.pods {
			if ns := r.FormValue("namespace"); ns == "" || ns == k.Namespace {
				list.Items = append(list.Items, d.Pod)
			}
		}
		answer(w, list)
	})
	f.HandleFunc("GET /berth/v1/pods/{ns}/{name}", f.one(func(w http.ResponseWriter, _ *http.Request, d client.PodDetail) { answer(w, d) }))
	f.HandleFunc("GET /berth/v1/why/{ns}/{name}", f.one(func(w http.ResponseWriter, _ *http.Request, d client.PodDetail) { answer(w, d.Explanation) }))
	f.HandleFunc("GET /berth/v1/watch", f.watch)
	f.HandleFunc("GET /berth/v1/events", func(w http.ResponseWriter, _ *http.Request) { answer(w, v1.EventList{Items: f.events}) })
	f.HandleFunc("GET /berth/v1/images", func(w http.ResponseWriter, _ *http.Request) { answer(w, map[string]any{"images": f.images}) })
	f.HandleFunc("POST /berth/v1/images/pull", f.pull)
	f.HandleFunc("POST /berth/v1/images/import", f.importImages)
	f.HandleFunc("POST /berth/v1/apply", f.apply)
	f.HandleFunc("POST /berth/v1/stop/{ns}/{name}", f.one(f.stop))
	f.HandleFunc("GET /containerLogs/{ns}/{name}/{container}", f.one(func(w http.ResponseWriter, r *http.Request, _ client.PodDetail) {
		fmt.Fprintf(w, "%s?%s\n", r.PathValue("container"), r.URL.RawQuery)
	}))
	f.HandleFunc("/exec/{ns}/{name}/{container}", f.one(f.exec))
	f.HandleFunc("/portForward/{ns}/{name}", f.one(func(w http.ResponseWriter, r *http.Request, _ client.PodDetail) {
		o, err := portforward.NewV4Options(r)
		if err != nil {
			refuse(w, 400, "%v", err)
			return
		}
		portforward.ServePortForward(w, r, echo{}, "p", "u", o, time.Minute, time.Minute, []string{portforward.ProtocolV1Name})
	}))
}

func (f *fakeAgent) watch(w http.ResponseWriter, r *http.Request) {
	f.mu.Lock()
	changes := make(chan client.WatchEvent, 100)
	f.watchers = append(f.watchers, changes)
	for _, d := range f.pods {
		answer(w, client.WatchEvent{Type: client.Added, Pod: d.Pod, Explanation: d.Explanation})
	}
	f.mu.Unlock()
	answer(w, map[string]string{"type": client.Bookmark})
	for {
		w.(http.Flusher).Flush()
		select {
		case e := <-changes:
			answer(w, e)
		case <-r.Context().Done():
			return
		}
	}
}

func (f *fakeAgent) apply(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	var p v1.Pod
	if err := yaml.UnmarshalStrict(body, &p); err != nil || p.Name == "" {
		w.WriteHeader(422)
		answer(w, map[string]any{"applied": []any{}, "problems": []map[string]any{{"file": "run", "line": 3, "fieldPath": "spec.x", "message": "unknown field"}}})
		return
	}
	p.Namespace, p.UID = "default", types.UID("uid-"+p.Name)
	answer(w, map[string]any{"applied": []map[string]any{{"kind": "Pod", "namespace": "default", "name": p.Name}}, "problems": nil})
	p.Status.Phase = v1.PodPending
	f.put(client.PodDetail{Pod: p, Manifest: "run", Explanation: client.Explanation{Cause: "The image is being pulled."}})
	if f.onApply != nil {
		f.onApply(&p)
	}
}

func (f *fakeAgent) stop(w http.ResponseWriter, r *http.Request, d client.PodDetail) {
	if d.Manifest != "run" && r.FormValue("force") != "1" {
		refuse(w, 409, "pod %s/%s comes from %s: remove that file", d.Pod.Namespace, d.Pod.Name, d.Manifest)
		return
	}
	w.WriteHeader(202)
	answer(w, map[string]string{"stopping": d.Pod.Name})
	go f.drop(client.PodKey{Namespace: d.Pod.Namespace, Name: d.Pod.Name})
}

func (f *fakeAgent) pull(w http.ResponseWriter, r *http.Request) {
	if ref := r.FormValue("image"); strings.HasPrefix(ref, "bad") {
		answer(w, map[string]string{"error": "the registry does not know it"})
		return
	}
	answer(w, client.Progress{Ref: "a", Phase: "downloading", Done: 1, Total: 2000, Layers: []client.LayerProgress{{Digest: "sha256:0123456789abcdef", Phase: "downloading", Total: 2000}}})
	answer(w, map[string]any{"image": client.Image{ID: "sha256:1", Size: 2000}})
}

func (f *fakeAgent) importImages(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	answer(w, map[string]any{"images": []client.Image{{ID: "sha256:1", Tags: []string{"docker.io/library/a:1"}, Size: int64(len(body))}}})
}

func (f *fakeAgent) exec(w http.ResponseWriter, r *http.Request, _ client.PodDetail) {
	o, err := serve.NewOptions(r)
	if err != nil {
		refuse(w, 400, "%v", err)
		return
	}
	serve.ServeExec(w, r, shell{}, "p", "u", r.PathValue("container"), r.URL.Query()["command"], o, time.Minute, time.Minute, serve.SupportedStreamingProtocols)
}

// shell plays a container: `exit N`, `cat`, `both`.
type shell struct{}

func (shell) ExecInContainer(_ context.Context, _ string, _ string, container string, cmd []string, in io.Reader, out, errOut io.WriteCloser, _ bool, _ <-chan serve.TerminalSize, _ time.Duration) error {
	switch cmd[0] {
	case "exit":
		var code int
		fmt.Sscan(cmd[1], &code)
		return utilexec.CodeExitError{Err: fmt.Errorf("exit %d", code), Code: code}
	case "cat":
		_, err := io.Copy(out, in)
		return err
	}
	fmt.Fprintf(out, "out of %s", container)
	fmt.Fprint(errOut, "err")
	return nil
}

// echo plays a pod that listens on every port.
type echo struct{}

func (echo) PortForward(_ context.Context, _ string, _ string, port int32, stream io.ReadWriteCloser) error {
	defer stream.Close()
	line := make([]byte, 4)
	if _, err := io.ReadFull(stream, line); err != nil {
		return err
	}
	_, err := fmt.Fprintf(stream, "%d:%s", port, line)
	return err
}

// berth runs a command line against the fake.
func (f *fakeAgent) berth(ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errOut bytes.Buffer
	code = Main(ctx, "test", append([]string{"--socket", f.socket}, args...), IO{In: strings.NewReader(stdin), Out: &out, Err: &errOut})
	return code, out.String(), errOut.String()
}

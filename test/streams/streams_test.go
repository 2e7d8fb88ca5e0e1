package streams

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/patience"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/remotecommand"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// rig is an agent with one container for each runtime handler.
type rig struct {
	*node.Agent
	t     *testing.T
	cri   runtimeapi.RuntimeServiceClient
	ids   map[string]string // containers by handler
	boxes []string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	node.NotOver(t, node.Containerd, "the streams are the embedded runtime's")
	a := node.New(t, node.Binary(t, "BERTH"))
	a.Start()
	a.ImportBusybox()
	r := &rig{Agent: a, t: t, ids: map[string]string{}}
	r.cri, _ = a.CRI()
	for _, handler := range []string{"crun", "runc"} {
		pod := &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: handler, Namespace: "streams", Uid: handler}, LogDirectory: filepath.Join(a.Dir, "log", handler),
			Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + filepath.Base(a.Dir) + "/" + handler, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		}
		box, err := r.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		if err != nil {
			t.Fatal(err)
		}
		r.boxes = append(r.boxes, box.PodSandboxId)
		c, err := r.cri.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box.PodSandboxId, SandboxConfig: pod, Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, Stdin: true,
			Command: []string{"sh", "-c", "while read line; do echo got $line; done; sleep 1000"}, LogPath: "main.log",
			Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: pod.Linux.SecurityContext.NamespaceOptions,
			}},
		}})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := r.cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: c.ContainerId}); err != nil {
			t.Fatal(err)
		}
		r.ids[handler] = c.ContainerId
	}
	t.Cleanup(func() {
		for _, box := range r.boxes {
			if _, err := r.cri.RemovePodSandbox(context.Background(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: box}); err != nil {
				t.Error(err)
			}
		}
	})
	return r
}

var transports = map[string]func(u *url.URL) (remotecommand.Executor, error){
	"spdy": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	},
	"websocket": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", u.String())
	},
}

func stream(ctx context.Context, transport, address string, o remotecommand.StreamOptions) error {
	u, err := url.Parse(address)
	if err != nil {
		return err
	}
	e, err := transports[transport](u)
	if err != nil {
		return err
	}
	return e.StreamWithContext(ctx, o)
}

func (r *rig) exec(ctx context.Context, transport, handler string, o remotecommand.StreamOptions, args ...string) error {
	resp, err := r.cri.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: r.ids[handler], Cmd: args, Tty: o.Tty, Stdin: o.Stdin != nil, Stdout: o.Stdout != nil, Stderr: o.Stderr != nil})
	if err != nil {
		return err
	}
	return stream(ctx, transport, resp.Url, o)
}

// each runs a test over both transports and on both runtimes.
func (r *rig) each(t *testing.T, f func(t *testing.T, transport, handler string)) {
	for transport := range transports {
		for handler := range r.ids {
			t.Run(transport+" "+handler, func(t *testing.T) { f(t, transport, handler) })
		}
	}
}

// processes are those in the container, and the descriptors of the agent.
func (r *rig) processes(handler string) (n int) {
	all, _ := filepath.Glob("/sys/fs/cgroup/pids/" + filepath.Base(r.Dir) + "/" + handler + "/*/cgroup.procs")
	v2, _ := filepath.Glob("/sys/fs/cgroup/" + filepath.Base(r.Dir) + "/" + handler + "/*/cgroup.procs")
	for _, f := range append(all, v2...) {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(f, r.ids[handler]) {
			n += strings.Count(string(b), "\n")
		}
	}
	return n
}

func (r *rig) descriptors() int {
	e, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", r.Pid()))
	return len(e)
}

// quiet waits until only the containers themselves run, and the agent has no
// more descriptors than before.
func (r *rig) quiet(t *testing.T, before int) {
	t.Helper()
	node.Eventually(t, patience.For(30*time.Second), func() error {
		for handler := range r.ids {
			if n := r.processes(handler); n != 1 {
				return fmt.Errorf("%d processes in the container of %s, want its first alone", n, handler)
			}
		}
		if n := r.descriptors(); n > before+3 { // its own work may hold some
			return fmt.Errorf("%d descriptors, %d before", n, before)
		}
		return nil
	})
	for _, id := range r.ids {
		if left, _ := filepath.Glob(filepath.Join(r.Dir, "run/containers", id, "bundle/exec-*")); len(left) > 0 {
			t.Errorf("files of execs are left: %v", left)
		}
	}
}

func TestStreams(t *testing.T) {
	r := newRig(t)
	before := r.descriptors()
	t.Run("100 MB both ways", func(t *testing.T) {
		r.each(t, func(t *testing.T, transport, handler string) {
			sent := make([]byte, 100<<20)
			rand.Read(sent)
			var back bytes.Buffer
			began := time.Now()
			err := r.exec(t.Context(), transport, handler, remotecommand.StreamOptions{Stdin: struct{ io.Reader }{bytes.NewReader(sent)}, Stdout: &back}, "cat")
			if err != nil || !bytes.Equal(back.Bytes(), sent) {
				t.Errorf("%d bytes back, %v", back.Len(), err)
			}
			t.Logf("%v", time.Since(began).Round(time.Millisecond))
		})
	})
	t.Run("codes", func(t *testing.T) {
		r.each(t, func(t *testing.T, transport, handler string) {
			for command, want := range map[string]int{"exit 7": 7, "nosuchcommand": 127, "/etc": 126, "kill -9 $$": 137} {
				args := []string{"sh", "-c", command}
				if want == 126 || want == 127 {
					args = []string{command}
				}
				var out, errOut bytes.Buffer
				err := r.exec(t.Context(), transport, handler, remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut}, args...)
				var code utilexec.CodeExitError
				if !errors.As(err, &code) || code.Code != want {
					t.Errorf("%s: %v, want code %d (%s)", command, err, want, errOut.String())
				}
				if (want == 126 || want == 127) && errOut.Len() == 0 {
					t.Errorf("%s: nothing tells why", command)
				}
			}
		})
	})
	t.Run("200 at once", func(t *testing.T) {
		var work sync.WaitGroup
		for i := range 200 {
			work.Go(func() {
				transport, handler := []string{"spdy", "websocket"}[i%2], []string{"crun", "runc"}[i/2%2]
				var out bytes.Buffer
				err := r.exec(t.Context(), transport, handler, remotecommand.StreamOptions{Stdin: strings.NewReader(fmt.Sprint("number ", i)), Stdout: &out}, "cat")
				if err != nil || out.String() != fmt.Sprint("number ", i) {
					t.Errorf("%d over %s on %s: %q, %v", i, transport, handler, out.String(), err)
				}
			})
		}
		work.Wait()
	})
	t.Run("client leaves", func(t *testing.T) { r.each(t, r.leaves) })
	t.Run("child keeps the pipe", func(t *testing.T) {
		for handler, id := range r.ids {
			began := time.Now()
			resp, err := r.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "sleep 20 & sleep 0.5; echo done"}, Timeout: 15})
			if took := time.Since(began); err != nil || string(resp.GetStdout()) != "done\n" || took > patience.For(5*time.Second) {
				t.Errorf("%s: %v %v after %v", handler, resp, err, took)
			}
			if _, err := r.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "killall sleep; sleep 1000"}, Timeout: 1}); err == nil {
				t.Errorf("%s: a command that does not end within its time is no error", handler)
			}
		}
	})
	r.quiet(t, before)
	t.Run("attach after a restart", func(t *testing.T) {
		r.Kill9()
		r.Start()
		r.each(t, r.attach)
	})
}

// leaves ends clients in the middle of what they do.
func (r *rig) leaves(t *testing.T, transport, handler string) {
	before := r.descriptors()
	for _, tty := range []bool{false, true} {
		ctx, cancel := context.WithCancel(t.Context())
		in, w := io.Pipe()
		out := &seen{want: "ready", told: make(chan struct{})}
		done := make(chan error, 1)
		go func() {
			done <- r.exec(ctx, transport, handler, remotecommand.StreamOptions{Stdin: in, Stdout: out, Tty: tty}, "sh", "-c", "sleep 1000 & trap '' HUP TERM; echo ready; sleep 1000")
		}()
		select {
		case <-out.told:
		case err := <-done:
			t.Errorf("terminal %v: ended before it began: %v", tty, err)
		}
		cancel()
		w.Close()
		select {
		case <-done:
		case <-time.After(patience.For(20 * time.Second)):
			t.Errorf("terminal %v: the client does not come back", tty)
		}
	}
	resp, err := r.cri.Attach(t.Context(), &runtimeapi.AttachRequest{ContainerId: r.ids[handler], Stdin: true, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
	defer cancel()
	in, w := io.Pipe()
	defer w.Close()
	stream(ctx, transport, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: io.Discard})
	r.quiet(t, before)
}

// attach has two clients on one container; both see what either is answered.
func (r *rig) attach(t *testing.T, transport, handler string) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var work sync.WaitGroup
	var clients []*seen
	var inputs []io.WriteCloser
	for range 2 {
		resp, err := r.cri.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: r.ids[handler], Stdin: true, Stdout: true, Stderr: true})
		if err != nil {
			t.Fatal(err)
		}
		in, w := io.Pipe()
		out := &seen{want: "got " + transport, told: make(chan struct{})}
		clients, inputs = append(clients, out), append(inputs, w)
		work.Go(func() {
			stream(ctx, transport, resp.Url, remotecommand.StreamOptions{Stdin: in, Stdout: out, Stderr: io.Discard})
		})
	}
	end := time.After(patience.For(20 * time.Second))
	for again := time.NewTicker(200 * time.Millisecond); ; {
		fmt.Fprintln(inputs[0], transport) // the second client may come later than the first line
		select {
		case <-clients[0].told:
			select {
			case <-clients[1].told:
				again.Stop()
				cancel()
				inputs[0].Close()
				inputs[1].Close()
				work.Wait()
				return
			case <-again.C:
			}
		case <-again.C:
		case <-end:
			t.Fatal("not both clients see what the container writes")
		}
	}
}

// seen waits for a word in what is written to it.
type seen struct {
	want string
	told chan struct{}

	mu   sync.Mutex
	all  []byte
	done bool
}

func (s *seen) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.all = append(s.all, p...); !s.done && bytes.Contains(s.all, []byte(s.want)) {
		s.done = true
		close(s.told)
	}
	return len(p), nil
}

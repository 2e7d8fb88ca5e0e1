package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/tools/remotecommand"
	"k8s.io/client-go/transport/spdy"
	utilexec "k8s.io/client-go/util/exec"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fake runs "commands" in Go: echo copies stdin, sleep waits for the client's
// end, exit returns a code, size reports terminal sizes.
type fake struct {
	mu   sync.Mutex
	ends int
	ns   *os.File
}

func (f *fake) Exec(ctx context.Context, id string, args []string, st container.Streams) (int32, error) {
	switch args[0] {
	case "echo":
		fmt.Fprint(st.Stderr, "err:"+id)
		_, err := io.Copy(st.Stdout, st.Stdin)
		return 0, err
	case "size":
		sz := <-st.Resize
		fmt.Fprintf(st.Stdout, "%dx%d", sz.Rows, sz.Cols)
		return 0, nil
	case "flood": // ends while what it has written still waits for its client
		stuck := make(chan struct{})
		go func() {
			defer close(stuck)
			for b := make([]byte, 1<<20); ; {
				if _, err := st.Stdout.Write(b); err != nil {
					return
				}
			}
		}()
		select {
		case <-stuck:
		case <-time.After(time.Second):
		}
		return 0, nil
	case "missing":
		return 0, ociruntime.Classify("crun", "exec", "executable file `nosuch` not found")
	case "exit":
		return 7, nil
	case "sleep":
		fmt.Fprint(st.Stdout, "asleep")
		<-ctx.Done()
		f.mu.Lock()
		f.ends++
		f.mu.Unlock()
		return 0, ctx.Err()
	}
	return 0, errors.New("no such command")
}

func (f *fake) ended() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.ends
}

func (f *fake) Attach(ctx context.Context, id string, st container.Streams) error {
	_, err := f.Exec(ctx, id, []string{"echo"}, st)
	return err
}

func (f *fake) NetworkNamespace(context.Context, string) (*os.File, error) {
	if f.ns == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(f.ns.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	return os.NewFile(uintptr(fd), "netns"), err
}

func serve(t *testing.T, f *fake) *Server {
	t.Helper()
	s, err := Open(Config{Runtime: f, Sandboxes: f, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s
}

// executors are the two protocols a client may speak.
var executors = map[string]func(u *url.URL) (remotecommand.Executor, error){
	"spdy": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewSPDYExecutor(&rest.Config{}, "POST", u)
	},
	"websocket v4": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutorForProtocols(&rest.Config{}, "GET", u.String(), "v4.channel.k8s.io")
	},
	"websocket v5": func(u *url.URL) (remotecommand.Executor, error) {
		return remotecommand.NewWebSocketExecutor(&rest.Config{}, "GET", u.String())
	},
}

func run(t *testing.T, ctx context.Context, protocol, address string, opts remotecommand.StreamOptions) error {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	e, err := executors[protocol](u)
	if err != nil {
		t.Fatal(err)
	}
	return e.StreamWithContext(ctx, opts)
}

func TestExec(t *testing.T) {
	for protocol := range executors {
		t.Run(protocol, func(t *testing.T) {
			s := serve(t, &fake{})
			get := func(r *runtimeapi.ExecRequest) string {
				r.ContainerId = "c1"
				resp, err := s.GetExec(r)
				if err != nil {
					t.Fatal(err)
				}
				return resp.Url
			}
			var out, errOut bytes.Buffer
			// WebSocket's v4 cannot close one direction, so there nothing ends by its stdin.
			if protocol != "websocket v4" {
				err := run(t, t.Context(), protocol, get(&runtimeapi.ExecRequest{Cmd: []string{"echo"}, Stdin: true, Stdout: true, Stderr: true}),
					remotecommand.StreamOptions{Stdin: strings.NewReader("hello"), Stdout: &out, Stderr: &errOut})
				if err != nil || out.String() != "hello" || errOut.String() != "err:c1" {
					t.Errorf("%q %q %v", out.String(), errOut.String(), err)
				}
			}
			err := run(t, t.Context(), protocol, get(&runtimeapi.ExecRequest{Cmd: []string{"exit"}, Stdout: true}), remotecommand.StreamOptions{Stdout: &out})
			var code utilexec.CodeExitError
			if !errors.As(err, &code) || code.Code != 7 {
				t.Errorf("exit code: %v", err)
			}
			if err := run(t, t.Context(), protocol, get(&runtimeapi.ExecRequest{Cmd: []string{"bad"}, Stdout: true}), remotecommand.StreamOptions{Stdout: &out}); err == nil || !strings.Contains(err.Error(), "no such command") {
				t.Errorf("failure: %v", err)
			}
			errOut.Reset()
			err = run(t, t.Context(), protocol, get(&runtimeapi.ExecRequest{Cmd: []string{"missing"}, Stdout: true, Stderr: true}), remotecommand.StreamOptions{Stdout: &out, Stderr: &errOut})
			if !errors.As(err, &code) || code.Code != 127 || !strings.Contains(errOut.String(), `the command "nosuch" is not in the image`) {
				t.Errorf("missing command: %v, %q", err, errOut.String())
			}
			out.Reset()
			err = run(t, t.Context(), protocol, get(&runtimeapi.ExecRequest{Cmd: []string{"size"}, Stdout: true, Tty: true}),
				remotecommand.StreamOptions{Stdout: &out, Tty: true, TerminalSizeQueue: &oneSize{}})
			if err != nil || out.String() != "24x81" {
				t.Errorf("size: %q %v", out.String(), err)
			}
		})
	}
}

type oneSize struct{ told bool }

func (o *oneSize) Next() *remotecommand.TerminalSize {
	if o.told {
		return nil
	}
	o.told = true
	return &remotecommand.TerminalSize{Width: 81, Height: 24}
}

// A client that leaves ends what it started, even if nothing flows.
func TestClientLeaves(t *testing.T) {
	for protocol := range executors {
		t.Run(protocol, func(t *testing.T) {
			f := &fake{}
			s := serve(t, f)
			resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sleep"}, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			out := &notify{got: make(chan struct{})}
			done := make(chan error, 1)
			go func() { done <- run(t, ctx, protocol, resp.Url, remotecommand.StreamOptions{Stdout: out}) }()
			<-out.got
			cancel()
			<-done
			for end := time.Now().Add(5 * time.Second); f.ended() == 0; time.Sleep(5 * time.Millisecond) {
				if time.Now().After(end) {
					t.Fatal("the command outlives its client")
				}
			}
		})
	}
}

type notify struct {
	once sync.Once
	got  chan struct{}
}

func (n *notify) Write(p []byte) (int, error) {
	n.once.Do(func() { close(n.got) })
	return len(p), nil
}

func TestTokens(t *testing.T) {
	s := serve(t, &fake{})
	resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"exit"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	if !strings.HasPrefix(u.Host, "127.0.0.1:") || len(u.Path) < len("/exec/")+20 {
		t.Errorf("URL %s", resp.Url)
	}
	wrong := "http://" + u.Host + strings.Replace(u.Path, "/exec/", "/attach/", 1)
	for _, at := range []string{wrong, resp.Url, "http://" + u.Host + "/exec/guess", "http://" + u.Host + "/"} {
		r, err := http.Get(at) // the first, wrong one uses the token up
		if err != nil {
			t.Fatal(err)
		}
		r.Body.Close()
		if r.StatusCode != http.StatusNotFound {
			t.Errorf("GET %s: %d, want 404", at, r.StatusCode)
		}
	}
	for range maxTokens {
		if _, err = s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s"}); err != nil {
			t.Fatal(err)
		}
	}
	if _, err = s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s"}); !errdefs.IsResourceExhausted(err) {
		t.Errorf("token %d: %v", maxTokens+1, err)
	}
	for name, err := range map[string]error{
		"no command":   second(s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Stdout: true})),
		"no container": second(s.GetAttach(&runtimeapi.AttachRequest{Stdout: true})),
		"tty stderr":   second(s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c", Tty: true, Stdout: true, Stderr: true})),
		"no stream":    second(s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c"})),
	} {
		if !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func second[T any](_ T, err error) error { return err }

// newNetNS makes a network namespace with lo up and, in it, an echo server.
func newNetNS(t *testing.T) (ns *os.File, port int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: a network namespace is made")
	}
	type made struct {
		ns  *os.File
		l   net.Listener
		err error
	}
	done := make(chan made, 1)
	go func() {
		runtime.LockOSThread()
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- made{err: err}
			return
		}
		ns, err := os.Open(fmt.Sprintf("/proc/self/task/%d/ns/net", unix.Gettid()))
		if err != nil {
			done <- made{err: err}
			return
		}
		if err := loopbackUp(); err != nil {
			done <- made{err: err}
			return
		}
		l, err := net.Listen("tcp", "127.0.0.1:0")
		done <- made{ns, l, err}
	}()
	m := <-done
	if m.err != nil {
		t.Fatal(m.err)
	}
	t.Cleanup(func() {
		m.l.Close()
		m.ns.Close()
	})
	go func() {
		for {
			c, err := m.l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				io.Copy(c, c)
			}()
		}
	}()
	return m.ns, m.l.Addr().(*net.TCPAddr).Port
}

func loopbackUp() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	req, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	req.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, req)
}

func TestPortForward(t *testing.T) {
	ns, port := newNetNS(t)
	s := serve(t, &fake{ns: ns})
	resp, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s"})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	dialer := spdy.NewDialer(upgrader, &http.Client{Transport: transport}, "POST", u)
	stop, ready := make(chan struct{}), make(chan struct{})
	pf, err := portforward.NewOnAddresses(dialer, []string{"127.0.0.1"}, []string{fmt.Sprintf("0:%d", port), "0:1"}, stop, ready, io.Discard, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- pf.ForwardPorts() }()
	<-ready
	ports, err := pf.GetPorts()
	if err != nil {
		t.Fatal(err)
	}
	c, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[0].Local))
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(c, "through the pod")
	c.(*net.TCPConn).CloseWrite()
	if got, err := io.ReadAll(c); err != nil || string(got) != "through the pod" {
		t.Errorf("%q %v", got, err)
	}
	c.Close()
	// Nothing listens on port 1: the client's connection ends, with nothing on it.
	if c, err = net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", ports[1].Local)); err == nil {
		c.SetDeadline(time.Now().Add(5 * time.Second))
		if got, err := io.ReadAll(c); errors.Is(err, os.ErrDeadlineExceeded) || len(got) != 0 {
			t.Errorf("dead port: %q %v", got, err)
		}
		c.Close()
	}
	if _, err := dialIn(t.Context(), ns, 1); err == nil || !strings.Contains(err.Error(), "nothing answers on TCP port 1 ") {
		t.Errorf("dead port: %v", err)
	}
	close(stop)
	<-done
}

// The agent serves streams on its own socket, without tokens.
func TestServeInProcess(t *testing.T) {
	s := serve(t, &fake{})
	hs := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.ServeExec(w, r, &runtimeapi.ExecRequest{ContainerId: "own", Cmd: []string{"echo"}, Stdin: true, Stdout: true, Stderr: true})
	}))
	defer hs.Close()
	var out, errOut bytes.Buffer
	err := run(t, t.Context(), "spdy", hs.URL, remotecommand.StreamOptions{Stdin: strings.NewReader("x"), Stdout: &out, Stderr: &errOut})
	if err != nil || out.String() != "x" || errOut.String() != "err:own" {
		t.Errorf("%q %q %v", out.String(), errOut.String(), err)
	}
}

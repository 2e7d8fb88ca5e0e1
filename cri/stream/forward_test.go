package stream

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	"k8s.io/client-go/transport/spdy"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// dialers are the two ways to forward many connections over one.
var dialers = map[string]func(t *testing.T, u *url.URL) httpstream.Dialer{
	"spdy": func(t *testing.T, u *url.URL) httpstream.Dialer {
		transport, upgrader, err := spdy.RoundTripperFor(&rest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return spdy.NewDialerForStreaming(upgrader, &http.Client{Transport: transport}, "POST", u)
	},
	"tunnel": func(t *testing.T, u *url.URL) httpstream.Dialer {
		d, err := portforward.NewSPDYOverWebsocketDialerForStreaming(u, &rest.Config{})
		if err != nil {
			t.Fatal(err)
		}
		return d
	},
}

func forwarder(t *testing.T, s *Server, kind string) httpstream.Connection {
	t.Helper()
	resp, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s"})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	conn, _, err := dialers[kind](t, u).Dial(forwardProtocol)
	if err != nil {
		t.Fatal(err)
	}
	return conn
}

// connect opens the two streams of one forwarded connection.
func connect(t *testing.T, conn httpstream.Connection, request, port string) (data, fault httpstream.Stream) {
	t.Helper()
	open := func(kind string) httpstream.Stream {
		h := http.Header{}
		h.Set(streamType, kind)
		h.Set(headerPort, port)
		h.Set(headerRequest, request)
		st, err := conn.CreateStream(h)
		if err != nil {
			t.Fatal(err)
		}
		return st
	}
	fault = open(typeError)
	fault.Close()
	return open(typeData), fault
}

// settle waits until no more goroutines of this package or of the libraries below
// it run than before.
func settle(t *testing.T, before int) {
	t.Helper()
	count := 0
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		if count = servers(); count <= before {
			return
		}
	}
	buf := make([]byte, 1<<20)
	t.Fatalf("%d goroutines serve streams, %d did before:\n%s", count, before, buf[:runtime.Stack(buf, true)])
}

func servers() (n int) {
	buf := make([]byte, 4<<20)
	for _, g := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		for _, of := range []string{"cri/stream.", "spdystream", "wsstream", "x/net/websocket"} {
			if strings.Contains(g, of) && !strings.Contains(g, "CreateStream") && !strings.Contains(g, "cri/stream.servers") && !strings.Contains(g, "(*Server).Run") {
				n++
				break
			}
		}
	}
	return n
}

// A port that nobody listens on is told to the client, and its other connections
// and those to come go on.
func TestClosedPortKeepsTheSession(t *testing.T) {
	for kind := range dialers {
		t.Run(kind, func(t *testing.T) {
			ns, port := newNetNS(t)
			s := serve(t, &fake{ns: ns})
			before := servers()
			conn := forwarder(t, s, kind)
			first, _ := connect(t, conn, "1", fmt.Sprint(port))
			io.WriteString(first, "one")
			got := make([]byte, 3)
			if _, err := io.ReadFull(first, got); err != nil || string(got) != "one" {
				t.Fatalf("%q %v", got, err)
			}
			_, fault := connect(t, conn, "2", "1")
			said, err := io.ReadAll(fault)
			if err != nil || !strings.Contains(string(said), "nothing answers on TCP port 1 ") {
				t.Errorf("closed port: %q %v", said, err)
			}
			io.WriteString(first, "two")
			if _, err := io.ReadFull(first, got); err != nil || string(got) != "two" {
				t.Errorf("the first connection: %q %v", got, err)
			}
			big := make([]byte, 8<<20)
			rand.Read(big)
			third, _ := connect(t, conn, "3", fmt.Sprint(port))
			go func() {
				third.Write(big[:3<<20]) // one frame
				io.Copy(third, struct{ io.Reader }{bytes.NewReader(big[3<<20:])})
				third.Close()
			}()
			if back, err := io.ReadAll(third); err != nil || !bytes.Equal(back, big) {
				t.Errorf("8 MiB through the pod: %d bytes back, %v", len(back), err)
			}
			conn.Close()
			settle(t, before)
		})
	}
}

// The connection of a client that is killed, with streams of every state on it.
func TestForwarderIsKilled(t *testing.T) {
	for kind := range dialers {
		t.Run(kind, func(t *testing.T) {
			ns, port := newNetNS(t)
			s := serve(t, &fake{ns: ns})
			before := servers()
			conn := forwarder(t, s, kind)
			for i := range 5 {
				data, _ := connect(t, conn, fmt.Sprint(i), fmt.Sprint(port))
				io.WriteString(data, "x")
				io.ReadFull(data, make([]byte, 1)) // what nobody reads holds up the client's other streams
			}
			half := http.Header{}
			half.Set(streamType, typeData)
			half.Set(headerPort, "5")
			half.Set(headerRequest, "half")
			if _, err := conn.CreateStream(half); err != nil {
				t.Fatal(err)
			}
			conn.Close()
			settle(t, before)
		})
	}
}

func TestIPv6AndHostNetwork(t *testing.T) {
	l, err := net.Listen("tcp", "[::1]:0")
	if err != nil {
		t.Skipf("no IPv6 on this host: %v", err)
	}
	defer l.Close()
	go func() {
		c, err := l.Accept()
		if err == nil {
			io.WriteString(c, "six")
			c.Close()
		}
	}()
	s := serve(t, &fake{}) // without a namespace: as for a pod on the host's network
	conn := forwarder(t, s, "spdy")
	defer conn.Close()
	data, _ := connect(t, conn, "1", fmt.Sprint(l.Addr().(*net.TCPAddr).Port))
	if got, err := io.ReadAll(data); err != nil || string(got) != "six" {
		t.Errorf("%q %v", got, err)
	}
}

func TestWebSocketPorts(t *testing.T) {
	ns, port := newNetNS(t)
	s := serve(t, &fake{ns: ns})
	before := servers()
	resp, err := s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s", Port: []int32{int32(port), 1}})
	if err != nil {
		t.Fatal(err)
	}
	ws := dialWebSocket(t, resp.Url, "v4.channel.k8s.io")
	want := string([]byte{byte(port), byte(port >> 8)})
	got := map[byte]string{}
	ws.send([]byte("\x00hello"))
	for got[0] != want+"hello" || !strings.Contains(got[3], "nothing answers on TCP port 1 ") {
		m := ws.receive()
		got[m[0]] += string(m[1:])
	}
	if got[1] != want {
		t.Errorf("errors of the first port: %q, want its number alone", got[1])
	}
	ws.Close()
	settle(t, before)

	resp, _ = s.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: "s"})
	if _, err := tryWebSocket(resp.Url, "v4.channel.k8s.io"); err == nil {
		t.Error("a plain WebSocket without ports is served")
	}
}

// What a client opens beyond its request is rejected at once, also while the
// command runs, and is not kept.
func TestStreamsNotAskedFor(t *testing.T) {
	f := &fake{}
	s := serve(t, f)
	before := servers()
	resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sleep"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	u, _ := url.Parse(resp.Url)
	conn, protocol, err := dialers["spdy"](t, u).Dial(remoteProtocols...)
	if err != nil || protocol != remoteProtocols[0] {
		t.Fatalf("%q %v", protocol, err)
	}
	open := func(kind string) (httpstream.Stream, error) {
		h := http.Header{}
		h.Set(streamType, kind)
		return conn.CreateStream(h)
	}
	if _, err := open(typeError); err != nil {
		t.Fatal(err)
	}
	if st, err := open(typeStdin); err == nil {
		if _, err := st.Read(make([]byte, 1)); err == nil {
			t.Error("standard input that was not asked for is open")
		}
	}
	out, err := open(typeStdout)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(out, make([]byte, len("asleep")))
	for range 200 {
		go open(typeStdout)
	}
	time.Sleep(100 * time.Millisecond)
	if n := servers(); n > before+100 {
		t.Errorf("%d goroutines for one client", n-before)
	}
	conn.Close()
	settle(t, before+3) // the client library keeps some of its own, for streams that were never answered
	if f.ended() != 1 {
		t.Errorf("%d commands ended, want 1", f.ended())
	}
}

// A client that has sent more than the command reads, and leaves.
func TestLeavesBehindUnreadInput(t *testing.T) {
	for protocol := range executors {
		t.Run(protocol, func(t *testing.T) {
			f := &fake{}
			s := serve(t, f)
			before := servers()
			resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"sleep"}, Stdin: true, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			out := &notify{got: make(chan struct{})}
			address, kill := through(t, resp.Url)
			var wg sync.WaitGroup
			wg.Go(func() { run(t, t.Context(), protocol, address, streamOptions(endless{}, out)) })
			<-out.got
			time.Sleep(500 * time.Millisecond) // until everything is full
			var mem runtime.MemStats
			runtime.ReadMemStats(&mem)
			if mem.HeapInuse > 200<<20 {
				t.Errorf("%d MiB are kept for a client whose input nobody reads", mem.HeapInuse>>20)
			}
			kill()
			wg.Wait()
			settle(t, before)
			if f.ended() != 1 {
				t.Error("the command outlives its client")
			}
		})
	}
}

type endless struct{}

func (endless) Read(p []byte) (int, error) { return len(p), nil }

// A client that takes nothing of a status does not keep its session.
func TestStuckClient(t *testing.T) {
	s := serve(t, &fake{})
	before := servers()
	resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"flood"}, Stdout: true})
	if err != nil {
		t.Fatal(err)
	}
	ws, err := tryWebSocket(resp.Url, "v4.channel.k8s.io")
	if err != nil {
		t.Fatal(err)
	}
	defer ws.Close()
	settle(t, before+1) // our own end
}

func TestEndOfALine(t *testing.T) {
	if _, err := os.Stat("/proc/self/fd"); err != nil {
		t.Skip("needs /proc")
	}
	open := func() int {
		e, _ := os.ReadDir("/proc/self/fd")
		return len(e)
	}
	s := serve(t, &fake{})
	before := 0
	for i := range 20 {
		for protocol := range executors {
			resp, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"exit"}, Stdout: true})
			if err != nil {
				t.Fatal(err)
			}
			run(t, t.Context(), protocol, resp.Url, streamOptions(nil, io.Discard))
		}
		if i == 0 {
			before = open()
		}
	}
	for end := time.Now().Add(10 * time.Second); open() > before+2; time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d descriptors, %d after the first round", open(), before)
		}
	}
}

package stream

import (
	"io"
	"net"
	"net/url"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/websocket"
	"k8s.io/client-go/tools/remotecommand"
)

func streamOptions(in io.Reader, out io.Writer) remotecommand.StreamOptions {
	return remotecommand.StreamOptions{Stdin: in, Stdout: out}
}

// socket is a bare WebSocket client.
type socket struct {
	*websocket.Conn
	t *testing.T
}

func tryWebSocket(url, protocol string) (*websocket.Conn, error) {
	c, err := websocket.NewConfig("ws"+url[len("http"):], "http://localhost/")
	if err != nil {
		return nil, err
	}
	c.Protocol = []string{protocol}
	return websocket.DialConfig(c)
}

func dialWebSocket(t *testing.T, url, protocol string) *socket {
	t.Helper()
	ws, err := tryWebSocket(url, protocol)
	if err != nil {
		t.Fatal(err)
	}
	ws.SetDeadline(time.Now().Add(20 * time.Second))
	return &socket{ws, t}
}

func (s *socket) send(b []byte) {
	s.t.Helper()
	if err := websocket.Message.Send(s.Conn, b); err != nil {
		s.t.Fatal(err)
	}
}

func (s *socket) receive() (b []byte) {
	s.t.Helper()
	for len(b) == 0 {
		if err := websocket.Message.Receive(s.Conn, &b); err != nil {
			s.t.Fatal(err)
		}
	}
	return b
}

// through puts a line between client and server that can be cut at once, as if
// the client's machine or process had gone.
func through(t *testing.T, address string) (instead string, kill func()) {
	t.Helper()
	u, err := url.Parse(address)
	if err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	to := u.Host
	u.Host = l.Addr().String()
	var work sync.WaitGroup
	cut := make(chan struct{})
	var once sync.Once
	kill = func() {
		once.Do(func() { close(cut) })
		l.Close()
		work.Wait()
	}
	t.Cleanup(kill)
	work.Go(func() {
		c, err := l.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		s, err := net.Dial("tcp", to)
		if err != nil {
			return
		}
		defer s.Close()
		go io.Copy(s, c)
		go io.Copy(c, s)
		<-cut
	})
	return u.String(), kill
}

package stream

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"sync"
	"time"

	"golang.org/x/net/websocket"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
	"k8s.io/streaming/pkg/httpstream/wsstream"
)

// The words of port-forward's protocols.
const (
	forwardProtocol = "portforward.k8s.io"
	tunnelProtocol  = "SPDY/3.1+portforward.k8s.io"
	headerPort      = "port"
	headerRequest   = "requestID"
	typeData        = "data"
)

const (
	// maxPairs bounds the connections that one client forwards at once.
	maxPairs = 1000
	// maxForwarded bounds the ports that a client may name beforehand.
	maxForwarded = 100
)

// ServePortForward upgrades r and forwards its connections to ports in a
// sandbox until the client leaves. q names the ports for plain WebSocket
// clients; SPDY ones name them themselves, stream by stream.
func (s *Server) ServePortForward(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest) {
	l := newLine(w, r)
	defer l.end()
	var err error
	switch {
	case wsstream.IsWebSocketRequestWithTunnelingProtocol(r):
		s.tunnel(l, q)
	case wsstream.IsWebSocketRequest(r):
		err = s.forwardPorts(l, q)
	default:
		err = s.forwardStreams(l, q)
	}
	if err != nil {
		s.cfg.Log.Debug("port-forward ended", "sandbox", q.GetPodSandboxId(), "err", err)
	}
}

// forwardStreams forwards what comes over SPDY.
func (s *Server) forwardStreams(l *line, q *runtimeapi.PortForwardRequest) error {
	if _, err := httpstream.Handshake(l.r, l, []string{forwardProtocol}); err != nil {
		return err // the client has been told
	}
	p := s.newPairs(l.r.Context(), q.GetPodSandboxId())
	conn, err := upgrade(l, p.offered)
	if err != nil {
		return err
	}
	p.run(conn)
	return nil
}

// tunnel forwards what comes over SPDY inside of WebSocket messages.
func (s *Server) tunnel(l *line, q *runtimeapi.PortForwardRequest) {
	websocket.Server{
		Handshake: func(c *websocket.Config, _ *http.Request) error {
			for _, p := range c.Protocol {
				if p == tunnelProtocol {
					c.Protocol = []string{p}
					return nil
				}
			}
			return fmt.Errorf("none of the protocols %q is known", c.Protocol)
		},
		Handler: func(ws *websocket.Conn) {
			ws.PayloadType = websocket.BinaryFrame
			p := s.newPairs(l.r.Context(), q.GetPodSandboxId())
			conn, err := spdy.NewServerConnection(cut{ws, &frames{src: ws}}, p.offered)
			if err != nil {
				s.cfg.Log.Debug("port-forward: no tunnel", "sandbox", q.GetPodSandboxId(), "err", err)
				return
			}
			p.run(conn)
		},
	}.ServeHTTP(l, l.r)
}

// pairs are the connections that one SPDY client forwards: two streams each,
// one for data and one for what went wrong.
//
//	(nothing) ─first stream─▶ half ─second─▶ forwarding ─▶ removed
//	                            └── 30 s ──▶ removed
type pairs struct {
	s       *Server
	ctx     context.Context
	sandbox string
	work    sync.WaitGroup

	mu   sync.Mutex
	conn httpstream.Connection
	open map[string]*pair // by request
	over bool             // no more are taken
}

type pair struct {
	data, fault httpstream.Stream
	replied     []<-chan struct{}
	port        int32
	late        *time.Timer
}

func (s *Server) newPairs(ctx context.Context, sandbox string) *pairs {
	return &pairs{s: s, ctx: ctx, sandbox: sandbox, open: map[string]*pair{}}
}

// run serves conn until it or the context ends, and leaves nothing behind.
func (p *pairs) run(conn httpstream.Connection) {
	conn.SetIdleTimeout(p.s.cfg.IdleTimeout)
	p.mu.Lock()
	p.conn = conn
	p.mu.Unlock()
	select {
	case <-conn.CloseChan():
	case <-p.ctx.Done():
	}
	p.mu.Lock()
	p.over = true
	for _, pr := range p.open {
		pr.late.Stop()
	}
	p.mu.Unlock()
	conn.Close() // resets all streams, so that each forward ends
	p.work.Wait()
}

// offered takes one stream; its error rejects it.
func (p *pairs) offered(st httpstream.Stream, replied <-chan struct{}) error {
	port, err := strconv.ParseUint(st.Headers().Get(headerPort), 10, 16)
	if err != nil || port == 0 {
		return fmt.Errorf("%q is no port", st.Headers().Get(headerPort))
	}
	request := requestOf(st)
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.over {
		return errors.New("the connection is being closed")
	}
	pr := p.open[request]
	if pr == nil {
		if len(p.open) >= maxPairs {
			return fmt.Errorf("%d connections are being forwarded: no more are taken", maxPairs)
		}
		pr = &pair{late: time.AfterFunc(creation, func() { p.expire(request) })}
		p.open[request] = pr
	}
	switch kind := st.Headers().Get(streamType); {
	case kind == typeData && pr.data == nil:
		pr.data, pr.port = st, int32(port)
	case kind == typeError && pr.fault == nil:
		pr.fault = st
	default:
		return fmt.Errorf("stream type %q is unknown, or is open already", kind)
	}
	if pr.replied = append(pr.replied, replied); pr.data != nil && pr.fault != nil && pr.late.Stop() {
		p.work.Go(func() { p.serve(request, pr) })
	}
	return nil
}

// requestOf tells which connection a stream belongs to. Clients of long ago give
// no ID: theirs open the error stream first, and the data stream next.
func requestOf(st httpstream.Stream) string {
	if id := st.Headers().Get(headerRequest); id != "" {
		return id
	}
	n := int(st.Identifier())
	if st.Headers().Get(streamType) == typeData {
		n -= 2
	}
	return "#" + strconv.Itoa(n)
}

// expire drops a pair whose other half never came.
func (p *pairs) expire(request string) {
	p.mu.Lock()
	pr := p.open[request]
	p.mu.Unlock()
	if pr != nil {
		if pr.fault != nil {
			io.WriteString(pr.fault, "the data stream of this connection was not opened in time")
		}
		p.drop(request, pr)
	}
}

// drop forgets a pair and ends its streams.
func (p *pairs) drop(request string, pr *pair) {
	p.mu.Lock()
	conn := p.conn
	delete(p.open, request)
	p.mu.Unlock()
	for _, st := range []httpstream.Stream{pr.data, pr.fault} {
		if st != nil {
			st.Reset()
			if conn != nil {
				conn.RemoveStreams(st)
			}
		}
	}
}

// serve forwards one connection. Its failure is told to the client, whose other
// connections go on.
func (p *pairs) serve(request string, pr *pair) {
	defer p.drop(request, pr)
	for _, replied := range pr.replied {
		select {
		case <-replied:
		case <-p.ctx.Done():
			return
		}
	}
	if err := p.s.forward(p.ctx, p.sandbox, pr.port, pr.data); err != nil {
		fmt.Fprintf(pr.fault, "error forwarding port %d: %v", pr.port, err)
	}
	pr.fault.Close()
}

// forwardPorts forwards the ports of q over two WebSocket channels each, on
// both of which the port comes first, in two bytes.
func (s *Server) forwardPorts(l *line, q *runtimeapi.PortForwardRequest) error {
	ports := q.GetPort()
	if len(ports) == 0 || len(ports) > maxForwarded {
		err := fmt.Errorf("the request names %d ports, 1 to %d are possible over plain WebSocket channels", len(ports), maxForwarded)
		http.Error(l, err.Error(), http.StatusBadRequest)
		return err
	}
	var channels []wsstream.ChannelType
	for range ports {
		channels = append(channels, wsstream.ReadWriteChannel, wsstream.WriteChannel)
	}
	conn := wsstream.NewConn(map[string]wsstream.ChannelProtocolConfig{
		"":                         {Binary: true, Channels: channels},
		"v4.channel.k8s.io":        {Binary: true, Channels: channels},
		"v4.base64.channel.k8s.io": {Channels: channels},
	})
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	_, streams, err := conn.Open(l, l.r)
	if err != nil {
		return fmt.Errorf("upgrading to WebSocket: %w", err)
	}
	defer conn.Close()
	var work sync.WaitGroup
	for i, port := range ports {
		data, fault := streams[2*i], streams[2*i+1]
		first := binary.LittleEndian.AppendUint16(nil, uint16(port))
		data.Write(first)
		fault.Write(first)
		work.Go(func() {
			if err := s.forward(l.r.Context(), q.GetPodSandboxId(), port, oneWay{data}); err != nil {
				fmt.Fprintf(fault, "error forwarding port %d: %v", port, err)
			}
		})
	}
	work.Wait()
	return nil
}

// oneWay is a WebSocket channel, which has no end of its own that the client
// would see: to close it ends its reads.
type oneWay struct{ io.ReadWriteCloser }

func (o oneWay) Reset() error { return o.ReadWriteCloser.Close() }
func (o oneWay) Close() error { return nil }

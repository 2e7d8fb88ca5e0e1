package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync/atomic"
	"time"

	"k8s.io/streaming/pkg/httpstream"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// remoteProtocols are what exec and attach may speak over SPDY, best first.
var remoteProtocols = []string{"v4.channel.k8s.io", "v3.channel.k8s.io", "v2.channel.k8s.io"}

// openSPDY upgrades l and waits for the streams of q.
func (s *Server) openSPDY(l *line, q wanted) (*session, error) {
	protocol, err := httpstream.Handshake(l.r, l, remoteProtocols)
	if err != nil {
		return nil, err // the client has been told
	}
	ctx := l.r.Context()
	c := &session{line: l, tty: q.GetTty(), structured: protocol == remoteProtocols[0]}
	want := map[string]bool{typeError: true}
	for kind, asked := range map[string]bool{typeStdin: q.GetStdin(), typeStdout: q.GetStdout(), typeStderr: q.GetStderr(),
		typeResize: q.GetTty() && protocol != "" && protocol != remoteProtocols[2]} {
		if asked {
			want[kind] = true
		}
	}
	opened := make(chan opening)
	conn, err := upgrade(l, offer(l, opened))
	if err != nil {
		return nil, err
	}
	conn.SetIdleTimeout(s.cfg.IdleTimeout)
	c.closeConnection = func() { conn.Close() }
	if err := c.collect(ctx, opened, want); err != nil {
		conn.Close()
		return nil, err
	}
	return c, nil
}

// opening is a stream that a client wants to open. Its verdict is sent back:
// an error rejects it.
type opening struct {
	stream  httpstream.Stream
	replied <-chan struct{}
	verdict chan<- error
}

// maxRejected is how many streams beyond its request a client may try to open:
// each is a line in the log. Then its connection is closed.
const maxRejected = 8

// offer passes the streams that a client opens on to opened, and holds none of
// them longer than the line.
func offer(l *line, opened chan<- opening) httpstream.NewStreamHandler {
	var rejected atomic.Int32
	return func(stream httpstream.Stream, replied <-chan struct{}) error {
		verdict := make(chan error, 1)
		select {
		case opened <- opening{stream, replied, verdict}:
		case <-l.r.Context().Done():
			stream.Reset()
			return nil // not worth a line
		}
		err := <-verdict
		if err != nil && rejected.Add(1) > maxRejected {
			l.left()
			stream.Reset()
			return nil
		}
		return err
	}
}

// collect waits until each wanted stream is open and its client knows. What
// comes twice or was not asked for is rejected, also later.
func (c *session) collect(ctx context.Context, opened <-chan opening, want map[string]bool) error {
	late := time.NewTimer(creation)
	defer late.Stop()
	var replies []<-chan struct{}
	for len(want) > 0 {
		select {
		case o := <-opened:
			kind := o.stream.Headers().Get(streamType)
			if !want[kind] {
				o.verdict <- fmt.Errorf("a stream of type %q was not asked for, or is open already", kind)
				continue
			}
			delete(want, kind)
			c.take(kind, o.stream)
			replies = append(replies, o.replied)
			o.verdict <- nil
		case <-late.C:
			return errNoStreams
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	for _, replied := range replies {
		select {
		case <-replied:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	c.line.work.Go(func() { refuse(ctx, opened) })
	return nil
}

// refuse rejects what clients open beyond what they have asked for.
func refuse(ctx context.Context, opened <-chan opening) {
	for {
		select {
		case o := <-opened:
			o.verdict <- errors.New("all streams are open already")
		case <-ctx.Done():
			return
		}
	}
}

func (c *session) take(kind string, stream httpstream.Stream) {
	switch kind {
	case typeError:
		c.status = stream
	case typeStdin:
		c.in = stream
	case typeStdout:
		c.out = stream
	case typeStderr:
		c.errOut = stream
	case typeResize:
		c.sizes = stream
	}
}

// upgrade turns l's connection into SPDY.
func upgrade(l *line, offered httpstream.NewStreamHandler) (httpstream.Connection, error) {
	conn := spdy.NewResponseUpgrader().UpgradeResponse(cutting{l}, l.r, offered)
	if conn == nil {
		return nil, errors.New("the connection cannot be upgraded to SPDY") // the client has been told
	}
	return conn, nil
}

// cutting is a ResponseWriter whose connection passes through frames.
type cutting struct{ *line }

func (c cutting) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := c.line.Hijack()
	if err != nil {
		return nil, nil, err
	}
	return conn, bufio.NewReadWriter(bufio.NewReader(&frames{src: rw.Reader}), bufio.NewWriter(conn)), nil
}

// cut is a connection whose reading passes through frames.
type cut struct {
	net.Conn
	in io.Reader
}

func (c cut) Read(p []byte) (int, error) { return c.in.Read(p) }

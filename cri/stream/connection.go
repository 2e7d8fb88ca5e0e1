package stream

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/go-logr/logr"
	"golang.org/x/sys/unix"
)

// look is how often a connection is asked whether its client is still there. A
// client that has sent more than is read would otherwise leave unnoticed: its
// end waits behind what it has sent.
const look = 2 * time.Second

// lingering is how long a connection that is done with waits for its client to
// take what has been written. Closed with input unread, the kernel would throw
// that away.
const lingering = 5 * time.Second

// line is a client's connection, from its request to its end.
type line struct {
	http.ResponseWriter
	// r has a context that ends with the connection: once a connection is
	// upgraded, net/http no longer does that.
	r    *http.Request
	left func()
	// work are the goroutines that end with the connection.
	work sync.WaitGroup
	conn *noticed // once it is hijacked
}

// newLine begins to serve r; end ends it.
func newLine(w http.ResponseWriter, r *http.Request) *line {
	ctx, cancel := context.WithCancel(logr.NewContext(r.Context(), logr.Discard())) // the WebSocket library calls each client's end an error
	return &line{ResponseWriter: w, r: r.WithContext(ctx), left: cancel}
}

// end closes the connection and waits for all that belongs to it.
func (l *line) end() {
	if l.conn != nil {
		l.conn.Close()
	}
	l.left()
	l.work.Wait()
}

// hurry bounds what is still written: a client that takes nothing is not waited for.
func (l *line) hurry() {
	if l.conn != nil && !l.conn.hurried.Swap(true) {
		l.conn.Conn.SetWriteDeadline(time.Now().Add(lingering))
	}
}

// Unwrap lets http.ResponseController see through.
func (l *line) Unwrap() http.ResponseWriter { return l.ResponseWriter }

func (l *line) Flush() {
	if f, ok := l.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack hands out the connection so that its end is noticed, and closes it
// when the context ends.
func (l *line) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hj, ok := l.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("this connection cannot be upgraded")
	}
	c, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn := &noticed{Conn: c, left: l.left, done: l.r.Context().Done()}
	if sc, ok := c.(syscall.Conn); ok {
		conn.raw, _ = sc.SyscallConn() // without one, reading and writing tell when it ends
	}
	buffered, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	l.conn = conn
	l.work.Go(conn.watch)
	// The old reader reads around us; what it has read already comes first.
	in := io.MultiReader(bytes.NewReader(bytes.Clone(buffered)), conn)
	return conn, bufio.NewReadWriter(bufio.NewReader(in), bufio.NewWriter(conn)), nil
}

// noticed tells when the other side has closed or the connection has failed.
type noticed struct {
	net.Conn
	raw  syscall.RawConn // may be nil
	left func()
	done <-chan struct{}
	once sync.Once
	// hurried says that the deadline for writing is set for good.
	hurried atomic.Bool
}

// SetDeadline is what the libraries call before each message.
func (c *noticed) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

func (c *noticed) SetWriteDeadline(t time.Time) error {
	if c.hurried.Load() {
		return nil
	}
	return c.Conn.SetWriteDeadline(t)
}

func (c *noticed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.left()
	}
	return n, err
}

// Close waits for the client to take what has been written, and closes.
func (c *noticed) Close() error {
	c.once.Do(c.flush)
	c.left()
	return c.Conn.Close()
}

func (c *noticed) flush() {
	if c.raw == nil {
		return
	}
	late := time.NewTimer(lingering)
	defer late.Stop()
	t := time.NewTicker(5 * time.Millisecond)
	defer t.Stop()
	for c.queued() > 0 {
		select {
		case <-t.C:
		case <-c.done:
			return
		case <-late.C:
			return
		}
	}
}

// queued is how much of what has been written the other side does not have yet.
func (c *noticed) queued() (n int) {
	c.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }) // closed: 0
	return n
}

// watch closes the connection when the context ends, and ends the context when
// the client has closed its end, whatever it has left unread.
func (c *noticed) watch() {
	defer c.Conn.Close()
	t := time.NewTicker(look)
	defer t.Stop()
	for {
		select {
		case <-c.done:
			return
		case <-t.C:
			if c.raw != nil && c.hungUp() || peerClosed(c.Conn) {
				c.left()
			}
		}
	}
}

// hungUp tells whether the other side will send no more.
func (c *noticed) hungUp() (gone bool) {
	if err := c.raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}
		n, err := unix.Poll(p, 0)
		gone = err == nil && n > 0 && p[0].Revents&(unix.POLLRDHUP|unix.POLLHUP|unix.POLLERR) != 0
	}); err != nil {
		return true // closed on our side
	}
	return gone
}

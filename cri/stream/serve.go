package stream

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"time"

	"github.com/berthd/berth/cri/container"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming/portforward"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	utilexec "k8s.io/utils/exec"
)

// ServeExec upgrades r and runs a command for it. It returns when the command
// has ended or the client has left; the command does not outlive either.
func (s *Server) ServeExec(w http.ResponseWriter, r *http.Request, q *runtimeapi.ExecRequest) {
	w, r, end := watched(w, r)
	defer end()
	remotecommand.ServeExec(w, r, &client{s: s, ctx: r.Context()}, "", "", q.GetContainerId(), q.GetCmd(), options(q),
		s.cfg.IdleTimeout, creation, remotecommand.SupportedStreamingProtocols)
}

// ServeAttach upgrades r and connects it to a container's own streams.
func (s *Server) ServeAttach(w http.ResponseWriter, r *http.Request, q *runtimeapi.AttachRequest) {
	w, r, end := watched(w, r)
	defer end()
	remotecommand.ServeAttach(w, r, &client{s: s, ctx: r.Context()}, "", "", q.GetContainerId(), options(q),
		s.cfg.IdleTimeout, creation, remotecommand.SupportedStreamingProtocols)
}

// ServePortForward upgrades r and forwards its connections to ports in a
// sandbox. q names the ports for WebSocket clients; SPDY ones name them
// themselves, stream by stream.
func (s *Server) ServePortForward(w http.ResponseWriter, r *http.Request, q *runtimeapi.PortForwardRequest) {
	opts, err := portforward.BuildV4Options(q.GetPort())
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w, r, end := watched(w, r)
	defer end()
	portforward.ServePortForward(w, r, &client{s: s, ctx: r.Context()}, q.GetPodSandboxId(), "", opts,
		s.cfg.IdleTimeout, creation, portforward.SupportedProtocols)
}

func options(q wanted) *remotecommand.Options {
	return &remotecommand.Options{Stdin: q.GetStdin(), Stdout: q.GetStdout(), Stderr: q.GetStderr(), TTY: q.GetTty()}
}

// watched makes r's context end with the client's connection: once a
// connection is upgraded, net/http no longer does that.
func watched(w http.ResponseWriter, r *http.Request) (http.ResponseWriter, *http.Request, func()) {
	ctx, cancel := context.WithCancel(r.Context())
	return &hijacker{ResponseWriter: w, ctx: ctx, left: cancel}, r.WithContext(ctx), cancel
}

type hijacker struct {
	http.ResponseWriter
	ctx  context.Context
	left func()
}

// Unwrap lets http.ResponseController see through.
func (h *hijacker) Unwrap() http.ResponseWriter { return h.ResponseWriter }

func (h *hijacker) Flush() {
	if f, ok := h.ResponseWriter.(http.Flusher); ok {
		f.Flush()
	}
}

// Hijack hands out the connection so that its end is noticed, and closes it
// when the server ends.
func (h *hijacker) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	hj, ok := h.ResponseWriter.(http.Hijacker)
	if !ok {
		return nil, nil, errors.New("this connection cannot be upgraded")
	}
	c, rw, err := hj.Hijack()
	if err != nil {
		return nil, nil, err
	}
	conn := &noticed{Conn: c, left: h.left}
	context.AfterFunc(h.ctx, func() { c.Close() })
	buffered, err := rw.Reader.Peek(rw.Reader.Buffered())
	if err != nil {
		c.Close()
		return nil, nil, err
	}
	// The old reader reads around us; what it has read already comes first.
	in := io.MultiReader(bytesReader(buffered), conn)
	return conn, bufio.NewReadWriter(bufio.NewReader(in), bufio.NewWriter(conn)), nil
}

// noticed tells when the other side has closed or the connection has failed.
type noticed struct {
	net.Conn
	left func()
}

func (c *noticed) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if err != nil {
		c.left()
	}
	return n, err
}

func (c *noticed) Close() error {
	c.left()
	return c.Conn.Close()
}

// client serves one connection, in the shapes of the streaming library, whose
// own contexts do not end with it.
type client struct {
	s   *Server
	ctx context.Context
}

// ExecInContainer implements remotecommand.Executor.
func (c *client) ExecInContainer(_ context.Context, _, _, id string, cmd []string, in io.Reader, out, errOut io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize, _ time.Duration) error {
	st, end := c.streams(in, out, errOut, tty, resize)
	defer end()
	code, err := c.s.cfg.Runtime.Exec(c.ctx, id, cmd, st)
	if err != nil {
		return err
	}
	if code != 0 {
		return utilexec.CodeExitError{Err: fmt.Errorf("command ended with exit code %d", code), Code: int(code)}
	}
	return nil
}

// AttachContainer implements remotecommand.Attacher.
func (c *client) AttachContainer(_ context.Context, _, _, id string, in io.Reader, out, errOut io.WriteCloser, tty bool,
	resize <-chan remotecommand.TerminalSize) error {
	st, end := c.streams(in, out, errOut, tty, resize)
	defer end()
	return c.s.cfg.Runtime.Attach(c.ctx, id, st)
}

// streams turns the library's streams into the store's; end is called when
// they are no longer used.
func (c *client) streams(in io.Reader, out, errOut io.WriteCloser, tty bool, resize <-chan remotecommand.TerminalSize) (container.Streams, func()) {
	st := container.Streams{Tty: tty}
	if in != nil {
		st.Stdin = in
	}
	if out != nil {
		st.Stdout = out
	}
	if errOut != nil {
		st.Stderr = errOut
	}
	if resize == nil {
		return st, func() {}
	}
	sizes := make(chan container.Size, 1)
	st.Resize = sizes
	ctx, cancel := context.WithCancel(c.ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case sz, ok := <-resize:
				if !ok {
					return
				}
				select {
				case sizes <- container.Size{Rows: sz.Height, Cols: sz.Width}:
				case <-ctx.Done():
					return
				}
			case <-ctx.Done():
				return
			}
		}
	})
	return st, func() {
		cancel()
		wg.Wait()
	}
}

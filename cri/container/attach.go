package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func deadline(d time.Duration) time.Time { return time.Now().Add(d) }

// maxQueue is how many packets of output may wait for an attached client. The
// monitor, and with it the container, would wait for a slower one: it is
// dropped instead.
const maxQueue = 256

// Attach connects a client to a container's own streams until the container
// ends, the client leaves (ctx) or, with standard input that is closed after
// one use, has sent all.
func (s *Store) Attach(ctx context.Context, id string, st Streams) error {
	c, err := s.complete(id)
	if err != nil {
		return err
	}
	rec, cfg := c.snapshot()
	if rec.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	conn, err := monitor.Attach(s.bundle(c.id))
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	defer conn.Close()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	if st.Resize != nil && cfg.GetTty() {
		go s.resizes(ctx, c, st.Resize)
	}
	if st.Stdin != nil && cfg.GetStdin() {
		// Ends with the connection or with the client, whose connection the caller closes.
		go func() {
			feed(conn, st.Stdin)
			if cfg.GetStdinOnce() && !cfg.GetTty() {
				conn.CloseWrite() // the monitor closes the container's input
			}
		}()
	}
	queue := make(chan []byte, maxQueue)
	written := make(chan struct{})
	go func() {
		defer close(written)
		deliver(ctx, queue, st)
	}()
	err = receive(ctx, conn, queue, cancel)
	close(queue)
	select {
	case <-written:
	case <-ctx.Done():
	case <-time.After(streamDrain):
	}
	if cause := context.Cause(ctx); cause != nil {
		return cause
	}
	return err
}

var errSlow = errors.New("detached: the client takes output more slowly than the container writes it")

// receive empties the socket at once, whatever the client does.
func receive(ctx context.Context, conn *net.UnixConn, queue chan<- []byte, cancel context.CancelCauseFunc) error {
	buf := make([]byte, monitor.MaxPacket)
	for {
		n, err := conn.Read(buf)
		if n > 1 {
			select {
			case queue <- append([]byte(nil), buf[:n]...):
			default:
				cancel(errSlow)
				return errSlow
			}
		}
		switch {
		case ctx.Err() != nil, errors.Is(err, io.EOF), n == 0 && err == nil:
			return nil
		case err != nil:
			return fmt.Errorf("reading from the container's monitor: %w", err)
		}
	}
}

func deliver(ctx context.Context, queue <-chan []byte, st Streams) {
	for p := range queue {
		out := st.Stdout
		if p[0] == monitor.Stderr && !st.Tty {
			out = st.Stderr
		}
		if out == nil || ctx.Err() != nil {
			continue
		}
		if _, err := out.Write(p[1:]); err != nil {
			return
		}
	}
}

// feed sends input in packets that the monitor takes whole.
func feed(conn *net.UnixConn, in io.Reader) {
	buf := make([]byte, 8<<10)
	for {
		n, err := in.Read(buf)
		if n > 0 {
			if _, err := conn.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

// resizes passes sizes on until the client is gone.
func (s *Store) resizes(ctx context.Context, c *container, sizes <-chan Size) {
	for {
		select {
		case sz, ok := <-sizes:
			if !ok {
				return
			}
			if err := monitor.Resize(s.bundle(c.id), sz.Rows, sz.Cols); err != nil {
				s.cfg.Log.Debug("terminal cannot be resized", "container", c.id, "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

package stream

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"runtime"
	"strconv"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

func bytesReader(b []byte) io.Reader { return bytes.NewReader(append([]byte(nil), b...)) }

const dialTimeout = 10 * time.Second

// PortForward implements portforward.PortForwarder: it connects stream to port
// on localhost as the pod sees it.
func (c *client) PortForward(_ context.Context, sandboxID, _ string, port int32, stream io.ReadWriteCloser) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535", port)
	}
	ns, err := c.s.cfg.Sandboxes.NetworkNamespace(c.ctx, sandboxID)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	conn, err := dialIn(c.ctx, ns, int(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	stop := context.AfterFunc(c.ctx, func() { conn.Close() })
	defer stop()
	// Ends with the client's stream, or with the connection it writes to.
	go func() {
		io.Copy(conn, stream)
		conn.CloseWrite() // the server inside may still have something to say
	}()
	if _, err = io.Copy(stream, conn); c.ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
		return nil // the client has left
	}
	return err
}

// dialIn connects to localhost in the network namespace ns (nil: our own), on a
// thread of its own that ends with the goroutine. The connection stays in ns.
func dialIn(ctx context.Context, ns *os.File, port int) (*net.TCPConn, error) {
	type result struct {
		conn *net.TCPConn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		if ns != nil {
			runtime.LockOSThread() // for good: a thread in another namespace must not be reused
			failpoint.Hit("cri/stream/enter-netns")
			if err := unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET); err != nil {
				done <- result{err: fmt.Errorf("entering the pod's network namespace: %w", err)}
				return
			}
		}
		conn, err := dial(ctx, port)
		done <- result{conn, err}
	}()
	r := <-done
	return r.conn, r.err
}

func dial(ctx context.Context, port int) (*net.TCPConn, error) {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	var errs []error
	for _, host := range []string{"127.0.0.1", "::1"} {
		// One literal address: the dialer makes its socket on this very thread.
		conn, err := (&net.Dialer{}).DialContext(ctx, "tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err == nil {
			return conn.(*net.TCPConn), nil
		}
		errs = append(errs, err)
	}
	return nil, fmt.Errorf("nothing answers on port %d of the pod's localhost: %w", port, errors.Join(errs...))
}

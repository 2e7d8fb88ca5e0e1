package stream

import (
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

const (
	dialTimeout = 10 * time.Second
	// parting is how long, once the server in the pod has closed, what the
	// client still sends is waited for.
	parting = time.Second
)

// channel is a client's end of one forwarded connection.
type channel interface {
	io.ReadWriteCloser
	// Reset ends reads too.
	Reset() error
}

// forward connects ch to port on localhost as the pod sees it, until both sides
// are done or ctx ends. A pod's localhost is 127.0.0.1, and ::1 where nothing
// answers there.
func (s *Server) forward(ctx context.Context, sandboxID string, port int32, ch channel) error {
	if port < 1 || port > 65535 {
		return fmt.Errorf("port %d is not between 1 and 65535", port)
	}
	ns, err := s.cfg.Sandboxes.NetworkNamespace(ctx, sandboxID)
	if err != nil {
		return err
	}
	if ns != nil {
		defer ns.Close()
	}
	conn, err := dialIn(ctx, ns, int(port))
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	sent := make(chan struct{})
	go func() { // ends with the client's end of ch, or, at the latest, with its reset
		defer close(sent)
		io.Copy(conn, ch)
		conn.CloseWrite() // the server inside may still have something to say
	}()
	_, err = io.Copy(ch, conn)
	ch.Close()
	late := time.NewTimer(parting)
	defer late.Stop()
	select {
	case <-sent:
	case <-late.C:
	case <-ctx.Done():
	}
	conn.Close()
	ch.Reset()
	<-sent
	if ctx.Err() != nil || errors.Is(err, net.ErrClosed) {
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
	return nil, fmt.Errorf("nothing answers on TCP port %d of the pod's localhost (UDP cannot be forwarded): %w", port, errors.Join(errs...))
}

package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/test/failpoint"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// drainTime is how long calls may go on after the server was told to end.
const drainTime = 5 * time.Second

// Serve serves both services on a unix socket that root alone can open, until
// ctx ends. A socket that an earlier agent left is replaced; one on which
// somebody answers is an error. It may be called for several sockets at once.
func (s *Server) Serve(ctx context.Context, path string) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	chain := NewChain(s.cfg.Log)
	g := grpc.NewServer(append([]grpc.ServerOption{
		grpc.UnaryInterceptor(chain.Unary), grpc.ChainStreamInterceptor(until(ctx), chain.Stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	}, s.cfg.Options...)...)
	runtimeapi.RegisterRuntimeServiceServer(g, s)
	runtimeapi.RegisterImageServiceServer(g, s)
	api.RegisterBerthServer(g, s.berth())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		<-ctx.Done()
		hard := time.AfterFunc(drainTime, g.Stop)
		defer hard.Stop()
		g.GracefulStop()
	}()
	s.cfg.Log.Info("CRI is served", "socket", path)
	err = g.Serve(l)
	if ctx.Err() != nil {
		<-ended
		failpoint.Hit("cri/server/socket-remove")
		return errors.Join(err, ignoreMissing(os.Remove(path)))
	}
	g.Stop()
	return fmt.Errorf("serving CRI on %s: %w", path, err)
}

// until ends streams with the server: an event stream has no end of its own.
func until(ctx context.Context) grpc.StreamServerInterceptor {
	return func(srv any, stream grpc.ServerStream, _ *grpc.StreamServerInfo, call grpc.StreamHandler) error {
		own, cancel := context.WithCancel(stream.Context())
		defer cancel()
		defer context.AfterFunc(ctx, cancel)()
		return call(srv, &endingStream{ServerStream: stream, ctx: own})
	}
}

// endingStream is a stream with another context.
type endingStream struct {
	grpc.ServerStream
	ctx context.Context
}

func (e *endingStream) Context() context.Context { return e.ctx }

// Answers waits until a program answers on a unix socket; false if ctx ends first.
func Answers(ctx context.Context, path string) bool {
	var d net.Dialer
	for {
		if conn, err := d.DialContext(ctx, "unix", path); err == nil {
			conn.Close()
			return true
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// listen makes the socket under another name, so that it never exists with a
// mode that lets others in.
func listen(path string) (net.Listener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		conn.Close()
		return nil, fmt.Errorf("CRI socket %s: another program answers on it; stop it or choose another path", path)
	}
	failpoint.Hit("cri/server/socket-mkdir")
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of the CRI socket: %w", err)
	}
	temp := path + ".new"
	failpoint.Hit("cri/server/socket-listen")
	if err := ignoreMissing(os.Remove(temp)); err != nil {
		return nil, fmt.Errorf("removing an old CRI socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listening for CRI: %w", err)
	}
	l.SetUnlinkOnClose(false) // by then it has another name
	if err = os.Chmod(temp, 0o600); err == nil {
		err = os.Rename(temp, path)
	}
	if err != nil {
		l.Close()
		return nil, fmt.Errorf("placing the CRI socket: %w", err)
	}
	failpoint.Hit("cri/server/socket-listen-done")
	return l, nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

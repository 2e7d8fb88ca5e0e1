package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

// Serve answers on a unix socket at path until ctx ends, then lets short
// requests finish, ends the streams, and returns nil. A socket that nobody
// answers on is replaced; one that somebody does is an error. Only root, and
// the user that the agent runs as, are answered.
func (s *Server) Serve(ctx context.Context, path string) error {
	l, err := listen(path)
	if err != nil {
		return err
	}
	mine, err := os.Stat(path)
	if err != nil {
		_ = l.Close() // nobody is connected
		return fmt.Errorf("look at the agent's socket: %w", err)
	}
	defer removeSocket(path, mine)
	base, cancel := context.WithCancel(context.WithValue(context.WithoutCancel(ctx), endingKey{}, ctx))
	defer cancel()
	server := &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTime, IdleTimeout: 2 * time.Minute, MaxHeaderBytes: 64 << 10,
		BaseContext: func(net.Listener) context.Context { return base },
		ErrorLog:    slog.NewLogLogger(s.config.Log.Handler(), slog.LevelDebug),
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve(&rootOnly{l, s.config.Log}) }() // ends with the listener
	if s.config.Listening != nil {
		s.config.Listening()
	}
	select {
	case err := <-served:
		_ = server.Close() // the listener failed: that error says more
		return fmt.Errorf("serve the agent's API on %s: %w", path, err)
	case <-ctx.Done():
	}
	grace, stop := context.WithTimeout(base, endingTime)
	defer stop()
	err = server.Shutdown(grace)
	cancel()
	if err != nil {
		err = server.Close()
	}
	<-served
	return errors.Join(err, s.wait())
}

// wait waits for all requests, whose contexts have ended.
func (s *Server) wait() error {
	done := make(chan struct{})
	go func() { // ends with the last request
		s.requests.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-time.After(endingTime):
		return errors.New("requests to the agent go on although they were told to end")
	}
}

// listen makes the socket under another name, so that it never stands at path
// with a mode that lets others in, and there is no moment without a socket.
func listen(path string) (*net.UnixListener, error) {
	if conn, err := net.DialTimeout("unix", path, time.Second); err == nil {
		_ = conn.Close() // only asked whether somebody is there
		return nil, fmt.Errorf("another agent answers on %s: stop it, or choose another --state-dir", path)
	}
	failpoint.Hit("agent/server/socket-mkdir")
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make the directory of the agent's socket: %w", err)
	}
	temp := path + "~"
	failpoint.Hit("agent/server/socket-listen")
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove an old socket of the agent: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: temp, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("listen for the command line: %w", err)
	}
	l.SetUnlinkOnClose(false) // by then it has another name
	if err = os.Chmod(temp, 0o600); err == nil {
		failpoint.Hit("agent/server/socket-rename")
		err = os.Rename(temp, path)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("place the agent's socket: %w", err), l.Close(), os.Remove(temp))
	}
	failpoint.Hit("agent/server/socket-listen-done")
	return l, nil
}

// removeSocket removes the socket, unless another agent has put its own there.
func removeSocket(path string, mine os.FileInfo) {
	if i, err := os.Lstat(path); err == nil && os.SameFile(i, mine) {
		failpoint.Hit("agent/server/socket-remove")
		_ = os.Remove(path) // a stale one is replaced by the next agent
	}
}

// rootOnly refuses connections of other users, should the socket's mode be changed.
type rootOnly struct {
	*net.UnixListener
	log *slog.Logger
}

func (l *rootOnly) Accept() (net.Conn, error) {
	for {
		c, err := l.AcceptUnix()
		if err != nil {
			return nil, err
		}
		uid, err := peer(c)
		if err == nil && (uid == 0 || uid == uint32(os.Geteuid())) {
			return c, nil
		}
		l.log.Warn("connection to the agent's socket refused: only root may use it", "uid", uid, "err", err)
		_ = c.Close() // it is not answered
	}
}

// peer is the user at the other end of c.
func peer(c *net.UnixConn) (uint32, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, err
	}
	var cred *unix.Ucred
	var failed error
	if err := raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); err != nil {
		return 0, err
	}
	if failed != nil {
		return 0, failed
	}
	return cred.Uid, nil
}

package container

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"golang.org/x/sys/unix"
)

// runConsole starts the process on a terminal that its runtime makes in the
// container and sends to us.
func (e *session) runConsole(st Streams, ended chan<- error) (release func(), err error) {
	l, err := listenIn(e.dir, ociruntime.ConsoleSocket)
	if err != nil {
		return nil, fmt.Errorf("waiting for a terminal: %w", err)
	}
	if err := e.rt.StartExec(e.cmd); err != nil {
		l.Close()
		return nil, err
	}
	terminal := make(chan *os.File, 1) // nil: none was sent
	go func() {
		f, err := receiveTerminal(l)
		if err != nil {
			f = nil
		}
		terminal <- f
	}()
	done := make(chan struct{})
	go func() {
		var master *os.File
		var output <-chan struct{}
		take := func(f *os.File) {
			if f == nil {
				return
			}
			master = f
			resize := func(sz Size) { setSize(f, sz) }
			if e.size != nil {
				resize(Size{Rows: uint16(e.size.Height), Cols: uint16(e.size.Width)})
			}
			output = carry(f, st, resize, done)
		}
		waited := make(chan error, 1)
		go func() { waited <- e.cmd.Wait() }()
		var err error
		select {
		case f := <-terminal:
			take(f)
			err = <-waited
		case err = <-waited:
			// The runtime is gone: what it has sent waits, and nothing else will come.
			l.SetDeadline(time.Now())
			take(<-terminal)
		}
		if master != nil {
			master.SetReadDeadline(deadline(e.cmd.WaitDelay))
			<-output
			master.Close()
		}
		ended <- err
	}()
	return func() {
		close(done)
		l.Close()
	}, nil
}

// listenIn listens at the socket name in dir, whose path may be of any length.
func listenIn(dir, name string) (*net.UnixListener, error) {
	at, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening %s: %w", dir, err)
	}
	defer unix.Close(at)
	l, err := net.ListenUnix("unix", &net.UnixAddr{Net: "unix", Name: fmt.Sprintf("/proc/self/fd/%d/%s", at, name)})
	if err != nil {
		return nil, fmt.Errorf("listening at %s: %w", filepath.Join(dir, name), err)
	}
	l.SetUnlinkOnClose(false) // its path is gone with the descriptor; the directory is removed as a whole
	return l, nil
}

// receiveTerminal takes the one terminal that is sent to l. Once l's deadline
// has passed it takes only what is there already.
func receiveTerminal(l *net.UnixListener) (*os.File, error) {
	c, err := l.AcceptUnix()
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c, err = acceptPending(l)
	}
	if err != nil {
		return nil, err
	}
	defer c.Close()
	if err := c.SetReadDeadline(time.Now().Add(time.Minute)); err != nil {
		return nil, err
	}
	b, oob := make([]byte, 4096), make([]byte, unix.CmsgSpace(4))
	_, n, _, _, err := c.ReadMsgUnix(b, oob)
	if err != nil {
		return nil, err
	}
	messages, err := unix.ParseSocketControlMessage(oob[:n])
	if err != nil || len(messages) != 1 {
		return nil, fmt.Errorf("the runtime sent no terminal: %w", err)
	}
	fds, err := unix.ParseUnixRights(&messages[0])
	if err != nil || len(fds) != 1 {
		return nil, fmt.Errorf("the runtime sent no terminal: %w", err)
	}
	unix.CloseOnExec(fds[0])
	if err := unix.SetNonblock(fds[0], true); err != nil {
		unix.Close(fds[0])
		return nil, err
	}
	return os.NewFile(uintptr(fds[0]), "terminal"), nil
}

// acceptPending accepts a connection that is waiting, and waits for none.
func acceptPending(l *net.UnixListener) (*net.UnixConn, error) {
	raw, err := l.SyscallConn()
	if err != nil {
		return nil, err
	}
	fd := -1
	if ctlErr := raw.Control(func(at uintptr) { fd, _, err = unix.Accept4(int(at), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK) }); ctlErr != nil {
		return nil, ctlErr
	}
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(fd), "console")
	defer f.Close() // FileConn has a copy
	c, err := net.FileConn(f)
	if err != nil {
		return nil, err
	}
	return c.(*net.UnixConn), nil // accepted of a unix listener
}

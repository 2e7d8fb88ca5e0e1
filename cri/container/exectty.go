package container

import (
	"fmt"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/test/failpoint"
	"io"
	"os"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal returns a pseudo-terminal. The runtime is put on slave and
// carries bytes between it and the terminal it makes in the container: runc
// hands out the container's own only to detached processes, whose exit code
// nobody learns.
//
// crun hands it out (runConsole).
func openTerminal() (master, slave *os.File, err error) {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("opening a terminal: %w", err)
	}
	master = os.NewFile(uintptr(fd), "/dev/ptmx")
	var unlock int32
	if _, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCSPTLCK, uintptr(unsafe.Pointer(&unlock))); e != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("unlocking a terminal: %w", e)
	}
	peer, _, e := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if e != 0 {
		master.Close()
		return nil, nil, fmt.Errorf("opening a terminal's other end: %w", e)
	}
	slave = os.NewFile(peer, "pts")
	// The terminal in the container does echo and editing; this one only carries.
	if _, err := term.MakeRaw(int(peer)); err != nil {
		master.Close()
		slave.Close()
		return nil, nil, fmt.Errorf("setting up a terminal: %w", err)
	}
	return master, slave, nil
}

// runTerminal starts the process on a terminal.
func (s *Store) runTerminal(e *session, st Streams, ended chan<- error) (release func(), err error) {
	if e.rt.SendsTerminal() {
		return e.runConsole(st, ended)
	}
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = slave, slave, slave
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	resize := func(sz Size) {
		setSize(master, sz)
		e.resizeInner(&unix.Winsize{Row: sz.Rows, Col: sz.Cols}) // some runtimes do not carry sizes over
	}
	if e.size != nil {
		setSize(master, Size{Rows: uint16(e.size.Height), Cols: uint16(e.size.Width)})
	}
	if err := e.rt.StartExec(e.cmd); err != nil {
		master.Close()
		return nil, err
	}
	done := make(chan struct{})
	output := carry(master, st, resize, done)
	go func() {
		err := e.cmd.Wait()
		master.SetReadDeadline(deadline(e.cmd.WaitDelay))
		<-output
		ended <- err
	}()
	return func() {
		close(done)
		master.Close()
	}, nil
}

// carry connects a client with a terminal until that has no more output, which
// the returned channel tells, and done is closed.
func carry(master *os.File, st Streams, resize func(Size), done <-chan struct{}) <-chan struct{} {
	if st.Stdin != nil {
		go io.Copy(master, st.Stdin) // ends with the terminal or with the client
	}
	go func() {
		for {
			select {
			case sz, ok := <-st.Resize:
				if !ok {
					return
				}
				resize(sz)
			case <-done:
				return
			}
		}
	}()
	output := make(chan struct{})
	go func() {
		defer close(output)
		out := st.Stdout
		if out == nil {
			out = io.Discard
		}
		io.Copy(out, master) // ends with EIO, when the last end inside is closed
	}()
	return output
}

// setSize sets a terminal's size, unless it is gone.
func setSize(terminal *os.File, sz Size) {
	if raw, err := terminal.SyscallConn(); err == nil {
		raw.Control(func(fd uintptr) {
			unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Row: sz.Rows, Col: sz.Cols})
		})
	}
}

// resizeInner sets the size of the terminal that the process itself has as its
// standard input. Taken from the process, not opened: what a path in its /proc
// leads to is its own choice.
func (e *session) resizeInner(size *unix.Winsize) {
	b, err := os.ReadFile(e.pidFile())
	pid, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || convErr != nil || !slices.Contains(monitor.Descendants(e.cmd.Process.Pid), pid) {
		return // not yet there: it begins with the size of our end
	}
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return
	}
	defer unix.Close(fd)
	if tty, err := unix.PidfdGetfd(fd, 0, 0); err == nil {
		unix.IoctlSetWinsize(tty, unix.TIOCSWINSZ, size) // fails on anything but a terminal
		unix.Close(tty)
	}
}

// kill kills the process and what it started. The runtime that runs it is left
// to reap it and to end by itself, for a second.
func (e *session) kill(ended <-chan error) error {
	own := e.cmd.Process.Pid
	all := monitor.Descendants(own)[1:]
	for _, pid := range all {
		// Children that have lost their parent are in its group still.
		if pg, err := unix.Getpgid(pid); err == nil && slices.Contains(all, pg) {
			failpoint.Hit("cri/container/exec-kill")
			unix.Kill(-pg, unix.SIGKILL)
		}
	}
	for _, pid := range all {
		unix.Kill(pid, unix.SIGKILL) // gone is success
	}
	if len(all) > 0 {
		select {
		case err := <-ended:
			return err
		case <-time.After(time.Second):
		}
	}
	e.cmd.Process.Kill() // gone is success
	return <-ended
}

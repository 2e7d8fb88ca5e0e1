package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
	"golang.org/x/term"
)

// openTerminal returns a pseudo-terminal. The runtime is put on slave and
// carries bytes between it and the terminal it makes in the container: runc
// hands out the container's own only to detached processes, whose exit code
// nobody learns.
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
	master, slave, err := openTerminal()
	if err != nil {
		return nil, err
	}
	defer slave.Close()
	e.cmd.Stdin, e.cmd.Stdout, e.cmd.Stderr = slave, slave, slave
	e.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true, Ctty: 0}
	resize := func(sz Size) {
		unix.IoctlSetWinsize(int(descriptor(master)), unix.TIOCSWINSZ, &unix.Winsize{Row: sz.Rows, Col: sz.Cols})
	}
	select {
	case sz := <-st.Resize:
		resize(sz)
	default:
	}
	if err := s.cfg.Runtime.StartExec(e.cmd); err != nil {
		master.Close()
		return nil, err
	}
	done := make(chan struct{})
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

// descriptor gives the descriptor without making it blocking, as Fd would.
func descriptor(f *os.File) (fd uintptr) {
	if raw, err := f.SyscallConn(); err == nil {
		raw.Control(func(p uintptr) { fd = p })
	}
	return fd
}

// kill kills the process, what it started, and the runtime that runs it.
func (e *session) kill() {
	seen := map[int]bool{}
	var walk func(pid int)
	walk = func(pid int) {
		if pid <= 1 || seen[pid] {
			return
		}
		seen[pid] = true
		tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(pid) + "/task")
		for _, t := range tasks {
			b, _ := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/task/" + t.Name() + "/children")
			for _, f := range strings.Fields(string(b)) {
				if child, err := strconv.Atoi(f); err == nil {
					walk(child)
				}
			}
		}
	}
	own := e.cmd.Process.Pid
	walk(own) // not yet waited for: its pid, and those of its children, are theirs
	groups := map[int]bool{own: true}
	for pid := range seen {
		if pg, err := unix.Getpgid(pid); err == nil && seen[pg] {
			groups[pg] = true
		}
	}
	for pg := range groups {
		unix.Kill(-pg, unix.SIGKILL)
	}
	for pid := range seen {
		if err := unix.Kill(pid, unix.SIGKILL); err != nil && !errors.Is(err, unix.ESRCH) {
			continue // of another user namespace, say: its parent's death is the best we can do
		}
	}
}

package sandbox

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// process identifies a process for as long as the machine runs: its number may
// be given away again, its number with its start time may not.
type process struct {
	PID int `json:"pid"`
	// Start is in clock ticks since boot, as in /proc/<pid>/stat.
	Start uint64 `json:"start"`
}

// identify completes the identity of a living process.
func identify(pid int) (process, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return process{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	// The name, in parentheses, may hold anything; fields are counted after it.
	fields := bytes.Fields(b[bytes.LastIndexByte(b, ')')+1:])
	if len(fields) < 20 {
		return process{}, fmt.Errorf("identifying process %d: its stat has %d fields after the name", pid, len(fields))
	}
	start, err := strconv.ParseUint(string(fields[19]), 10, 64)
	if err != nil {
		return process{}, fmt.Errorf("identifying process %d: %w", pid, err)
	}
	return process{PID: pid, Start: start}, nil
}

// open returns a pidfd of p, or -1 if it has ended and is collected.
func (p process) open() (int, error) {
	fd, err := unix.PidfdOpen(p.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) {
		return -1, nil
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d (Linux 5.10 or newer is needed): %w", p.PID, err)
	}
	// Looked at after it is held: now the number cannot change hands.
	if now, err := identify(p.PID); err != nil || now != p {
		unix.Close(fd)
		return -1, nil
	}
	return fd, nil
}

// watch waits for the end of one process, without a thread of its own.
type watch struct {
	file  *os.File // a pidfd
	ended chan struct{}
}

// newWatch takes over pidfd. When the process has ended, done runs on a
// goroutine counted in wg, and then ended is closed; after close, neither.
func newWatch(pidfd int, wg *sync.WaitGroup, done func()) (*watch, error) {
	if err := unix.SetNonblock(pidfd, true); err != nil {
		unix.Close(pidfd)
		return nil, fmt.Errorf("watching a process: %w", err)
	}
	w := &watch{file: os.NewFile(uintptr(pidfd), "pidfd"), ended: make(chan struct{})}
	conn, err := w.file.SyscallConn()
	if err != nil {
		w.file.Close()
		return nil, fmt.Errorf("watching a process: %w", err)
	}
	wg.Go(func() {
		if conn.Read(hasEnded) != nil {
			return // closed
		}
		done()
		close(w.ended)
	})
	return w, nil
}

// hasEnded tells whether the process behind a pidfd has.
func hasEnded(pidfd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(pidfd), Events: unix.POLLIN}}, 0)
	return n > 0 && err == nil
}

func (w *watch) close() { w.file.Close() }

// kill ends the watched process and waits until it has ended.
func (w *watch) kill(ctx context.Context) error {
	conn, err := w.file.SyscallConn()
	if err != nil {
		return fmt.Errorf("ending the pod's init: %w", err)
	}
	failpoint.Hit("cri/sandbox/init-kill")
	if cerr := conn.Control(func(fd uintptr) { err = unix.PidfdSendSignal(int(fd), unix.SIGKILL, nil, 0) }); cerr != nil {
		return fmt.Errorf("ending the pod's init: %w", cerr)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending the pod's init: %w", err)
	}
	failpoint.Hit("cri/sandbox/init-kill-done")
	select {
	case <-w.ended:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for the end of the pod's init: %w", context.Cause(ctx))
	}
}

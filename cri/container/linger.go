package container

import (
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
	"unsafe"

	"github.com/berthd/berth/cri/monitor"
	"golang.org/x/sys/unix"
)

// runc carries a command's output itself, and does not end before every child
// that holds it has: a probe that leaves something in the background would take
// until its timeout. So the process is watched, beside its runtime. What has ended
// before it can be seen is beyond that: such a command takes its whole time.

// pidfdInfo is the kernel's struct pidfd_info, as it was first.
type pidfdInfo struct {
	mask, cgroup uint64
	ids          [11]uint32
	exit         int32
}

const (
	pidfdGetInfo = 0xC040FF0B // _IOWR(0xFF, 11, struct pidfd_info)
	infoExit     = 1 << 3     // since Linux 6.15
	lookForPID   = 5 * time.Millisecond
)

// watchOutlived delivers the exit code of a process whose runtime does not end with
// it. end ends the watch.
func (e *session) watchOutlived(tty bool) (codes <-chan int32, end func()) {
	if tty || e.rt.Binary().Name == "crun" { // there the process itself has what it writes to
		return nil, func() {}
	}
	found, stop := make(chan int32, 1), make(chan struct{})
	var watch sync.WaitGroup
	watch.Go(func() {
		if code, ok := e.outlived(stop); ok {
			found <- code
		}
	})
	return found, func() {
		close(stop)
		watch.Wait()
	}
}

// outlived waits until the process has ended and its runtime has not, for the
// time of its drain more, and returns its exit code. ok is false if stop comes
// first, or if the kernel does not tell the exit code of others' children.
func (e *session) outlived(stop <-chan struct{}) (code int32, ok bool) {
	fd := e.openProcess(stop)
	if fd < 0 {
		return 0, false
	}
	defer unix.Close(fd)
	t := time.NewTicker(lookForPID)
	defer t.Stop()
	var ended time.Time
	for {
		p := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, err := unix.Poll(p, 0)
		switch now := time.Now(); {
		case err != nil || n == 0:
		case ended.IsZero():
			ended = now
		case now.Sub(ended) > e.cmd.WaitDelay:
			return exitOf(fd)
		}
		select {
		case <-stop:
			return 0, false
		case <-t.C:
		}
	}
}

// openProcess returns a pidfd of the process once the runtime has told which it
// is; -1 if stop comes first.
func (e *session) openProcess(stop <-chan struct{}) int {
	t := time.NewTicker(lookForPID)
	defer t.Stop()
	for {
		b, err := os.ReadFile(e.pidFile())
		if pid, cerr := strconv.Atoi(strings.TrimSpace(string(b))); err == nil && cerr == nil {
			fd, err := unix.PidfdOpen(pid, 0)
			if err != nil {
				return -1
			}
			if slices.Contains(monitor.Descendants(e.cmd.Process.Pid), pid) { // after opening: it cannot be another's now
				return fd
			}
			unix.Close(fd)
			return -1
		}
		select {
		case <-stop:
			return -1
		case <-t.C:
		}
	}
}

// exitOf asks the kernel how the process behind pidfd fd has ended.
func exitOf(fd int) (code int32, ok bool) {
	info := pidfdInfo{mask: infoExit}
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info))); errno != 0 || info.mask&infoExit == 0 {
		return 0, false
	}
	ws := unix.WaitStatus(info.exit)
	if ws.Signaled() {
		return 128 + int32(ws.Signal()), true
	}
	return int32(ws.ExitStatus()), true
}

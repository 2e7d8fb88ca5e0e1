package monitor

import (
	"bytes"
	"errors"
	"fmt"
	"github.com/berthd/berth/test/failpoint"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Identity names a process for as long as this boot lasts: a pid alone may be
// given to another. The zero value is no process.
type Identity struct {
	PID int `json:"pid"`
	// Start is the process's start time, in clock ticks since boot.
	Start uint64 `json:"start"`
}

// ErrGone says that the process an Identity named has ended.
var ErrGone = errors.New("process has ended")

// Identify returns the identity of the process that now has pid; ErrGone if
// there is none. A zombie counts as present.
func Identify(pid int) (Identity, error) {
	start, _, err := stat(pid)
	return Identity{PID: pid, Start: start}, err
}

// stat reads a process's start time and state.
func stat(pid int) (start uint64, state byte, err error) {
	b, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ESRCH) {
		return 0, 0, ErrGone
	}
	if err != nil {
		return 0, 0, err
	}
	// The command, in parentheses, may contain anything; fields follow its last ")".
	f := strings.Fields(string(b[bytes.LastIndexByte(b, ')')+1:]))
	if len(f) < 20 {
		return 0, 0, fmt.Errorf("/proc/%d/stat has %d fields after the command, 20 are needed", pid, len(f))
	}
	start, err = strconv.ParseUint(f[19], 10, 64)
	return start, f[0][0], err
}

// Descendants returns pid and all that descend from it, as of now.
func Descendants(pid int) []int {
	all := []int{pid}
	for i := 0; i < len(all); i++ {
		tasks, _ := os.ReadDir("/proc/" + strconv.Itoa(all[i]) + "/task")
		for _, t := range tasks {
			b, _ := os.ReadFile("/proc/" + strconv.Itoa(all[i]) + "/task/" + t.Name() + "/children")
			for _, f := range strings.Fields(string(b)) {
				if child, err := strconv.Atoi(f); err == nil && child > 1 {
					all = append(all, child)
				}
			}
		}
	}
	return all
}

// KillAll kills the process and all that descend from it: a monitor, and the
// runtime that it waits for. ErrGone if it has ended.
func (i Identity) KillAll() error {
	var below []Identity
	if i.Alive() {
		for _, pid := range Descendants(i.PID)[1:] {
			if id, err := Identify(pid); err == nil {
				below = append(below, id)
			}
		}
	}
	err := i.Signal(unix.SIGKILL)
	for _, id := range below {
		if kerr := id.Signal(unix.SIGKILL); kerr != nil && !errors.Is(kerr, ErrGone) {
			err = errors.Join(err, kerr)
		}
	}
	return err
}

// Alive tells whether the process still runs; a zombie does not.
func (i Identity) Alive() bool {
	if i.PID <= 0 {
		return false
	}
	start, state, err := stat(i.PID)
	return err == nil && start == i.Start && state != 'Z' && state != 'X'
}

// Open returns a pidfd of the process, ErrGone if it has ended. The caller closes it.
func (i Identity) Open() (int, error) {
	if i.PID <= 0 {
		return -1, ErrGone
	}
	fd, err := unix.PidfdOpen(i.PID, 0)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return -1, ErrGone
	}
	if err != nil {
		return -1, fmt.Errorf("opening process %d: %w", i.PID, err)
	}
	// Checked after opening: from here on the descriptor cannot change its meaning.
	if start, _, err := stat(i.PID); err != nil || start != i.Start {
		unix.Close(fd)
		return -1, ErrGone
	}
	return fd, nil
}

// Signal sends sig; a process that has ended is ErrGone.
func (i Identity) Signal(sig unix.Signal) error {
	fd, err := i.Open()
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	failpoint.Hit("cri/monitor/signal")
	if err := unix.PidfdSendSignal(fd, sig, nil, 0); errors.Is(err, unix.ESRCH) {
		return ErrGone
	} else if err != nil {
		return fmt.Errorf("sending signal %d to process %d: %w", sig, i.PID, err)
	}
	return nil
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// program is a program that was started, and is ended with its starter.
type program struct {
	cmd  *exec.Cmd
	done chan struct{}
	err  error // how it ended; after done
}

// own are the process IDs that os/exec waits for: the reaper leaves them to it.
var own = struct {
	sync.Mutex
	pids map[int]bool
}{pids: map[int]bool{}}

// start starts cmd, whose output goes to the file log.
func start(log string, cmd *exec.Cmd) (*program, error) {
	f, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd.Stdout, cmd.Stderr = f, f
	own.Lock()
	defer own.Unlock()
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	own.pids[cmd.Process.Pid] = true
	p := &program{cmd: cmd, done: make(chan struct{})}
	go func() {
		p.err = cmd.Wait()
		close(p.done)
	}()
	return p, nil
}

// end tells the program to end, and kills it if it does not within half a minute.
func (p *program) end() {
	if p == nil {
		return
	}
	_ = p.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	select {
	case <-p.done:
	case <-time.After(30 * time.Second):
		_ = p.cmd.Process.Kill() // as above
		<-p.done
	}
}

// adopt makes this program the parent of what its descendants leave behind, as
// init is elsewhere, and reaps what ends of it.
func adopt() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("adopt orphans: %w", err)
	}
	ended := make(chan os.Signal, 1)
	signal.Notify(ended, syscall.SIGCHLD)
	go func() {
		for range ended {
			orphans()
		}
	}()
	return nil
}

// orphans reaps the adopted processes that have ended, and returns those that
// live: "pid name".
func orphans() []string {
	own.Lock()
	defer own.Unlock()
	var all []string
	tasks, _ := filepath.Glob("/proc/self/task/*/children")
	for _, t := range tasks {
		body, _ := os.ReadFile(t) // a thread that is gone has no children
		for _, f := range strings.Fields(string(body)) {
			pid, _ := strconv.Atoi(f)
			if own.pids[pid] {
				continue
			}
			if reaped, _ := syscall.Wait4(pid, nil, syscall.WNOHANG, nil); reaped != pid {
				comm, _ := os.ReadFile("/proc/" + f + "/comm")
				all = append(all, f+" "+strings.TrimSpace(string(comm)))
			}
		}
	}
	return all
}

// killOrphans kills the adopted processes that live, and what they leave in turn.
func killOrphans() {
	for range 200 {
		alive := orphans()
		if len(alive) == 0 {
			return
		}
		for _, l := range alive {
			pid, _ := strconv.Atoi(strings.Fields(l)[0])
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// unmountBelow unmounts what is mounted below dir, the last first, and tells what it was.
func unmountBelow(dir string) []string {
	body, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(body), "\n")
	var found []string
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], dir+"/") {
			found = append(found, f[1])
			_ = unix.Unmount(f[1], unix.MNT_DETACH) // its parent's unmounting may have taken it along
		}
	}
	return found
}

package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Run puts exits on record as the monitor hints at them, until the monitor's
// Run has ended; then it waits for what it has begun. Restore comes first.
func (s *Store) Run() {
	for h := range s.cfg.Monitor.Hints() {
		switch h.Kind {
		case monitor.Overflow:
			for _, c := range s.every() {
				s.look(c)
			}
		case monitor.Exited, monitor.Gone:
			c := s.lookup(h.ID)
			switch {
			case c != nil:
				s.look(c)
			case h.Kind == monitor.Exited: // of a container that has been removed meanwhile
				if err := s.cfg.Monitor.RemoveExit(h.ID); err != nil {
					s.cfg.Log.Warn("stray exit file stays", "container", h.ID, "err", err)
				}
			}
		}
	}
	s.work.Wait()
}

// look compares a container with the world and puts its end on record if it has
// ended. Safe at any time, from any goroutine.
func (s *Store) look(c *container) {
	rec, _ := c.snapshot()
	if !rec.Complete || rec.Exit != nil || rec.StartFailure != "" {
		return
	}
	// Monitor first: it writes the exit file before it ends, so an absent file
	// means something only if the monitor was gone before we looked for it.
	alive := rec.Monitor.Alive()
	exit, ok, err := s.cfg.Monitor.ReadExit(c.id)
	switch {
	case err != nil:
		s.cfg.Log.Error("exit code is lost", "container", c.id, "err", err)
		s.recordExit(c, Exit{At: time.Now(), Code: killedCode, Reason: reasonUnknown, Message: err.Error()})
	case ok:
		e := Exit{At: exit.At, Code: exit.Code, Reason: reasonCompleted}
		if e.OOMKills = oomKills(s.cfg.Host, rec.CgroupsPath); e.OOMKills == 0 && s.sawOOM(c) {
			e.OOMKills = 1
		}
		if e.Code != 0 {
			e.Reason = reasonError
			// The kernel may have killed a child, or the first process after all others:
			// only one that ended by SIGKILL, and not by ours, was killed itself.
			if e.OOMKills > 0 && e.Code == killedCode && !rec.Signalled {
				e.Reason, e.Message = reasonOOMKilled, "killed by the kernel: the container used more memory than its limit allows"
			}
		}
		s.recordExit(c, e)
	case !alive:
		s.work.Go(func() { s.orphaned(c) })
	}
}

// sawOOM tells whether the monitor has noted that the kernel killed.
func (s *Store) sawOOM(c *container) bool {
	_, err := os.Stat(filepath.Join(s.bundle(c.id), "oom"))
	return err == nil
}

// recordExit is the one place where containers end. What the PID namespace of a
// pod or the host keeps alive of it is killed: it would run on without a name.
func (s *Store) recordExit(c *container, e Exit) {
	if sharesPIDs(c) {
		s.endAll(c)
	}
	changed, err := s.update(c, func(r *Record) bool {
		if r.Exit != nil {
			return false
		}
		if !r.StartAt.IsZero() && r.StartFailure == "" {
			r.Started = true // it ended before Start could say so
		}
		r.Exit = &e
		return true
	})
	if err != nil {
		// The exit file stays: the next look tries again.
		s.cfg.Log.Error("exit cannot be put on record", "container", c.id, "err", err)
		return
	}
	if changed {
		s.event(Stopped, c)
	}
}

func sharesPIDs(c *container) bool {
	_, cfg := c.snapshot()
	return cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetPid() != runtimeapi.NamespaceMode_CONTAINER
}

// orphaned ends a container whose monitor was killed: nobody could collect its
// output or its exit code any more.
func (s *Store) orphaned(c *container) {
	rec, _ := c.snapshot()
	if rec.Exit != nil {
		return
	}
	e := Exit{Code: killedCode, Reason: reasonUnknown,
		Message: "its monitor (conmon) was killed, and the container had ended by the time that was noticed: its exit code is not known"}
	if rec.Init.Alive() {
		e.Reason = reasonError
		e.Message = "its monitor (conmon) was killed; the container was stopped because its output and exit code could no longer be collected"
		s.endAll(c)
		if err := waitGone(rec.Init, killPatience); err != nil {
			s.cfg.Log.Error("container without a monitor does not end", "container", c.id, "err", err)
			return // Stop and the next hint look again
		}
	}
	e.At = time.Now()
	s.recordExit(c, e)
}

// waitGone waits for a process to end.
func waitGone(p monitor.Identity, patience time.Duration) error {
	fd, err := p.Open()
	if errors.Is(err, monitor.ErrGone) {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	deadline := time.Now().Add(patience)
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return context.DeadlineExceeded
		}
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, int(left.Milliseconds())+1)
		if n > 0 {
			return nil
		}
		if err != nil && !errors.Is(err, unix.EINTR) {
			return err
		}
	}
}

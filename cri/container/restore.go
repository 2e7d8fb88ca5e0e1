package container

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Restore takes over what an earlier agent left: running containers are
// watched again, exits that came meanwhile are put on record, half-made
// containers and those of an earlier boot are removed. It is called once,
// before Run. What it cannot mend it logs: a start never fails on state, only
// on an unreadable directory.
func (s *Store) Restore(ctx context.Context) error {
	entries, err := s.records.List()
	if err != nil {
		return err
	}
	for _, e := range entries {
		s.restore(ctx, e)
	}
	s.cfg.Monitor.SweepExits(func(id string) bool { return s.lookup(id) != nil })
	return nil
}

func (s *Store) restore(ctx context.Context, e record.Entry[Record]) {
	c, err := newContainer(e.ID, e.Value)
	if err != nil {
		s.cfg.Log.Error("container's record is unusable: the container is removed", "container", e.ID, "err", err)
		c, e.Stray = newStray(e.ID, e.Value), true
	}
	if e.Stale { // its processes are of an earlier boot: their numbers mean others now
		c.rec.Monitor, c.rec.Init = monitor.Identity{PID: 0}, monitor.Identity{}
	}
	// A half-made one holds no name: its creation ended with the agent that was killed.
	if !e.Stray && !e.Stale && e.Value.Complete {
		if err := s.names.Reserve(name(c.pod, c.config.GetMetadata()), c.id); err != nil {
			s.cfg.Log.Error("two containers of one name: the second keeps no name", "container", c.id, "err", err)
		}
	}
	s.mu.Lock()
	s.containers.add(c)
	s.mu.Unlock()
	if e.Stray || e.Stale || !e.Value.Complete {
		s.discard(ctx, c)
		return
	}
	rec, _ := c.snapshot()
	if rec.Exit != nil {
		return
	}
	s.endExecs(c, rec)
	s.learnStart(ctx, c, rec)
	if err := s.cfg.Monitor.Adopt(c.id, rec.Monitor); err != nil && !errors.Is(err, monitor.ErrGone) {
		s.cfg.Log.Error("monitor cannot be watched; exits are still seen by their files", "container", c.id, "err", err)
	}
	s.look(c)
}

// endExecs kills what clients of an earlier agent had running in the container:
// they have left with that agent.
func (s *Store) endExecs(c *container, rec Record) {
	dirs, _ := filepath.Glob(filepath.Join(s.bundle(c.id), execPattern))
	if len(dirs) == 0 {
		return
	}
	var inside []int
	if cgroups := cgroupDirs(s.cfg.Host, rec.CgroupsPath); len(cgroups) > 0 {
		inside, _ = members(cgroups[0])
	}
	for _, dir := range dirs {
		b, _ := os.ReadFile(filepath.Join(dir, "pid"))
		pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
		// In the container's cgroup the number cannot mean a process of anybody else.
		if err == nil && pid != rec.Init.PID && slices.Contains(inside, pid) {
			failpoint.Hit("cri/container/kill-exec")
			for _, p := range monitor.Descendants(pid) {
				unix.Kill(p, unix.SIGKILL) // gone is success
			}
		}
		failpoint.Hit("cri/container/remove-exec")
		if err := os.RemoveAll(dir); err != nil {
			s.cfg.Log.Warn("files of an exec stay until the container is removed", "dir", dir, "err", err)
		}
	}
}

// newStray stands for a container of which nothing is known but its ID.
func newStray(id string, rec Record) *container {
	rec.Config, rec.Pod = nil, nil
	c, _ := newContainer(id, rec) // empty messages always decode
	return c
}

// learnStart finds out whether a start that was begun has happened.
func (s *Store) learnStart(ctx context.Context, c *container, rec Record) {
	if rec.Started || rec.StartAt.IsZero() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, stateTime)
	defer cancel()
	st, err := s.runtime(rec).State(ctx, c.id)
	if err != nil || st.Status == "created" || st.Status == "creating" {
		return // Start will be called again
	}
	if _, err := s.update(c, func(r *Record) bool {
		r.Started = true
		return true
	}); err != nil {
		s.cfg.Log.Error("start cannot be put on record", "container", c.id, "err", err)
	}
}

// discard walks the way down for what nobody has been told of.
func (s *Store) discard(ctx context.Context, c *container) {
	c.op <- struct{}{}
	defer c.unlock()
	if err := s.teardown(ctx, c); err != nil {
		s.cfg.Log.Error("half-made container cannot be removed now; the next start of the agent tries again",
			"container", c.id, "err", err)
		return
	}
	s.cfg.Log.Info("half-made container removed", "container", c.id)
}

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	"github.com/opencontainers/cgroups/manager"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
)

const (
	killRounds = 5
	killWait   = 400 * time.Millisecond // in all, for one round
)

// Remove takes the pod's group away from every hierarchy. Processes that are
// still in it are killed, in a bounded number of rounds; if some remain, the
// error names them and the group stays. Removing what is not there is success.
func (t *Tree) Remove(ctx context.Context, uid pod.UID) error {
	for _, class := range qosClasses {
		if err := t.remove(ctx, t.podName(class, uid)); err != nil {
			return fmt.Errorf("cgroup of pod %s: %w", uid, err)
		}
	}
	t.mu.Lock()
	st, known := t.applied[uid]
	delete(t.applied, uid)
	t.mu.Unlock()
	if !known || st.class == v1.PodQOSBurstable {
		t.request(uid, -1)
	}
	return nil
}

// Purge removes the whole tree of pods, and Root's own groups if nothing else is
// in them: what a host is cleaned with. The Tree must not be used after it.
func (t *Tree) Purge(ctx context.Context) error {
	if err := t.remove(ctx, t.root.join(kubepods)); err != nil {
		return err
	}
	for i := len(t.root); i > 0; i-- {
		for _, h := range t.all {
			failpoint.Hit("agent/cgroup/root-rmdir")
			err := unix.Rmdir(h.dir(t.root[:i].path(t.cfg.Driver)))
			if err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) && !denied(err) {
				return fmt.Errorf("remove cgroup %s: %w", t.root[:i].path(t.cfg.Driver), err)
			}
		}
	}
	return nil
}

// remove kills what is left in group n and takes it away.
func (t *Tree) remove(ctx context.Context, n name) error {
	var dirs []string
	for _, h := range t.all {
		dir := h.dir(n.path(t.cfg.Driver))
		if _, err := os.Lstat(dir); err == nil {
			dirs = append(dirs, dir)
		}
	}
	if len(dirs) == 0 {
		return nil
	}
	if err := t.kill(ctx, dirs); err != nil {
		return err
	}
	if t.cfg.Driver == Systemd {
		if m, err := manager.New(slice(n, t.resources(Limits{}))); err == nil {
			failpoint.Hit("agent/cgroup/slice-stop")
			_ = m.Destroy() // the directories below tell whether it worked
			failpoint.Hit("agent/cgroup/slice-stop-done")
		}
	}
	var failed error
	for _, dir := range dirs {
		if err := removeBusy(ctx, dir); err != nil {
			if denied(err) { // nobody could have made anything of ours in there
				t.once("removing groups in "+filepath.Dir(dir), err)
				continue
			}
			failed = errors.Join(failed, err)
		}
	}
	return failed
}

// removeBusy tries again for a moment: a group stays busy until the kernel has
// done away with the last of its processes.
func removeBusy(ctx context.Context, dir string) error {
	for wait := time.Millisecond; ; wait *= 2 {
		err := removeTree(dir)
		if !errors.Is(err, unix.EBUSY) || wait > killWait {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// kill ends every process in dirs and below. A process ID is looked up again
// once its pidfd is open, so that a successor of the same ID is not hit.
func (t *Tree) kill(ctx context.Context, dirs []string) error {
	var left []int
	for range killRounds {
		if left = members(dirs); len(left) == 0 {
			return nil
		}
		if slices.Contains(left, os.Getpid()) {
			return fmt.Errorf("this agent itself runs in %s: start it outside of the groups of pods", dirs[0])
		}
		t.cfg.Log.Warn("killing processes left in a cgroup that is to go", "cgroup", dirs[0], "processes", left)
		killAll(dirs, left)
		for wait := time.Millisecond; wait < killWait; wait *= 2 {
			if len(members(dirs)) == 0 {
				return nil
			}
			if err := sleep(ctx, wait); err != nil {
				return err
			}
		}
	}
	return fmt.Errorf("%s: processes %v do not end although they were killed (are they waiting for a dead disk or network file system?)", dirs[0], left)
}

func killAll(dirs []string, pids []int) {
	fds := map[int]int{}
	for _, pid := range pids {
		if fd, err := unix.PidfdOpen(pid, 0); err == nil {
			fds[pid] = fd
		}
	}
	for _, pid := range members(dirs) {
		if fd, ok := fds[pid]; ok {
			failpoint.Hit("agent/cgroup/kill")
			_ = unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0) // one that has ended is what we want
		}
	}
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// members are the processes in dirs and all groups below, each once.
func members(dirs []string) []int {
	var pids []int
	for _, dir := range dirs {
		// What cannot be read is seen by the rmdir that follows.
		_ = filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
			if err != nil || !d.IsDir() {
				return nil
			}
			content, _ := os.ReadFile(filepath.Join(path, "cgroup.procs"))
			for _, line := range strings.Fields(string(content)) {
				if pid, err := strconv.Atoi(line); err == nil && pid > 0 {
					pids = append(pids, pid)
				}
			}
			return nil
		})
	}
	slices.Sort(pids)
	return slices.Compact(pids)
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(d):
		return nil
	}
}

package monitor

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// leaf is the cgroup of all conmons.
//
// On cgroup v2 a conmon is born in it. On v1 it is moved, once the container
// exists and nobody waits: each move may wait for an RCU grace period.
type leaf struct {
	v2   bool
	dir  *os.File // v2
	dirs []string // v1, one a hierarchy
}

func openLeaf(path string) (*leaf, error) {
	var st unix.Statfs_t
	l := &leaf{v2: unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC}
	if path == "" {
		return l, nil
	}
	failpoint.Hit("cri/monitor/mkdir-cgroup")
	if l.v2 {
		dir := filepath.Join(cgroupRoot, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the cgroup of the monitors: %w", err)
		}
		f, err := os.Open(dir)
		if err != nil {
			return nil, fmt.Errorf("opening the cgroup of the monitors: %w", err)
		}
		l.dir = f
		return l, nil
	}
	for _, c := range controllers() {
		root := filepath.Join(cgroupRoot, c)
		if _, err := os.Stat(filepath.Join(root, "cgroup.procs")); err != nil {
			continue // this host has no such controller
		}
		dir := filepath.Join(root, path)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return nil, fmt.Errorf("making the cgroup of the monitors: %w", err)
		}
		l.dirs = append(l.dirs, dir)
	}
	return l, nil
}

// controllers are the hierarchies of v1 in which a conmon leaves the agent's
// cgroup. Memory is where an OOM strikes, pids where a fork bomb does; cpu, where
// a busy pod would starve them. Where systemd runs the host it counts what is in
// its own hierarchy (v2's on the hybrid) as the agent's unit: a conmon in there
// would be reported at each restart, and ended by another KillMode. The rest
// makes no difference to a conmon.
func controllers() []string {
	all := []string{"memory", "pids", "cpu"}
	if st, err := os.Lstat("/run/systemd/system"); err == nil && st.IsDir() {
		all = append(all, "systemd", "unified")
	}
	return all
}

// attr makes a child be born in the leaf where the kernel can do that.
func (l *leaf) attr() *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{}
	if l.dir != nil {
		a.UseCgroupFD, a.CgroupFD = true, int(l.dir.Fd())
	}
	return a
}

// place moves pid into the leaf. A process that has ended is success.
func (l *leaf) place(pid int) error {
	dirs := l.dirs
	if l.dir != nil {
		dirs = []string{l.dir.Name()}
	}
	for _, dir := range dirs {
		failpoint.Hit("cri/monitor/place")
		err := os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0)
		if err != nil && !errors.Is(err, unix.ESRCH) {
			return fmt.Errorf("moving the monitor to its cgroup: %w", err)
		}
	}
	return nil
}

func (l *leaf) close() {
	if l.dir != nil {
		l.dir.Close()
	}
}

const (
	instancesFile = "/proc/sys/fs/inotify/max_user_instances"
	wantInstances = 8192
)

// raiseInotify makes room for the inotify instance that each conmon takes on
// cgroup v2; the kernel's default of 128 would end at some hundred containers,
// with OOM kills unnoticed beyond.
func raiseInotify(log *slog.Logger) {
	b, err := os.ReadFile(instancesFile)
	have, convErr := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || convErr != nil || have >= wantInstances {
		return
	}
	if err := os.WriteFile(instancesFile, []byte(strconv.Itoa(wantInstances)), 0); err != nil {
		log.Warn("fs.inotify.max_user_instances is low and cannot be raised: each container's monitor takes one",
			"have", have, "want", wantInstances, "err", err)
		return
	}
	log.Info("fs.inotify.max_user_instances raised: each container's monitor takes one", "from", have, "to", wantInstances)
}

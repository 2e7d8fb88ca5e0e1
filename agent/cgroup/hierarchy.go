package cgroup

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// hierarchy is one mounted tree of groups: the only one on cgroup v2, one for
// each controller on v1, and v2's beside them on the hybrid.
type hierarchy struct {
	mount       string   // where its root is
	controllers []string // of v1, "name=systemd" included; empty for v2
	v2          bool
}

func (h hierarchy) has(controller string) bool { return slices.Contains(h.controllers, controller) }

func (h hierarchy) dir(path string) string { return filepath.Join(h.mount, path) }

func (h hierarchy) String() string {
	if h.v2 {
		return "cgroup v2 at " + h.mount
	}
	return strings.Join(h.controllers, ",") + " at " + h.mount
}

// hostHierarchies reads the mount table. A hierarchy that is mounted twice
// counts once; one whose mount shows only a part of it (a bind mount) is only
// taken if its root is not mounted anywhere else.
func hostHierarchies() ([]hierarchy, error) {
	mounts, err := mountinfo.GetMounts(func(m *mountinfo.Info) (skip, stop bool) {
		return m.FSType != "cgroup" && m.FSType != "cgroup2", false
	})
	if err != nil {
		return nil, fmt.Errorf("read the mount table to find the cgroup hierarchies: %w", err)
	}
	return pick(mounts), nil
}

func pick(mounts []*mountinfo.Info) []hierarchy {
	slices.SortStableFunc(mounts, func(a, b *mountinfo.Info) int { return len(a.Root) - len(b.Root) })
	var all []hierarchy
	seen := map[string]bool{}
	for _, m := range mounts {
		h := hierarchy{mount: m.Mountpoint, v2: m.FSType == "cgroup2"}
		key := "v2"
		if !h.v2 {
			for _, o := range strings.Split(m.VFSOptions, ",") {
				if v1Controllers[o] || strings.HasPrefix(o, "name=") {
					h.controllers = append(h.controllers, o)
				}
			}
			key = strings.Join(h.controllers, ",")
		}
		if key == "" || seen[key] {
			continue
		}
		seen[key] = true
		all = append(all, h)
	}
	slices.SortFunc(all, func(a, b hierarchy) int { return strings.Compare(a.mount, b.mount) })
	return all
}

var v1Controllers = map[string]bool{
	"cpu": true, "cpuacct": true, "cpuset": true, "memory": true, "devices": true, "freezer": true, "blkio": true, "pids": true,
	"hugetlb": true, "net_cls": true, "net_prio": true, "perf_event": true, "rdma": true, "misc": true,
}

// denied says that the host does not grant what was tried: it is read-only,
// refused, or without the file. Such errors are said once and lived with.
func denied(err error) bool {
	return errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.EROFS) || errors.Is(err, fs.ErrNotExist) ||
		errors.Is(err, unix.ENOTSUP) || errors.Is(err, unix.ENODEV)
}

// removeTree removes the directory and all groups below it, deepest first. A
// group's files go with its directory; only directories are ever unlinked.
func removeTree(dir string) error {
	failpoint.Hit("agent/cgroup/rmdir")
	err := unix.Rmdir(dir)
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	entries, readErr := os.ReadDir(dir)
	if errors.Is(readErr, fs.ErrNotExist) {
		return nil
	} else if readErr != nil {
		return fmt.Errorf("list cgroup %s: %w", dir, readErr)
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeTree(filepath.Join(dir, e.Name())); err != nil {
				return err
			}
		}
	}
	err = unix.Rmdir(dir)
	failpoint.Hit("agent/cgroup/rmdir-done")
	if err == nil || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return fmt.Errorf("remove cgroup %s: %w", dir, err)
}

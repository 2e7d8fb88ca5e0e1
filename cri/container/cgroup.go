package container

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// cgroupDirs returns where the container's cgroup may be, one a hierarchy on
// cgroup v1; the first is where memory is counted.
func cgroupDirs(host ocispec.Host, path string) []string {
	rel := path
	if host.SystemdCgroup {
		slice, unit, _ := strings.Cut(path, ":")
		prefix, id, _ := strings.Cut(unit, ":")
		rel = filepath.Join(expandSlice(slice), prefix+"-"+id+".scope")
	}
	if rel == "" || filepath.Clean("/"+rel) == "/" {
		return nil // never the root of the tree
	}
	if host.CgroupV2 {
		return []string{filepath.Join(cgroupRoot, rel)}
	}
	out := []string{filepath.Join(cgroupRoot, "memory", rel)}
	entries, _ := os.ReadDir(cgroupRoot) // unreadable: no cgroups to find
	for _, e := range entries {
		if e.IsDir() && e.Name() != "memory" && e.Name() != "unified" {
			out = append(out, filepath.Join(cgroupRoot, e.Name(), rel))
		}
	}
	return out
}

// expandSlice turns a slice's name into its path: a-b.slice lies in a.slice.
func expandSlice(slice string) string {
	name := strings.TrimSuffix(slice, ".slice")
	if name == "" || name == "-" {
		return ""
	}
	var path string
	for i, r := range name {
		if r == '-' {
			path += name[:i] + ".slice/"
		}
	}
	return path + name + ".slice"
}

// killCgroup kills every process of the cgroup. Processes that fork meanwhile
// are met in the next round.
func killCgroup(host ocispec.Host, path string) error {
	for _, dir := range cgroupDirs(host, path) {
		failpoint.Hit("cri/container/kill-cgroup")
		if os.WriteFile(filepath.Join(dir, "cgroup.kill"), []byte("1"), 0) == nil {
			continue
		}
		for round := 0; ; round++ {
			pids, err := members(dir)
			if err != nil {
				return err
			}
			if len(pids) == 0 {
				break
			}
			if round == 100 {
				return fmt.Errorf("%d processes in %s do not end", len(pids), dir)
			}
			for _, pid := range pids {
				unix.Kill(pid, unix.SIGKILL) // gone is success; anything else shows in the next round
			}
			time.Sleep(time.Duration(1+round) * time.Millisecond)
		}
	}
	return nil
}

// members lists the processes in dir and the cgroups below it.
func members(dir string) ([]int, error) {
	var pids []int
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil || !d.IsDir() {
			return err
		}
		b, err := os.ReadFile(filepath.Join(path, "cgroup.procs"))
		if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENODEV) {
			return err
		}
		for _, f := range strings.Fields(string(b)) {
			if pid, err := strconv.Atoi(f); err == nil && pid > 1 {
				pids = append(pids, pid)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("listing the processes of %s: %w", dir, err)
	}
	return pids, nil
}

// removeCgroup removes what the runtime has left of the cgroup: a runtime that
// was killed while creating leaves it.
func removeCgroup(host ocispec.Host, path string) error {
	for _, dir := range cgroupDirs(host, path) {
		var below []string
		filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
			if err == nil && d.IsDir() {
				below = append(below, p)
			}
			return nil
		})
		for i := len(below) - 1; i >= 0; i-- {
			failpoint.Hit("cri/container/remove-cgroup")
			err := unix.Rmdir(below[i])
			for round := 0; errors.Is(err, unix.EBUSY) && round < 50; round++ { // the killed are still leaving
				time.Sleep(time.Duration(1+round) * time.Millisecond)
				err = unix.Rmdir(below[i])
			}
			if err != nil && !errors.Is(err, unix.ENOENT) {
				return fmt.Errorf("removing cgroup %s: %w", below[i], err)
			}
		}
	}
	return nil
}

// limitHugePages sets limits on huge pages, by size, of an existing cgroup.
func limitHugePages(host ocispec.Host, path string, limits []specs.LinuxHugepageLimit) error {
	dirs := cgroupDirs(host, path)
	for _, l := range limits {
		file := "hugetlb." + l.Pagesize + ".limit_in_bytes"
		if host.CgroupV2 {
			file = "hugetlb." + l.Pagesize + ".max"
		}
		at := slices.IndexFunc(dirs, func(dir string) bool { return exists(filepath.Join(dir, file)) })
		if at < 0 {
			return fmt.Errorf("the cgroup %s has no limit on huge pages of %s: %w", path, l.Pagesize, errdefs.ErrFailedPrecondition)
		}
		failpoint.Hit("cri/container/limit-hugepages")
		if err := os.WriteFile(filepath.Join(dirs[at], file), []byte(strconv.FormatUint(l.Limit, 10)), 0); err != nil {
			return fmt.Errorf("limiting huge pages of %s: %w", l.Pagesize, err)
		}
	}
	return nil
}

// oomKills counts how often the kernel has killed for memory in the container's
// cgroup. Its counter is there until the container is removed, and unlike the
// monitor's file it cannot be late.
func oomKills(host ocispec.Host, path string) int64 {
	dirs := cgroupDirs(host, path)
	if len(dirs) == 0 {
		return 0
	}
	file := "memory.oom_control"
	if host.CgroupV2 {
		file = "memory.events"
	}
	f, err := os.Open(filepath.Join(dirs[0], file))
	if err != nil {
		return 0
	}
	defer f.Close()
	for sc := bufio.NewScanner(f); sc.Scan(); {
		if n, ok := strings.CutPrefix(sc.Text(), "oom_kill "); ok {
			kills, err := strconv.ParseInt(n, 10, 64)
			if err != nil {
				return 0
			}
			return kills
		}
	}
	return 0
}

package hostcheck

import (
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// What an agent with its full number of pods needs. The agent itself takes a
// fixed few inotify instances; on cgroup v2 each conmon takes one more.
const (
	wantInstances   = 1024
	wantInstancesV1 = 64
	wantWatches     = 65536
	wantFiles       = 65536
)

func (h host) limits() []Check {
	return []Check{
		h.root(),
		h.capabilities(),
		h.inotify(),
		h.sysctl("inotify watches", "fs.inotify.max_user_watches", wantWatches),
		h.openFiles(),
	}
}

func (h host) root() Check {
	if uid := unix.Geteuid(); uid != 0 {
		return failed(limits, "user", fmt.Sprintf("you are user %d: the agent makes namespaces, mounts and cgroups as root", uid), "run it as root")
	}
	return ok(limits, "user", "root")
}

// wanted are the capabilities the agent uses itself, and what it does without.
var wanted = []struct {
	bit  uint
	name string
	loss string // empty: pods cannot run without
}{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", ""},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", ""},
	{unix.CAP_SYS_CHROOT, "CAP_SYS_CHROOT", ""},
	{unix.CAP_SYS_RESOURCE, "CAP_SYS_RESOURCE", "oom scores and resource limits are clamped to what the host grants"},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "processes of other users cannot be looked into"},
}

func (h host) capabilities() Check {
	have, err := strconv.ParseUint(field(h.read("/proc/self/status"), "CapEff:"), 16, 64)
	if err != nil {
		return warn(limits, "capabilities", "cannot be told: "+err.Error(), "")
	}
	var lost []string
	fatal := false
	for _, c := range wanted {
		if have&(1<<c.bit) != 0 {
			continue
		}
		if c.loss == "" {
			fatal = true
			lost = append(lost, "no "+c.name+": pods cannot run")
		} else {
			lost = append(lost, "no "+c.name+": "+c.loss)
		}
	}
	const fix = "run the agent outside of this container or sandbox, or grant it there"
	switch {
	case fatal:
		return failed(limits, "capabilities", strings.Join(lost, "; "), fix)
	case len(lost) > 0:
		return warn(limits, "capabilities", strings.Join(lost, "; "), fix)
	}
	return ok(limits, "capabilities", "all that the agent uses")
}

// field returns what follows key on its line.
func field(text, key string) string {
	for _, line := range strings.Split(text, "\n") {
		if v, ok := strings.CutPrefix(line, key); ok {
			return strings.TrimSpace(v)
		}
	}
	return ""
}

func (h host) inotify() Check {
	want := wantInstancesV1
	if h.exists("/sys/fs/cgroup/cgroup.controllers") {
		want = wantInstances
	}
	return h.sysctl("inotify instances", "fs.inotify.max_user_instances", want)
}

func (h host) sysctl(name, key string, want int) Check {
	text := h.read("/proc/sys/" + strings.ReplaceAll(key, ".", "/"))
	n, err := strconv.Atoi(text)
	if err != nil {
		return warn(limits, name, key+" cannot be read", "")
	}
	if n < want {
		return warn(limits, name, fmt.Sprintf("%d: %d or more are wanted for a node full of pods; the agent raises it if it may", n, want), fmt.Sprintf("sysctl -w %s=%d", key, want))
	}
	return ok(limits, name, text)
}

func (h host) openFiles() Check {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return warn(limits, "open files", err.Error(), "")
	}
	if r.Max < wantFiles {
		return warn(limits, "open files", fmt.Sprintf("at most %d: %d or more are wanted for a node full of pods", r.Max, wantFiles), fmt.Sprintf("ulimit -Hn %d, or LimitNOFILE=%d in the unit", wantFiles, wantFiles))
	}
	return ok(limits, "open files", strconv.FormatUint(r.Max, 10))
}

// Space left below which a directory is a warning, and below which it fails. In
// memory lies the state directory: records and bundles, some 100 KiB a pod.
const (
	lowBytes, noBytes   = 2 << 30, 200 << 20
	lowMemory, noMemory = 64 << 20, 16 << 20
	lowInodes           = 20000
)

func (h host) space() []Check {
	var all []Check
	for _, dir := range slices.Sorted(maps.Keys(h.o.Dirs)) {
		all = append(all, h.spaceOf(dir, h.o.Dirs[dir]))
	}
	return all
}

func (h host) spaceOf(dir, use string) Check {
	name := "space for " + use
	var st unix.Statfs_t
	at := dir
	for unix.Statfs(at, &st) != nil {
		if at == "/" || at == "." {
			return failed("Space", name, dir+" cannot be looked at", "mkdir -p "+dir)
		}
		at = filepath.Dir(at)
	}
	free, low, no := st.Bavail*uint64(st.Bsize), uint64(lowBytes), uint64(noBytes)
	if st.Type == unix.TMPFS_MAGIC {
		low, no = lowMemory, noMemory
	}
	found := fmt.Sprintf("%s free in %s", bytesText(free), dir)
	fix := "berth get images, then berth images rm what is not used; or choose another directory"
	switch {
	case free < no:
		return failed("Space", name, found, fix)
	case free < low:
		return warn("Space", name, found, fix)
	case st.Files > 0 && st.Ffree < lowInodes:
		return warn("Space", name, fmt.Sprintf("%s, but only %d files more", found, st.Ffree), fix)
	}
	return ok("Space", name, found)
}

func bytesText(n uint64) string {
	const unit = 1024
	f, units := float64(n), []string{"B", "KiB", "MiB", "GiB", "TiB"}
	for len(units) > 1 && f >= unit {
		f, units = f/unit, units[1:]
	}
	return fmt.Sprintf("%.1f %s", f, units[0])
}

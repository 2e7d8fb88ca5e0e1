package hostcheck

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

const kernel, cgroupsGroup, limits = "Kernel", "Cgroups", "Limits"

func (h host) read(path string) string {
	b, _ := os.ReadFile(filepath.Join(h.o.Root, path)) // what cannot be read is not there
	return strings.TrimSpace(string(b))
}

func (h host) exists(path string) bool {
	_, err := os.Stat(filepath.Join(h.o.Root, path))
	return err == nil
}

// oldestKernel has clone into a cgroup, pidfds that can be polled, and openat2.
var oldestKernel = [2]int{5, 10}

func (h host) kernel() []Check {
	return []Check{h.release(), h.overlay(), h.namespaces(), h.seccomp()}
}

func (h host) release() Check {
	release := h.read("/proc/sys/kernel/osrelease")
	parts := strings.SplitN(release, ".", 3)
	if len(parts) >= 2 {
		major, _ := strconv.Atoi(parts[0])
		minor, _ := strconv.Atoi(strings.TrimRightFunc(parts[1], func(r rune) bool { return r < '0' || r > '9' }))
		if major < oldestKernel[0] || major == oldestKernel[0] && minor < oldestKernel[1] {
			return failed(kernel, "kernel version", fmt.Sprintf("%s: %d.%d or newer is needed", release, oldestKernel[0], oldestKernel[1]), "install a newer kernel and reboot")
		}
	}
	return ok(kernel, "kernel version", release)
}

func (h host) overlay() Check {
	for _, line := range strings.Split(h.read("/proc/filesystems"), "\n") {
		if f := strings.Fields(line); len(f) > 0 && f[len(f)-1] == "overlay" {
			return ok(kernel, "overlayfs", "supported")
		}
	}
	return failed(kernel, "overlayfs", "the kernel does not list it: container root file systems need it", "modprobe overlay")
}

func (h host) namespaces() Check {
	var missing []string
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid"} {
		if !h.exists("/proc/self/ns/" + ns) {
			missing = append(missing, ns)
		}
	}
	if len(missing) > 0 {
		return failed(kernel, "namespaces", "missing: "+strings.Join(missing, ", "), "use a kernel built with CONFIG_NAMESPACES")
	}
	switch {
	case !h.exists("/proc/self/ns/user"):
		return warn(kernel, "namespaces", "mnt, net, ipc, uts, pid, but no user namespaces: pods with hostUsers: false cannot run", "use a kernel built with CONFIG_USER_NS")
	case h.read("/proc/sys/user/max_user_namespaces") == "0":
		return warn(kernel, "namespaces", "mnt, net, ipc, uts, pid; user namespaces are switched off: pods with hostUsers: false cannot run", "sysctl -w user.max_user_namespaces=15000")
	}
	return ok(kernel, "namespaces", "mnt, net, ipc, uts, pid, user")
}

func (h host) seccomp() Check {
	if strings.Contains(h.read("/proc/self/status"), "Seccomp:") {
		return ok(kernel, "seccomp", "supported")
	}
	return warn(kernel, "seccomp", "not supported: containers run without system call filters", "use a kernel built with CONFIG_SECCOMP_FILTER")
}

func (h host) forwarding(family int) Check {
	path, key := "/proc/sys/net/ipv4/ip_forward", "net.ipv4.ip_forward"
	if family == 6 {
		path, key = "/proc/sys/net/ipv6/conf/all/forwarding", "net.ipv6.conf.all.forwarding"
	}
	name := fmt.Sprintf("IPv%d forwarding", family)
	switch h.read(path) {
	case "1":
		return ok(network, name, "on")
	case "":
		if family == 6 {
			return ok(network, name, "this host has no IPv6: pods get IPv4 addresses only")
		}
		return failed(network, name, "the kernel has no IPv4", "use a kernel built with CONFIG_INET")
	}
	return warn(network, name, "off: pods do not reach beyond this host before the pod network switches it on", "sysctl -w "+key+"=1")
}

// controllers are what pods' requests and limits need; the value says what is lost without one.
var controllers = []struct{ name, loss string }{
	{"cpu", "CPU requests and limits"}, {"memory", "memory limits"}, {"pids", "limits on the number of processes"}, {"cpuset", "pinning to CPUs"},
}

func (h host) cgroups() []Check {
	root := filepath.Join(h.o.Root, "/sys/fs/cgroup")
	var st unix.Statfs_t
	mode, have := "v1", map[string]bool{}
	switch {
	case h.exists("/sys/fs/cgroup/cgroup.controllers"):
		mode = "v2"
		for _, c := range strings.Fields(h.read("/sys/fs/cgroup/cgroup.controllers")) {
			have[c] = true
		}
	default:
		if h.exists("/sys/fs/cgroup/unified/cgroup.controllers") {
			mode = "hybrid: v1 with an empty v2 tree"
		}
		entries, _ := os.ReadDir(root) // none: no controller is found below
		for _, e := range entries {
			for _, c := range strings.Split(e.Name(), ",") {
				have[c] = true
			}
		}
	}
	if len(have) == 0 {
		return []Check{failed(cgroupsGroup, "cgroup mode", "nothing is mounted at /sys/fs/cgroup", "mount -t cgroup2 none /sys/fs/cgroup")}
	}
	all := []Check{ok(cgroupsGroup, "cgroup mode", mode)}
	if mode != "v2" {
		all[0] = warn(cgroupsGroup, "cgroup mode", mode+": it works, but Kubernetes has given up v1", "boot with systemd.unified_cgroup_hierarchy=1")
	}
	at := root
	if mode != "v2" { // systemd mounts what only holds v1's mount points read-only: a hierarchy tells
		at = filepath.Join(root, "memory")
	}
	if unix.Statfs(at, &st) == nil && st.Flags&unix.ST_RDONLY != 0 && h.o.Root == "" {
		all = append(all, failed(cgroupsGroup, "writable", at+" is mounted read-only", "mount -o remount,rw "+at))
	}
	var found, lost []string
	for _, c := range controllers {
		if have[c.name] {
			found = append(found, c.name)
		} else {
			lost = append(lost, c.name+" (without it no "+c.loss+")")
		}
	}
	if len(lost) > 0 {
		c := warn(cgroupsGroup, "cgroup controllers", "missing: "+strings.Join(lost, ", "), "take cgroup_disable=... out of the kernel command line; some systems need cgroup_enable=memory there")
		if !slices.Contains(found, "memory") && !slices.Contains(found, "cpu") {
			c.State = Failed
		}
		return append(all, c)
	}
	return append(all, ok(cgroupsGroup, "cgroup controllers", strings.Join(found, ", ")))
}

package hostcheck

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// fake makes a host of files: path to content; a path that ends in "/" is a directory.
func fake(t *testing.T, files map[string]string) host {
	t.Helper()
	root := t.TempDir()
	for path, content := range files {
		full := filepath.Join(root, path)
		if strings.HasSuffix(path, "/") {
			if err := os.MkdirAll(full, 0o755); err != nil {
				t.Fatal(err)
			}
			continue
		}
		if err := os.MkdirAll(filepath.Dir(full), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(full, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return host{Options{Root: root}}
}

func TestKernelAndCgroups(t *testing.T) {
	tests := map[string]struct {
		files map[string]string
		look  func(host) Check
		state State
		found string // part of Found
		fix   string // part of Fix
	}{
		"old kernel":        {map[string]string{"/proc/sys/kernel/osrelease": "4.19.0-27-amd64\n"}, host.release, Failed, "4.19.0", "newer kernel"},
		"kernel":            {map[string]string{"/proc/sys/kernel/osrelease": "6.12-rc1\n"}, host.release, OK, "6.12", ""},
		"no overlay":        {map[string]string{"/proc/filesystems": "nodev\ttmpfs\n\text4\n"}, host.overlay, Failed, "root file systems", "modprobe overlay"},
		"overlay":           {map[string]string{"/proc/filesystems": "nodev\toverlay\n"}, host.overlay, OK, "supported", ""},
		"no namespaces":     {map[string]string{"/proc/self/ns/mnt": "", "/proc/self/ns/net": ""}, host.namespaces, Failed, "ipc, uts, pid", "CONFIG"},
		"user namespaces":   {withNamespaces("/proc/sys/user/max_user_namespaces", "0"), host.namespaces, Warning, "switched off", "sysctl -w user.max_user_namespaces="},
		"all namespaces":    {withNamespaces("/proc/sys/user/max_user_namespaces", "100"), host.namespaces, OK, "user", ""},
		"forwarding off":    {map[string]string{"/proc/sys/net/ipv4/ip_forward": "0\n"}, func(h host) Check { return h.forwarding(4) }, Warning, "off", "sysctl -w net.ipv4.ip_forward=1"},
		"no IPv6":           {nil, func(h host) Check { return h.forwarding(6) }, OK, "no IPv6", ""},
		"no cgroups":        {nil, mode, Failed, "nothing is mounted", "mount -t cgroup2"},
		"cgroup v2":         {map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu memory pids cpuset\n"}, mode, OK, "v2", ""},
		"cgroup v1":         {map[string]string{"/sys/fs/cgroup/cpu,cpuacct/": ""}, mode, Warning, "v1", "unified"},
		"cgroup hybrid":     {map[string]string{"/sys/fs/cgroup/memory/": "", "/sys/fs/cgroup/unified/cgroup.controllers": ""}, mode, Warning, "hybrid", "unified"},
		"no pids":           {map[string]string{"/sys/fs/cgroup/cgroup.controllers": "cpu memory cpuset"}, controllersOf, Warning, "pids (without it no limits on the number", "kernel command line"},
		"few controllers":   {map[string]string{"/sys/fs/cgroup/cgroup.controllers": "pids"}, controllersOf, Failed, "memory limits", "kernel command line"},
		"inotify":           {map[string]string{"/proc/sys/fs/inotify/max_user_instances": "128\n", "/sys/fs/cgroup/cgroup.controllers": "cpu"}, host.inotify, Warning, "128", "sysctl -w fs.inotify.max_user_instances=1024"},
		"enough inotify":    {map[string]string{"/proc/sys/fs/inotify/max_user_instances": "8192\n"}, host.inotify, OK, "8192", ""},
		"inotify on v1":     {map[string]string{"/proc/sys/fs/inotify/max_user_instances": "128\n"}, host.inotify, OK, "128", ""},
		"all capabilities":  {map[string]string{"/proc/self/status": "CapEff:\t000001ffffffffff\n"}, host.capabilities, OK, "all", ""},
		"no SYS_RESOURCE":   {map[string]string{"/proc/self/status": "CapEff:\t000001fffeffffff\n"}, host.capabilities, Warning, "CAP_SYS_RESOURCE: oom scores", "outside"},
		"no SYS_ADMIN":      {map[string]string{"/proc/self/status": "CapEff:\t000001ffffdfffff\n"}, host.capabilities, Failed, "CAP_SYS_ADMIN: pods cannot run", "outside"},
		"no seccomp":        {map[string]string{"/proc/self/status": "Name:\tx\n"}, host.seccomp, Warning, "not supported", "SECCOMP"},
		"AppArmor":          {map[string]string{"/sys/module/apparmor/parameters/enabled": "Y\n", "/sys/kernel/security/apparmor/profiles": "a (enforce)\nb (complain)\n"}, host.appArmor, OK, "on, 2 profiles", ""},
		"AppArmor off":      {map[string]string{"/sys/module/apparmor/parameters/enabled": "N\n"}, host.appArmor, Warning, "are refused", "apparmor=1"},
		"no AppArmor":       {nil, host.appArmor, OK, "are refused", ""},
		"SELinux":           {map[string]string{"/sys/fs/selinux/enforce": "1"}, host.selinux, OK, "enforcing", ""},
		"SELinux lenient":   {map[string]string{"/sys/fs/selinux/enforce": "0"}, host.selinux, OK, "nothing is denied", ""},
		"no SELinux":        {nil, host.selinux, OK, "no effect", ""},
		"no huge pages":     {map[string]string{"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "0\n"}, host.hugePages, OK, "none is reserved", ""},
		"huge pages":        {map[string]string{"/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages": "8\n", "/sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages": "0\n"}, host.hugePages, OK, "8 of 2.0 MiB", ""},
		"no swap":           {map[string]string{"/proc/swaps": swaps}, host.swap, OK, "none", ""},
		"swap on v1":        {map[string]string{"/proc/swaps": swaps + "/dev/sdb partition 1048576 0 -2\n"}, host.swap, Warning, "1.0 GiB, which the kernel does not count", "swapaccount=1"},
		"counted swap":      {map[string]string{"/proc/swaps": swaps + "/dev/sdb partition 1048576 0 -2\n", "/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "1"}, host.swap, OK, "which pods do not use", ""},
		"swap on v2":        {map[string]string{"/proc/swaps": swaps + "/swap file 1024 0 -2\n", "/sys/fs/cgroup/cgroup.controllers": "memory", "/sys/fs/cgroup/a/memory.swap.max": "0"}, host.swap, OK, "1.0 MiB, which pods do not use", ""},
		"limited swap":      {map[string]string{"/proc/swaps": swaps + "/swap file 1024 0 -2\n", "/sys/fs/cgroup/cgroup.controllers": "memory", "/sys/fs/cgroup/a/memory.swap.max": "0"}, limitedSwap, OK, "burstable pods", ""},
		"limited to none":   {map[string]string{"/proc/swaps": swaps}, limitedSwap, Warning, "LimitedSwap", "mkswap"},
		"nothing in status": {nil, host.capabilities, Warning, "cannot be told", ""},
	}
	for name, c := range tests {
		t.Run(name, func(t *testing.T) {
			got := c.look(fake(t, c.files))
			if got.State != c.state || !strings.Contains(got.Found, c.found) || !strings.Contains(got.Fix, c.fix) || c.fix == "" && got.Fix != "" {
				t.Errorf("got %+v, want %s, found %q, fix %q", got, c.state, c.found, c.fix)
			}
		})
	}
}

const swaps = "Filename Type Size Used Priority\n"

func limitedSwap(h host) Check {
	h.o.LimitedSwap = true
	return h.swap()
}

func mode(h host) Check          { return h.cgroups()[0] }
func controllersOf(h host) Check { all := h.cgroups(); return all[len(all)-1] }

func withNamespaces(more, content string) map[string]string {
	files := map[string]string{more: content}
	for _, ns := range []string{"mnt", "net", "ipc", "uts", "pid", "user"} {
		files["/proc/self/ns/"+ns] = ""
	}
	return files
}

// script writes a program that answers to --version.
func script(t *testing.T, dir, name, says string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\necho '"+says+"'\n"), 0o755); err != nil {
		t.Fatal(err)
	}
}

func TestPrograms(t *testing.T) {
	bin, plugins := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin+":/bin:/usr/bin")
	script(t, bin, "apt-get", "")
	script(t, bin, "old-conmon", "conmon version 2.0.31")
	script(t, bin, "new-conmon", "conmon version 2.1.6\ncommit: unknown")
	script(t, bin, "mute", "hello")
	for name, c := range map[string]struct {
		path  string
		state State
		found string
	}{
		"old":    {"old-conmon", Failed, "2.0.31"},
		"new":    {"new-conmon", OK, "2.1.6"},
		"mute":   {"mute", Failed, "tells no version"},
		"absent": {"no-such-conmon", Failed, "not installed"},
	} {
		got := host{Options{Conmon: c.path}}.conmon(t.Context())
		if got.State != c.state || !strings.Contains(got.Found, c.found) || c.state == Failed && got.Fix != "apt-get install -y conmon" {
			t.Errorf("%s: %+v", name, got)
		}
	}
	h := host{Options{CNIBinDirs: []string{plugins}, OCIRuntime: "/no/such/runtime"}}
	for _, name := range neededPlugins[1:] {
		script(t, plugins, name, "")
	}
	if got := h.plugins(); got.State != Failed || !strings.HasPrefix(got.Found, "bridge missing") || !strings.Contains(got.Fix, "containernetworking-plugins") {
		t.Errorf("plugins: %+v", got)
	}
	script(t, plugins, "bridge", "")
	if got := h.plugins(); got.State != OK || !strings.Contains(got.Found, plugins) {
		t.Errorf("plugins: %+v", got)
	}
	if got := h.ociRuntime(t.Context()); got.State != Failed || !strings.Contains(got.Found, "/no/such/runtime") {
		t.Errorf("OCI runtime: %+v", got)
	}
}

func TestRunOnThisHost(t *testing.T) {
	all := Run(t.Context(), Options{Dirs: map[string]string{filepath.Join(t.TempDir(), "not/yet/there"): "images"}})
	seen, groups := map[string]bool{}, []string{}
	for _, c := range all {
		if i := slices.Index(groups, c.Group); i < 0 {
			groups = append(groups, c.Group)
		} else if i != len(groups)-1 {
			t.Errorf("group %s comes twice", c.Group)
		}
		if c.Group == "" || c.Name == "" || c.Found == "" || c.State == Failed && c.Fix == "" {
			t.Errorf("incomplete: %+v", c)
		}
		if seen[c.Name] {
			t.Errorf("%s is checked twice", c.Name)
		}
		seen[c.Name] = true
		t.Logf("%-8s %-18s %s | %s", c.State, c.Name, c.Found, c.Fix)
	}
	if !seen["space for images"] || !seen["OCI runtime"] {
		t.Errorf("something was not looked at: %v", seen)
	}
	if len(Run(t.Context(), Options{Endpoint: "unix:///nobody"})) >= len(all) {
		t.Error("with an external runtime its programs are looked at all the same")
	}
}

func TestWorst(t *testing.T) {
	w, f := Check{State: Warning}, Check{State: Failed}
	if Worst(nil) != OK || Worst([]Check{{State: OK}, w}) != Warning || Worst([]Check{f, w}) != Failed {
		t.Error("the worst is not found")
	}
}

func TestBytesText(t *testing.T) {
	for n, want := range map[uint64]string{12: "12.0 B", 3 << 29: "1.5 GiB", 1 << 55: "32768.0 TiB"} {
		if got := bytesText(n); got != want {
			t.Errorf("%d: %s, want %s", n, got, want)
		}
	}
}

// TestSpaceInMemory: a small /run is enough for state; a small disk is not for images.
func TestSpaceInMemory(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts a small tmpfs")
	}
	for size, want := range map[string]State{"100m": OK, "32m": Warning, "8m": Failed} {
		dir := t.TempDir()
		if err := unix.Mount("berth-test", dir, "tmpfs", 0, "size="+size); err != nil {
			t.Fatal(err)
		}
		got := host{}.spaceOf(dir, "state")
		if err := unix.Unmount(dir, 0); err != nil {
			t.Error(err)
		}
		if got.State != want {
			t.Errorf("%s: %+v, want %v", size, got, want)
		}
	}
}

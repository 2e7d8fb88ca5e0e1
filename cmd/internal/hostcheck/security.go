package hostcheck

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/sandbox"
)

const security, memory = "Security", "Memory"

func (h host) security(ctx context.Context) []Check {
	all := []Check{h.appArmor(), h.selinux()}
	if h.o.Root == "" && unix.Geteuid() == 0 {
		all = append(all, h.userNamespaces(ctx))
	}
	return all
}

func (h host) appArmor() Check {
	const name = "AppArmor"
	switch h.read("/sys/module/apparmor/parameters/enabled") {
	case "Y":
		profiles := h.read("/sys/kernel/security/apparmor/profiles")
		if profiles == "" {
			return ok(security, name, "on")
		}
		return ok(security, name, fmt.Sprintf("on, %d profiles are loaded", strings.Count(profiles, "\n")+1))
	case "N":
		return warn(security, name, "the kernel has it, but it is switched off: pods that name a profile are refused", "boot with apparmor=1 security=apparmor")
	}
	return ok(security, name, "not in this kernel: pods that name a profile are refused")
}

func (h host) selinux() Check {
	const name = "SELinux"
	switch h.read("/sys/fs/selinux/enforce") {
	case "1":
		return ok(security, name, "enforcing")
	case "0":
		return ok(security, name, "permissive: containers get their labels, but nothing is denied")
	}
	return ok(security, name, "off: seLinuxOptions of pods have no effect")
}

// userNamespaces tries what pods with hostUsers: false need, in a namespace that
// ends with the call: one that is mapped, and mounts of the root directory in it.
func (h host) userNamespaces(ctx context.Context) Check {
	const name = "user namespaces"
	const lost = ": pods with hostUsers: false cannot run"
	if h.o.Endpoint == "" {
		path := h.o.OCIRuntime
		if path == "auto" {
			path = ""
		}
		if b, err := ociruntime.Find(ctx, path); err == nil {
			if err := b.UserNamespaces(); err != nil {
				return warn(security, name, err.Error()+lost, h.install("crun"))
			}
		}
	}
	dir := h.o.RootDir
	for dir != "" && dir != "/" && !h.exists(dir) {
		dir = filepath.Dir(dir)
	}
	err := sandbox.ProbeUserNamespace(func(userns *os.File) error {
		if dir == "" {
			return nil
		}
		tree, err := mountns.CloneTree(dir, false)
		if err != nil {
			return err
		}
		defer tree.Close()
		return tree.MapIDs(userns)
	})
	if err != nil {
		return warn(security, name, err.Error()+lost, "use a kernel and a file system with idmapped mounts: ext4, XFS or btrfs, kernel 5.19 or newer; tmpfs needs 6.3")
	}
	return ok(security, name, "pods may have their own; mounts can be mapped to them")
}

func (h host) memory() []Check { return []Check{h.hugePages(), h.swap()} }

func (h host) hugePages() Check {
	const name = "huge pages"
	pools, _ := filepath.Glob(filepath.Join(h.o.Root, "/sys/kernel/mm/hugepages/hugepages-*kB")) // the pattern is valid
	var have, sizes []string
	for _, p := range pools {
		kib, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(filepath.Base(p), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		size := bytesText(kib << 10)
		sizes = append(sizes, size)
		if n := h.read(strings.TrimPrefix(p, h.o.Root) + "/nr_hugepages"); n != "0" && n != "" {
			have = append(have, fmt.Sprintf("%s of %s", n, size))
		}
	}
	switch {
	case len(sizes) == 0:
		return ok(memory, name, "not in this kernel: pods that request hugepages-... are refused")
	case len(have) == 0:
		return ok(memory, name, "none is reserved: pods that request hugepages-... are refused (vm.nr_hugepages reserves some, before the agent starts)")
	}
	return ok(memory, name, strings.Join(have, ", "))
}

func (h host) swap() Check {
	const name = "swap"
	var kib uint64
	for i, line := range strings.Split(h.read("/proc/swaps"), "\n") {
		if f := strings.Fields(line); i > 0 && len(f) > 2 {
			n, _ := strconv.ParseUint(f[2], 10, 64) // no number is no space
			kib += n
		}
	}
	v2 := h.exists("/sys/fs/cgroup/cgroup.controllers")
	if kib == 0 {
		if h.o.LimitedSwap {
			return warn(memory, name, "none, although memorySwap.swapBehavior is LimitedSwap", "mkswap and swapon some, or set swapBehavior: NoSwap")
		}
		return ok(memory, name, "none")
	}
	size := bytesText(kib << 10)
	groups, _ := filepath.Glob(filepath.Join(h.o.Root, "/sys/fs/cgroup/*/memory.swap.max"))
	switch {
	case v2 && len(groups) == 0, !v2 && !h.exists("/sys/fs/cgroup/memory/memory.memsw.limit_in_bytes"):
		return warn(memory, name, size+", which the kernel does not count by cgroup: pods may use it beyond their limits", "swapoff -a, or boot with swapaccount=1")
	case h.o.LimitedSwap && !v2:
		return warn(memory, name, size+"; swapBehavior LimitedSwap needs cgroup v2: pods use none", "boot with systemd.unified_cgroup_hierarchy=1")
	case h.o.LimitedSwap:
		return ok(memory, name, size+", of which burstable pods get a part")
	}
	return ok(memory, name, size+", which pods do not use")
}

package container

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/berthd/berth/cri/ocispec"
	"golang.org/x/sys/unix"
)

// DetectHost asks the kernel what containers on this host can get. systemd
// says which cgroup driver is configured. What cannot be read counts as absent.
func DetectHost(systemd bool) ocispec.Host {
	var st unix.Statfs_t
	h := ocispec.Host{
		CgroupV2:      unix.Statfs(cgroupRoot, &st) == nil && st.Type == unix.CGROUP2_SUPER_MAGIC,
		SystemdCgroup: systemd,
		Controllers:   map[string]bool{},
		Capabilities:  ocispec.Capabilities(boundingSet()),
		HardRlimits:   map[string]uint64{},
		Seccomp:       unix.Prctl(unix.PR_GET_SECCOMP, 0, 0, 0, 0) == nil,
	}
	h.CanLowerOOMScore = hasEffective(unix.CAP_SYS_RESOURCE)
	h.CanRaiseRlimits = h.CanLowerOOMScore
	h.OOMScoreAdj = readInt("/proc/self/oom_score_adj")
	// Since kernel 5.12; both runtimes that Find accepts know it.
	h.RecursiveReadOnly = unix.MountSetattr(-1, "", unix.AT_EMPTY_PATH, &unix.MountAttr{}) != unix.ENOSYS
	if h.CgroupV2 {
		b, _ := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
		for _, c := range strings.Fields(string(b)) {
			h.Controllers[c] = true
		}
		h.SwapAccounting = h.Controllers["memory"] && swapOnV2()
	} else {
		entries, _ := os.ReadDir(cgroupRoot)
		for _, e := range entries {
			for _, c := range strings.Split(e.Name(), ",") {
				h.Controllers[c] = true
			}
		}
		h.SwapAccounting = exists(filepath.Join(cgroupRoot, "memory/memory.memsw.limit_in_bytes"))
	}
	if h.Controllers["hugetlb"] {
		h.HugePageSizes = hugePageSizes()
	}
	for name, which := range rlimits {
		var lim unix.Rlimit
		if unix.Getrlimit(which, &lim) == nil {
			h.HardRlimits[name] = lim.Max
		}
	}
	return h
}

var rlimits = map[string]int{
	"RLIMIT_NOFILE": unix.RLIMIT_NOFILE, "RLIMIT_NPROC": unix.RLIMIT_NPROC, "RLIMIT_CORE": unix.RLIMIT_CORE,
	"RLIMIT_MEMLOCK": unix.RLIMIT_MEMLOCK, "RLIMIT_STACK": unix.RLIMIT_STACK,
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

func readInt(path string) int {
	b, _ := os.ReadFile(path)
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// swapOnV2: the root has no memory.swap.max, so any cgroup below it tells.
func swapOnV2() bool {
	m, _ := filepath.Glob(filepath.Join(cgroupRoot, "*/memory.swap.max"))
	return len(m) > 0
}

func capSets() map[string]uint64 {
	out := map[string]uint64{}
	b, _ := os.ReadFile("/proc/self/status")
	for line := range strings.Lines(string(b)) {
		if k, v, ok := strings.Cut(line, ":"); ok && strings.HasPrefix(k, "Cap") {
			out[k], _ = strconv.ParseUint(strings.TrimSpace(v), 16, 64)
		}
	}
	return out
}

// boundingSet is what we can give: in our bounding set, and permitted to us.
func boundingSet() uint64 {
	s := capSets()
	return s["CapBnd"] & s["CapPrm"]
}

func hasEffective(c uint) bool { return capSets()["CapEff"]&(1<<c) != 0 }

func hugePageSizes() []string {
	entries, _ := os.ReadDir("/sys/kernel/mm/hugepages")
	var out []string
	for _, e := range entries {
		kb, err := strconv.ParseUint(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		switch {
		case err != nil:
		case kb >= 1<<20:
			out = append(out, strconv.FormatUint(kb>>20, 10)+"GB")
		case kb >= 1<<10:
			out = append(out, strconv.FormatUint(kb>>10, 10)+"MB")
		default:
			out = append(out, strconv.FormatUint(kb, 10)+"KB")
		}
	}
	return out
}

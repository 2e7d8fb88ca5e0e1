package ocispec

import (
	"io/fs"
	"maps"
	"math"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func fileMode(bits uint32) fs.FileMode { return fs.FileMode(bits & 0o777) }

func resources(spec *specs.Spec) *specs.LinuxResources {
	if spec.Linux.Resources == nil {
		spec.Linux.Resources = &specs.LinuxResources{}
	}
	return spec.Linux.Resources
}

// setResources places the container in its pod's cgroup and limits it there.
func setResources(spec *specs.Spec, in Input, n *notes) error {
	if in.Sandbox.CgroupParent == "" {
		return invalid("sandbox %s names no cgroup parent", in.Sandbox.ID)
	}
	spec.Linux.CgroupsPath = CgroupsPath(in.Host.SystemdCgroup, in.Sandbox.CgroupParent, in.ID)
	limits, err := Resources(in.Config.GetLinux().GetResources(), in.Host)
	if err != nil {
		return err
	}
	limits.Spec.HugepageLimits = append(limits.Spec.HugepageLimits, unlisted(limits.Spec.HugepageLimits, in.Host)...)
	r := resources(spec)
	limits.Spec.Devices = r.Devices
	*r = limits.Spec
	*n = append(*n, limits.Notes...)
	return nil
}

// unlisted forbids the sizes of huge pages that a container with limits on others
// does not name.
func unlisted(named []specs.LinuxHugepageLimit, host Host) []specs.LinuxHugepageLimit {
	if len(named) == 0 {
		return nil
	}
	var out []specs.LinuxHugepageLimit
	for _, size := range host.HugePageSizes {
		if !slices.ContainsFunc(named, func(h specs.LinuxHugepageLimit) bool { return h.Pagesize == size }) {
			out = append(out, specs.LinuxHugepageLimit{Pagesize: size})
		}
	}
	return out
}

// CgroupsPath spells the cgroup of container id below parent as the OCI
// runtimes expect it: a path for cgroupfs, slice:prefix:name for systemd.
func CgroupsPath(systemd bool, parent, id string) string {
	if systemd {
		return path.Base(parent) + ":berth:" + id
	}
	return path.Join("/", parent, id)
}

// Limits is the cgroup part of a specification.
type Limits struct {
	Spec  specs.LinuxResources
	Notes []string
}

// Resources translates CRI's limits to the OCI's. Zero means "not limited" and
// is left out, as CRI has it. The same translation serves UpdateContainerResources.
func Resources(r *runtimeapi.LinuxContainerResources, host Host) (Limits, error) {
	var out Limits
	var n notes
	s := &out.Spec
	if cpu := cpuLimits(r); cpu != nil {
		s.CPU = cpu
	}
	unified := r.GetUnified()
	if limit := r.GetMemoryLimitInBytes(); limit > 0 {
		s.Memory = &specs.LinuxMemory{Limit: &limit}
		if swap := r.GetMemorySwapLimitInBytes(); host.SwapAccounting {
			if swap == 0 {
				swap = limit // memory and swap together: no swap
			}
			swap, unified = swapAlone(limit, swap, unified)
			s.Memory.Swap = &swap
		}
	}
	for _, h := range r.GetHugepageLimits() {
		switch {
		case slices.Contains(host.HugePageSizes, h.GetPageSize()):
			s.HugepageLimits = append(s.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: h.GetPageSize(), Limit: h.GetLimit()})
		case h.GetLimit() > 0:
			return Limits{}, unsupported("huge pages of size %s", h.GetPageSize())
		}
	}
	for key, value := range unified {
		if !parameter.MatchString(key) || strings.HasPrefix(key, "cgroup.") || strings.ContainsRune(value, 0) {
			return Limits{}, invalid("%q is not a parameter of a cgroup controller", key)
		}
	}
	if len(unified) > 0 {
		if host.CgroupV2 {
			s.Unified = unified
		} else {
			n.add("unified cgroup parameters are left out: this host uses cgroup v1")
		}
	}
	out.Notes = n
	return out, nil
}

// parameter is the name of a controller's file: what a runtime would be led out of
// the cgroup by is none, nor are the files by which the cgroup itself is ruled.
var parameter = regexp.MustCompile(`^[a-z0-9_]+(\.[A-Za-z0-9_]+)+$`)

// swapAlone takes cgroup v2's limit of swap, which counts no memory, out of the
// unified parameters and into the OCI's, which counts both: were it in both
// places, the order in which a runtime writes them would decide.
func swapAlone(memory, both int64, unified map[string]string) (int64, map[string]string) {
	swap, err := strconv.ParseInt(unified[swapMax], 10, 64)
	if err != nil || swap < 0 || swap > math.MaxInt64-memory {
		return both, unified
	}
	rest := maps.Clone(unified)
	delete(rest, swapMax)
	return memory + swap, rest
}

const swapMax = "memory.swap.max"

func cpuLimits(r *runtimeapi.LinuxContainerResources) *specs.LinuxCPU {
	cpu := &specs.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()}
	set := cpu.Cpus != "" || cpu.Mems != ""
	if v := uint64(max(r.GetCpuShares(), 0)); v > 0 {
		cpu.Shares, set = &v, true
	}
	if v := r.GetCpuQuota(); v != 0 {
		cpu.Quota, set = &v, true
	}
	if v := uint64(max(r.GetCpuPeriod(), 0)); v > 0 {
		cpu.Period, set = &v, true
	}
	if !set {
		return nil
	}
	return cpu
}

// setLimits sets the OOM score and rlimits, clamped to what a process like
// ours may give: both can only be made worse without CAP_SYS_RESOURCE.
func setLimits(spec *specs.Spec, in Input, n *notes) error {
	score := int(in.Config.GetLinux().GetResources().GetOomScoreAdj())
	if score < -1000 || score > 1000 {
		return invalid("oom_score_adj %d is not between -1000 and 1000", score)
	}
	if !in.Host.CanLowerOOMScore && score < in.Host.OOMScoreAdj {
		n.add("OOM scores below %d are raised to it: this host does not grant CAP_SYS_RESOURCE", in.Host.OOMScoreAdj)
		score = in.Host.OOMScoreAdj
	}
	spec.Process.OOMScoreAdj = &score
	for _, r := range in.Rlimits {
		hard, known := in.Host.HardRlimits[r.Type]
		if known && !in.Host.CanRaiseRlimits && r.Hard > hard {
			n.add("%s is limited to %d: this host does not grant CAP_SYS_RESOURCE", r.Type, hard)
			r.Hard = hard
		}
		r.Soft = min(r.Soft, r.Hard)
		spec.Process.Rlimits = append(spec.Process.Rlimits, r)
	}
	return nil
}

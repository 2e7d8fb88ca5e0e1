package cgroup

import (
	"fmt"
	"maps"
	"os"
	"path"
	"slices"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
	"github.com/opencontainers/cgroups"
	cgroupfs "github.com/opencontainers/cgroups/fs"
	"github.com/opencontainers/cgroups/fs2"
	"github.com/opencontainers/cgroups/manager"
	v1 "k8s.io/api/core/v1"
)

func (t *Tree) granted() []hierarchy {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.trees
}

// once says what is not granted, the first time.
func (t *Tree) once(what string, err error) {
	t.mu.Lock()
	first := !t.said[what]
	t.said[what] = true
	t.mu.Unlock()
	if first {
		t.cfg.Log.Warn("this host does not grant a part of resource control; pods run without it", "part", what, "err", err)
	}
}

// drop leaves hierarchy h alone from now on.
func (t *Tree) drop(h hierarchy, err error) {
	t.once(h.String(), err)
	t.mu.Lock()
	defer t.mu.Unlock()
	var rest []hierarchy
	for _, one := range t.trees {
		if one.mount != h.mount {
			rest = append(rest, one)
		}
	}
	t.trees = rest
}

// complete says that n exists in every hierarchy we write.
func (t *Tree) complete(n name) bool {
	for _, h := range t.granted() {
		if _, err := os.Lstat(h.dir(n.path(t.cfg.Driver))); err != nil {
			return false
		}
	}
	return true
}

// apply makes group n where it is missing and gives it l.
func (t *Tree) apply(n name, l Limits) error {
	failpoint.Hit("agent/cgroup/create")
	err := t.create(n, l)
	failpoint.Hit("agent/cgroup/create-done")
	if err != nil {
		return err
	}
	return t.set(n, l)
}

// create makes group n in every hierarchy we write.
func (t *Tree) create(n name, l Limits) error {
	if t.cfg.Driver == Systemd {
		m, err := manager.New(slice(n, t.resources(l)))
		if err != nil {
			return fmt.Errorf("slice %s: %w", n.slice(), err)
		}
		if err := m.Apply(-1); err != nil {
			return fmt.Errorf("ask systemd for slice %s: %w", n.slice(), err)
		}
		return nil
	}
	for _, h := range t.granted() {
		dir := h.dir(n.fsPath())
		if err := makeIn(h, dir, t.resources(l)); denied(err) {
			t.drop(h, err)
		} else if err != nil {
			return fmt.Errorf("make cgroup %s: %w", dir, err)
		}
	}
	return nil
}

func makeIn(h hierarchy, dir string, r *cgroups.Resources) error {
	switch {
	case h.v2 && h.mount == fs2.UnifiedMountpoint:
		return fs2.CreateCgroupPath(dir, &cgroups.Cgroup{Resources: r})
	case h.has("cpuset"): // an empty cpuset takes no process: it is filled from its parent
		return (&cgroupfs.CpusetGroup{}).ApplyDir(dir, r, -1)
	}
	failpoint.Hit("agent/cgroup/make-dirs")
	return os.MkdirAll(dir, 0o755)
}

func slice(n name, r *cgroups.Resources) *cgroups.Cgroup {
	parent := "-.slice"
	if len(n) > 1 {
		parent = n[:len(n)-1].slice()
	}
	return &cgroups.Cgroup{Name: n.slice(), Parent: parent, Systemd: true, Resources: r}
}

// resources puts l into the library's form, for the version of cgroups at hand.
func (t *Tree) resources(l Limits) *cgroups.Resources {
	r := &cgroups.Resources{SkipDevices: true, SkipFreezeOnSet: true, Memory: l.Memory, CpuQuota: l.CPUQuota, CpuPeriod: l.CPUPeriod}
	if l.Pids > 0 {
		r.PidsLimit = &l.Pids
	}
	for _, size := range slices.Sorted(maps.Keys(l.HugePages)) {
		r.HugetlbLimit = append(r.HugetlbLimit, &cgroups.HugepageLimit{Pagesize: size, Limit: l.HugePages[size]})
	}
	switch {
	case l.CPUShares == 0:
	case t.V2():
		r.CpuWeight = SharesToWeight(l.CPUShares)
	default:
		r.CpuShares = l.CPUShares
	}
	return r
}

// part is what one controller is given, so that a missing one does not take the others along.
type part struct {
	controller string
	r          *cgroups.Resources
}

func split(r *cgroups.Resources) []part {
	only := func(r cgroups.Resources) *cgroups.Resources {
		r.SkipDevices, r.SkipFreezeOnSet = true, true
		return &r
	}
	var parts []part
	if r.CpuShares != 0 || r.CpuWeight != 0 {
		parts = append(parts, part{"cpu", only(cgroups.Resources{CpuShares: r.CpuShares, CpuWeight: r.CpuWeight})})
	}
	if r.CpuQuota != 0 {
		parts = append(parts, part{"cpu", only(cgroups.Resources{CpuQuota: r.CpuQuota, CpuPeriod: r.CpuPeriod})})
	}
	if r.Memory != 0 {
		parts = append(parts, part{"memory", only(cgroups.Resources{Memory: r.Memory})})
	}
	if len(r.HugetlbLimit) > 0 {
		parts = append(parts, part{"hugetlb", only(cgroups.Resources{HugetlbLimit: r.HugetlbLimit})})
	}
	if r.PidsLimit != nil {
		parts = append(parts, part{"pids", only(cgroups.Resources{PidsLimit: r.PidsLimit})})
	}
	return parts
}

// set writes l into group n.
func (t *Tree) set(n name, l Limits) error {
	if t.cfg.Driver == Systemd && !l.none() {
		if err := t.tellSystemd(n, l); err != nil {
			return err
		}
	}
	for _, p := range split(t.resources(l)) {
		failpoint.Hit("agent/cgroup/set")
		h, ok := t.hierarchyOf(p.controller)
		if !ok {
			t.once("controller "+p.controller, fmt.Errorf("it is not mounted, or cannot be written"))
			continue
		}
		err := write(h, h.dir(n.path(t.cfg.Driver)), p)
		if denied(err) {
			t.once("limits of controller "+p.controller, err)
		} else if err != nil {
			return fmt.Errorf("limits of controller %s on %s: %w", p.controller, path.Base(n.path(t.cfg.Driver)), err)
		}
	}
	return nil
}

// tellSystemd gives the slice of n its limits as properties: what is only in the
// kernel's files, systemd puts back at the next daemon-reload. What the host
// does not grant is left to the files, which tell it one by one.
func (t *Tree) tellSystemd(n name, l Limits) error {
	r := t.resources(l)
	m, err := manager.New(slice(n, r))
	if err != nil {
		return fmt.Errorf("slice %s: %w", n.slice(), err)
	}
	failpoint.Hit("agent/cgroup/slice-set")
	err = m.Set(r)
	failpoint.Hit("agent/cgroup/slice-set-done")
	if err != nil && !denied(err) {
		return fmt.Errorf("limits of slice %s: %w", n.slice(), err)
	}
	return nil
}

func (t *Tree) hierarchyOf(controller string) (hierarchy, bool) {
	for _, h := range t.granted() {
		if h.v2 || h.has(controller) {
			return h, true
		}
	}
	return hierarchy{}, false
}

func write(h hierarchy, dir string, p part) error {
	if h.v2 {
		m, err := fs2.NewManager(&cgroups.Cgroup{Resources: p.r}, dir)
		if err != nil {
			return err
		}
		return m.Set(p.r)
	}
	switch p.controller {
	case "cpu":
		return (&cgroupfs.CpuGroup{}).Set(dir, p.r)
	case "memory":
		return (&cgroupfs.MemoryGroup{}).Set(dir, p.r)
	case "hugetlb":
		return (&cgroupfs.HugetlbGroup{}).Set(dir, p.r)
	}
	return (&cgroupfs.PidsGroup{}).Set(dir, p.r)
}

// request counts what burstable pod uid asks for, and gives the group of its
// class the sum; negative: the pod is gone.
func (t *Tree) request(uid pod.UID, milli int64) {
	t.qos.Lock()
	defer t.qos.Unlock()
	if milli < 0 {
		delete(t.burstable, uid)
	} else {
		t.burstable[uid] = milli
	}
	sum := int64(0)
	for _, m := range t.burstable {
		sum += m
	}
	shares := MilliCPUToShares(sum)
	if shares == t.shares {
		return
	}
	if err := t.set(t.qosName(v1.PodQOSBurstable), Limits{CPUShares: shares}); err != nil {
		t.once("shares of burstable pods", err)
		return
	}
	t.shares = shares
}

package cgroup

import (
	"context"
	"errors"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"github.com/opencontainers/cgroups"
	v1 "k8s.io/api/core/v1"
)

// Resize takes one step to bring p's group to what p asks for of what, which is
// v1.ResourceMemory or v1.ResourceCPU. The group is raised before the groups of
// the pod's containers are changed, and lowered after that, for no child may
// have more than its parent:
//
//	raise (up) ─▶ containers ─▶ lower
//
// before, if not nil, is called before the group is changed, and not at all if
// there is nothing to change; its error keeps the group as it is. What the host
// shows decides, so that a step done twice finds the work done.
func (t *Tree) Resize(ctx context.Context, p *v1.Pod, what v1.ResourceName, up bool, before func(context.Context) error) error {
	if len(t.granted()) == 0 {
		return nil
	}
	t.making.Lock()
	defer t.making.Unlock()
	class := pod.QOSClass(p)
	n := t.podName(class, pod.UID(p.UID))
	change, err := t.difference(n, t.limitsOf(p), what, up)
	if denied(err) {
		t.once("limits of controller "+string(what), err)
		return nil
	} else if err != nil {
		return fmt.Errorf("cgroup of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if len(change) == 0 {
		return nil
	}
	if before != nil {
		if err := before(ctx); err != nil {
			return err
		}
	}
	for _, l := range change {
		if err := t.set(n, l); err != nil {
			return fmt.Errorf("cgroup of pod %s/%s: %w", p.Namespace, p.Name, err)
		}
	}
	if what == v1.ResourceCPU && class == v1.PodQOSBurstable {
		t.request(pod.UID(p.UID), podRequestMilliCPU(p))
	}
	return nil
}

// Memory returns the limit that p asks for, the one its group has, and what is
// charged to the group, in bytes; math.MaxInt64 is no limit. ok is false if the
// host does not tell.
func (t *Tree) Memory(p *v1.Pod) (want, have, usage int64, ok bool) {
	h, ok := t.hierarchyOf("memory")
	if !ok {
		return 0, 0, 0, false
	}
	dir := h.dir(t.podName(pod.QOSClass(p), pod.UID(p.UID)).path(t.cfg.Driver))
	limitFile, usageFile := "memory.limit_in_bytes", "memory.usage_in_bytes"
	if h.v2 {
		limitFile, usageFile = "memory.max", "memory.current"
	}
	have, err := number(dir, limitFile)
	if err != nil {
		return 0, 0, 0, false
	}
	if usage, err = number(dir, usageFile); err != nil {
		return 0, 0, 0, false
	}
	return unlimited(t.cfg.PodLimits(p).Memory), have, usage, true
}

// limitsOf is PodLimits with what only the host knows: the sizes of its huge
// pages, of which a pod that asks for none gets none.
func (t *Tree) limitsOf(p *v1.Pod) Limits {
	l := t.cfg.PodLimits(p)
	if h, ok := t.hierarchyOf("hugetlb"); !ok || h.v2 && !t.enabled(h, "hugetlb") {
		return l
	}
	for _, size := range cgroups.HugePageSizes() {
		if _, asked := l.HugePages[size]; !asked {
			if l.HugePages == nil {
				l.HugePages = map[string]uint64{}
			}
			l.HugePages[size] = 0
		}
	}
	return l
}

// enabled says that pods may have controller of the only hierarchy.
func (t *Tree) enabled(h hierarchy, controller string) bool {
	content, err := os.ReadFile(h.dir(t.qosName(v1.PodQOSGuaranteed).path(t.cfg.Driver)) + "/cgroup.controllers")
	return err == nil && slices.Contains(strings.Fields(string(content)), controller)
}

// grow makes group n and gives it l, but takes nothing away from what runs in it.
func (t *Tree) grow(n name, l Limits) error {
	if !t.complete(n) || !t.occupied(n) {
		return t.apply(n, l)
	}
	for _, what := range []v1.ResourceName{v1.ResourceMemory, v1.ResourceCPU} {
		change, err := t.difference(n, l, what, true)
		if err != nil && !denied(err) { // what is not granted has been said when it was made
			return err
		}
		for _, c := range change {
			if err := t.set(n, c); err != nil {
				return err
			}
		}
	}
	return t.set(n, Limits{Pids: l.Pids})
}

// occupied says that some process is in n or below.
func (t *Tree) occupied(n name) bool {
	var dirs []string
	for _, h := range t.granted() {
		dirs = append(dirs, h.dir(n.path(t.cfg.Driver)))
	}
	return len(members(dirs)) > 0
}

// difference lists what must be written, in order, to bring n's limits of what
// up (or down) to l: a quota is raised before the shares and lowered after them.
func (t *Tree) difference(n name, l Limits, what v1.ResourceName, up bool) ([]Limits, error) {
	h, ok := t.hierarchyOf(string(what))
	if !ok {
		return nil, nil // not granted, and said before
	}
	dir := h.dir(n.path(t.cfg.Driver))
	var out []Limits
	if what == v1.ResourceMemory {
		have, err := readLimit(h, dir, "memory.limit_in_bytes", "memory.max")
		if err != nil {
			return nil, err
		}
		if want := unlimited(l.Memory); moves(have, want, up) {
			out = append(out, Limits{Memory: orNone(want)})
		}
		return out, nil
	}
	have, err := readLimit(h, dir, "cpu.cfs_quota_us", "cpu.max")
	if err != nil {
		return nil, err
	}
	if want := unlimited(l.CPUQuota); moves(have, want, up) {
		out = append(out, Limits{CPUQuota: orNone(want), CPUPeriod: uint64(t.cfg.period().Microseconds())})
	}
	if have, err = readLimit(h, dir, "cpu.shares", "cpu.weight"); err != nil {
		return nil, err
	}
	want := int64(l.CPUShares)
	if h.v2 {
		want = int64(SharesToWeight(l.CPUShares))
	}
	if moves(have, want, up) {
		out = append(out, Limits{CPUShares: l.CPUShares})
	}
	if !up {
		slices.Reverse(out)
	}
	return out, nil
}

func moves(have, want int64, up bool) bool { return up && want > have || !up && want < have }

func unlimited(limit int64) int64 {
	if limit <= 0 {
		return math.MaxInt64
	}
	return limit
}

func orNone(limit int64) int64 {
	if limit == math.MaxInt64 {
		return -1
	}
	return limit
}

// readLimit reads the file that the version of cgroups has.
func readLimit(h hierarchy, dir, file1, file2 string) (int64, error) {
	if h.v2 {
		return number(dir, file2)
	}
	return number(dir, file1)
}

// unlimitedV1 is what v1 shows, rounded to pages, where there is no limit.
const unlimitedV1 = 1 << 62

// number reads the first number of a group's file; "max", -1 and what v1 writes
// for "no limit" are math.MaxInt64.
func number(dir, file string) (int64, error) {
	content, err := os.ReadFile(dir + "/" + file)
	if err != nil {
		return 0, err
	}
	fields := strings.Fields(string(content))
	if len(fields) == 0 {
		return 0, fmt.Errorf("%s/%s is empty", dir, file)
	}
	if fields[0] == "max" {
		return math.MaxInt64, nil
	}
	n, err := strconv.ParseInt(fields[0], 10, 64)
	if errors.Is(err, strconv.ErrRange) || n < 0 || n >= unlimitedV1 {
		return math.MaxInt64, nil
	}
	if err != nil {
		return 0, fmt.Errorf("%s/%s: %w", dir, file, err)
	}
	return n, nil
}

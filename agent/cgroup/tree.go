package cgroup

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"reflect"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/opencontainers/cgroups/systemd"
	v1 "k8s.io/api/core/v1"
)

// Config is what Open needs. The zero value is the kubelet's default.
type Config struct {
	// Root is the group below which kubepods lies; "" is the root of each hierarchy.
	Root string
	// Driver is Cgroupfs if empty.
	Driver Driver
	// NoCPUQuota leaves CPU limits unenforced (cpuCFSQuota: false).
	NoCPUQuota bool
	// CPUPeriod is the period of CPU quotas, 100 ms if 0.
	CPUPeriod time.Duration
	// PodPidsLimit bounds the processes of each pod; 0: not limited by us.
	PodPidsLimit int64
	Log          *slog.Logger

	// hierarchies replaces the host's, in tests.
	hierarchies []hierarchy
}

func (c Config) period() time.Duration {
	if c.CPUPeriod == 0 {
		return 100 * time.Millisecond
	}
	return c.CPUPeriod
}

// Tree is the node's tree of pod cgroups. All calls may be made side by side;
// Remove of a pod must not overlap its Ensure.
type Tree struct {
	cfg  Config
	root name

	mu      sync.Mutex
	trees   []hierarchy       // those that the host lets us write
	all     []hierarchy       // every one: runtimes make groups in all of them
	said    map[string]bool   // what is not granted and has been said
	applied map[pod.UID]state // what each pod's group was last given

	making    sync.Mutex // one Ensure makes groups at a time: the same pod's sandbox and volumes may both ask
	qos       sync.Mutex
	burstable map[pod.UID]int64 // milli-CPU requested by burstable pods
	shares    uint64            // last given to the group of burstable pods
}

type state struct {
	class  v1.PodQOSClass
	limits Limits
}

// Open finds the hierarchies of the host, makes the groups of the QoS classes,
// and learns from the groups of burstable pods that are there already. It fails
// if Driver is Systemd and systemd does not run, or if the mount table cannot be
// read; a host that grants no hierarchy at all is said once, and Ensure then
// returns no parent.
func Open(cfg Config) (*Tree, error) {
	if cfg.Driver == "" {
		cfg.Driver = Cgroupfs
	}
	switch cfg.Driver {
	case Cgroupfs:
	case Systemd:
		if !systemd.IsRunningSystemd() {
			return nil, errors.New("cgroup driver systemd: systemd does not run on this host; set cgroupDriver: cgroupfs")
		}
	default:
		return nil, fmt.Errorf("cgroup driver %q is not known: use cgroupfs or systemd", cfg.Driver)
	}
	t := &Tree{cfg: cfg, root: rootName(cfg.Root), said: map[string]bool{}, applied: map[pod.UID]state{}, burstable: map[pod.UID]int64{}}
	t.all = cfg.hierarchies
	if t.all == nil {
		var err error
		if t.all, err = hostHierarchies(); err != nil {
			return nil, err
		}
	}
	unified := len(t.all) == 1 && t.all[0].v2
	for _, h := range t.all {
		if !h.v2 || unified { // on the hybrid, v2 has no controllers: runtimes may use it, we need not
			t.trees = append(t.trees, h)
		}
	}
	for _, class := range qosClasses {
		l := Limits{}
		if class == v1.PodQOSBestEffort {
			l.CPUShares = minShares
		}
		if err := t.apply(t.qosName(class), l); err != nil {
			return nil, err
		}
	}
	if len(t.trees) == 0 {
		cfg.Log.Warn("no cgroup hierarchy can be written: pods run without resource limits of their own")
	}
	t.learn()
	return t, nil
}

// V2 says that the host has cgroup v2 alone.
func (t *Tree) V2() bool { return len(t.all) == 1 && t.all[0].v2 }

// SwapAccounting says that the kernel can limit swap by group.
func (t *Tree) SwapAccounting() bool {
	for _, h := range t.granted() {
		file := "memory.memsw.limit_in_bytes"
		if h.v2 {
			file = "memory.swap.max"
		} else if !h.has("memory") {
			continue
		}
		if _, err := os.Stat(h.dir(t.qosName(v1.PodQOSGuaranteed).path(t.cfg.Driver)) + "/" + file); err == nil {
			return true
		}
	}
	return false
}

// Parent returns the path of p's group below the root of each hierarchy: what
// CRI calls its cgroup parent.
func (t *Tree) Parent(p *v1.Pod) string {
	return t.podName(pod.QOSClass(p), pod.UID(p.UID)).path(t.cfg.Driver)
}

// Ensure makes p's group, gives it its limits and returns its path, as Parent
// does, or "" if the host grants no hierarchy. It is idempotent, and cheap when
// nothing has changed. While something runs in the group, limits are only
// raised: lowering them has an order (see Resize).
func (t *Tree) Ensure(ctx context.Context, p *v1.Pod) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if len(t.granted()) == 0 {
		return "", nil
	}
	uid := pod.UID(p.UID)
	if uid == "" || strings.ContainsAny(string(uid), "/\x00") || uid == ".." {
		return "", fmt.Errorf("pod %s/%s: UID %q cannot name a cgroup", p.Namespace, p.Name, uid)
	}
	want := state{class: pod.QOSClass(p), limits: t.limitsOf(p)}
	n := t.podName(want.class, uid)
	t.making.Lock()
	defer t.making.Unlock()
	t.mu.Lock()
	have, known := t.applied[uid]
	t.mu.Unlock()
	if known && reflect.DeepEqual(have, want) && t.complete(n) {
		return n.path(t.cfg.Driver), nil
	}
	if want.class == v1.PodQOSBurstable {
		t.request(uid, podRequestMilliCPU(p))
	}
	if err := t.grow(n, want.limits); err != nil {
		return "", fmt.Errorf("cgroup of pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	t.mu.Lock()
	t.applied[uid] = want
	t.mu.Unlock()
	return n.path(t.cfg.Driver), nil
}

// Exists says that something of the pod's group is left in some hierarchy.
func (t *Tree) Exists(uid pod.UID) bool {
	t.mu.Lock()
	st, known := t.applied[uid]
	t.mu.Unlock()
	classes := qosClasses
	if known {
		classes = append([]v1.PodQOSClass{st.class}, classes...)
	}
	for _, class := range classes {
		for _, h := range t.all {
			if _, err := os.Lstat(h.dir(t.podName(class, uid).path(t.cfg.Driver))); err == nil {
				return true
			}
		}
	}
	return false
}

// Entry is one pod's group on the host.
type Entry struct {
	UID   pod.UID
	Class v1.PodQOSClass
	// Path is the group's path below the root of its hierarchies.
	Path string
}

// List returns the pod groups on the host, whoever made them, each once.
func (t *Tree) List(ctx context.Context) ([]Entry, error) {
	var all []Entry
	for _, class := range qosClasses {
		parent := t.qosName(class)
		seen := map[pod.UID]bool{}
		for _, h := range t.all {
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			dir := h.dir(parent.path(t.cfg.Driver))
			entries, err := os.ReadDir(dir)
			if err != nil && !errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("list cgroup %s: %w", dir, err)
			}
			for _, e := range entries {
				uid, ok := podOf(parent, e.Name(), t.cfg.Driver)
				if !ok || !e.IsDir() || seen[uid] {
					continue
				}
				seen[uid] = true
				all = append(all, Entry{UID: uid, Class: class, Path: t.podName(class, uid).path(t.cfg.Driver)})
			}
		}
	}
	return all, nil
}

// learn sums up what the burstable pods that are there have requested, from the
// shares of their groups: nothing is stored.
func (t *Tree) learn() {
	parent := t.qosName(v1.PodQOSBurstable)
	for _, h := range t.granted() {
		if !h.v2 && !h.has("cpu") {
			continue
		}
		entries, err := os.ReadDir(h.dir(parent.path(t.cfg.Driver)))
		if err != nil {
			continue
		}
		for _, e := range entries {
			if uid, ok := podOf(parent, e.Name(), t.cfg.Driver); ok && e.IsDir() {
				t.burstable[uid] = readMilli(h, h.dir(t.podName(v1.PodQOSBurstable, uid).path(t.cfg.Driver)))
			}
		}
	}
}

func readMilli(h hierarchy, dir string) int64 {
	file, milli := "cpu.shares", func(n uint64) int64 { return sharesToMilli(n) }
	if h.v2 {
		file, milli = "cpu.weight", weightToMilli
	}
	content, err := os.ReadFile(dir + "/" + file)
	if err != nil {
		return 0
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(content)), 10, 64)
	if err != nil {
		return 0
	}
	return milli(n)
}

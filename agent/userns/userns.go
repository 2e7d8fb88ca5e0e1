package userns

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

// Config is what Open needs.
type Config struct {
	// Dir is the directory of pods; a pod's record is Dir/<uid>/userns.
	Dir string
	// IDsPerPod is the length of each range, a multiple of 65536; 65536 if 0.
	IDsPerPod uint32
	// MaxPods is how many ranges there must be at least.
	MaxPods int
	// SubIDs is the program that tells subordinate IDs; getsubids on the PATH if empty.
	SubIDs string
	Log    *slog.Logger
}

// Allocator gives ranges of IDs to pods. Its methods may be called side by side.
type Allocator struct {
	cfg  Config
	span span

	mu   sync.Mutex
	pods map[pod.UID]pod.IDMapping
	used [space]bool // by unit
	next uint32      // where the search goes on: a range rests before it is used again
}

// Open reads the records of pods that have ranges, and returns the allocator of
// the others. It fails if the host has too few subordinate IDs for MaxPods. A
// record that cannot be read is renamed aside; Adopt brings its range back.
func Open(ctx context.Context, cfg Config) (*Allocator, error) {
	cfg.IDsPerPod = cmp.Or(cfg.IDsPerPod, unit)
	cfg.SubIDs = cmp.Or(cfg.SubIDs, "getsubids")
	if cfg.IDsPerPod%unit != 0 {
		return nil, fmt.Errorf("the number of IDs for each pod, %d, is not a multiple of %d", cfg.IDsPerPod, unit)
	}
	s, err := spanOf(ctx, cfg)
	if err != nil {
		return nil, err
	}
	a := &Allocator{cfg: cfg, span: s, pods: map[pod.UID]pod.IDMapping{}}
	if n := s.count / a.each(); int64(n) < int64(cfg.MaxPods) {
		return nil, fmt.Errorf("the host's subordinate IDs are enough for %d pods with user namespaces, and the node may run %d: give the user %s at least %d IDs in /etc/subuid and /etc/subgid, or lower max-pods",
			n, cfg.MaxPods, subIDUser, int64(cfg.MaxPods)*int64(cfg.IDsPerPod))
	}
	return a, a.load()
}

func (a *Allocator) each() uint32 { return a.cfg.IDsPerPod / unit }

// found is a record on disk.
type found struct {
	uid pod.UID
	m   pod.IDMapping
	at  time.Time
}

// load takes over the records. Two can claim one range only after a power cut
// that undid a removal: no containers run then, and the younger one is right.
func (a *Allocator) load() error {
	entries, err := os.ReadDir(a.cfg.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("look for the ranges of user namespaces: %w", err)
	}
	var all []found
	for _, e := range entries {
		path := filepath.Join(a.cfg.Dir, e.Name(), recordName)
		st, err := os.Lstat(path)
		if err != nil {
			continue // most pods have none
		}
		m, err := readRecord(path)
		if err != nil {
			a.putAside(path, err)
			continue
		}
		all = append(all, found{pod.UID(e.Name()), m, st.ModTime()})
	}
	slices.SortFunc(all, func(x, y found) int { return cmp.Or(y.at.Compare(x.at), cmp.Compare(x.uid, y.uid)) })
	for _, f := range all {
		if other := a.holder(f.m); other != "" {
			a.putAside(filepath.Join(a.cfg.Dir, string(f.uid), recordName), fmt.Errorf("its IDs belong to pod %s now", other))
			continue
		}
		a.hold(f.uid, f.m)
	}
	return nil
}

func (a *Allocator) putAside(path string, why error) {
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	failpoint.Hit("agent/userns/record-aside")
	if err := os.Rename(path, aside); err != nil {
		aside = path
	}
	a.cfg.Log.Warn("the record of a pod's user namespace is not used; if the pod runs, its IDs are learned from the runtime", "record", aside, "why", why)
}

// units are those that m touches.
func units(m pod.IDMapping) (from, to uint32) {
	return m.HostID / unit, uint32((uint64(m.HostID) + uint64(m.Length) + unit - 1) / unit)
}

func (a *Allocator) set(m pod.IDMapping, used bool) {
	from, to := units(m)
	for i := from; i < to; i++ {
		a.used[i] = used
	}
}

func (a *Allocator) hold(uid pod.UID, m pod.IDMapping) {
	a.pods[uid] = m
	a.set(m, true)
}

func (a *Allocator) overlaps(m pod.IDMapping) bool {
	from, to := units(m)
	return slices.Contains(a.used[from:to], true)
}

// holder is a pod that has IDs of m, "" if nobody has.
func (a *Allocator) holder(m pod.IDMapping) pod.UID {
	if !a.overlaps(m) {
		return ""
	}
	from, to := units(m)
	for uid, have := range a.pods {
		if f, t := units(have); f < to && from < t {
			return uid
		}
	}
	return ""
}

// Allot gives the pod a range, and records it before it returns. A pod that has
// one keeps it. The error of an exhausted host is a *pod.Error of kind Exhausted.
func (a *Allocator) Allot(uid pod.UID) (pod.IDMapping, error) {
	if !validUID(uid) {
		return pod.IDMapping{}, fmt.Errorf("the pod's UID %q cannot name a directory", uid)
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if m, ok := a.pods[uid]; ok {
		return m, nil
	}
	m, ok := a.free()
	if !ok {
		return m, &pod.Error{Op: "allot a user namespace", Kind: pod.Exhausted,
			Err: fmt.Errorf("all %d ranges of user IDs are in use by pods with hostUsers: false: end some of them, or give the user %s more IDs in /etc/subuid and /etc/subgid", a.span.count/a.each(), subIDUser)}
	}
	return m, a.keep(uid, m)
}

// Adopt records a range that a running pod was found to have. Nothing happens if
// the pod has a range already.
func (a *Allocator) Adopt(uid pod.UID, m pod.IDMapping) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	if _, ok := a.pods[uid]; ok {
		return nil
	}
	if err := sound(m); err != nil || !validUID(uid) {
		return fmt.Errorf("adopt the IDs %d+%d of pod %q: %w", m.HostID, m.Length, uid, errors.Join(err, os.ErrInvalid))
	}
	if other := a.holder(m); other != "" {
		return fmt.Errorf("the IDs %d+%d of pod %s belong to pod %s too: restart one of them", m.HostID, m.Length, uid, other)
	}
	return a.keep(uid, m)
}

func (a *Allocator) keep(uid pod.UID, m pod.IDMapping) error {
	if err := writeRecord(filepath.Join(a.cfg.Dir, string(uid)), m); err != nil {
		return fmt.Errorf("record the user namespace of pod %s: %w", uid, err)
	}
	a.hold(uid, m)
	return nil
}

// free finds a range that nobody has, after the one that was given last.
func (a *Allocator) free() (pod.IDMapping, bool) {
	each, n := a.each(), a.span.count/a.each()
	for i := range n {
		at := (a.next + i) % n
		m := pod.IDMapping{HostID: (a.span.first + at*each) * unit, Length: a.cfg.IDsPerPod}
		if !a.overlaps(m) {
			a.next = (at + 1) % n
			return m, true
		}
	}
	return pod.IDMapping{}, false
}

// Mapping returns the range that the pod has; ok is false for a pod without one.
func (a *Allocator) Mapping(uid pod.UID) (m pod.IDMapping, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok = a.pods[uid]
	return m, ok
}

// Release takes the pod's range back. Its containers must be gone. A pod without
// a range is fine.
func (a *Allocator) Release(uid pod.UID) error {
	a.mu.Lock()
	defer a.mu.Unlock()
	m, ok := a.pods[uid]
	if !ok {
		return nil
	}
	if err := eraseRecord(filepath.Join(a.cfg.Dir, string(uid))); err != nil {
		return fmt.Errorf("erase the record of the user namespace of pod %s: %w", uid, err)
	}
	delete(a.pods, uid)
	a.set(m, false)
	return nil
}

// Retain takes back the ranges of pods that are not alive: of pods that neither
// the runtime nor a record knows any more. It is for the start, before the first
// pod is acted on. Every range is tried even if one fails.
func (a *Allocator) Retain(alive func(pod.UID) bool) error {
	a.mu.Lock()
	var gone []pod.UID
	for uid := range a.pods {
		if !alive(uid) {
			gone = append(gone, uid)
		}
	}
	a.mu.Unlock()
	var errs []error
	for _, uid := range gone {
		errs = append(errs, a.Release(uid))
	}
	return errors.Join(errs...)
}

func validUID(uid pod.UID) bool {
	return uid != "" && uid != "." && uid != ".." && !strings.ContainsAny(string(uid), "/\x00")
}

package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/csi/local"
	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
)

// Mounter makes mounts in the agent's mount namespace; mount.Kernel is one.
type Mounter interface {
	local.Mounter
	// Below returns the mount points at and below dir, the last made first.
	Below(dir string) ([]string, error)
}

// Config is what New needs.
type Config struct {
	// Root is the agent's root directory; volumes lie in Root/pods.
	Root string
	// Objects looks up ConfigMaps and Secrets.
	Objects volume.Objects
	// Allocatable tells what the node can give; nil: unknown. It bounds an
	// emptyDir of medium Memory and stands in for limits in the downward API.
	Allocatable func() v1.ResourceList
	// Mounter is mount.Kernel{} if nil.
	Mounter Mounter
	// Event, if set, is told what people should see. It must not block.
	Event  func(Event)
	Logger *slog.Logger
}

// Volume is one volume, set up on the host.
type Volume struct {
	HostPath string
	// ReadOnly says that no container may mount it writable.
	ReadOnly bool
}

// Event is something to tell people, in Kubernetes' words.
type Event struct {
	Pod     *v1.Pod // nil: the node is meant
	Warning bool
	Reason  string
	Message string
}

// Volumes sets up and takes down the volumes of pods. Calls for one pod exclude
// each other, calls for different pods run side by side.
type Volumes struct {
	cfg  Config
	pods string // Root/pods, free of symbolic links
	boot string

	mu    sync.Mutex
	calls int             // under way
	idle  []chan struct{} // closed when calls becomes 0
	gates map[string]*gate
	known map[string]known
	// swappable warns once that memory may reach a disk.
	swappable            sync.Once
	slowAfter, slowEvery time.Duration
}

// known is what the last complete Mount of a pod made. It is immutable.
type known struct {
	all     map[string]Volume
	scratch []Scratch
}

func (k known) equal(other known) bool {
	return maps.Equal(k.all, other.all) && slices.Equal(k.scratch, other.scratch)
}

// New makes Root/pods and returns its Volumes. Nothing on disk is changed
// otherwise: pods that run keep what they have.
func New(cfg Config) (*Volumes, error) {
	if cfg.Mounter == nil {
		cfg.Mounter = mount.Kernel{}
	}
	if cfg.Event == nil {
		cfg.Event = func(Event) {}
	}
	if cfg.Allocatable == nil {
		cfg.Allocatable = func() v1.ResourceList { return nil }
	}
	pods := filepath.Join(cfg.Root, "pods")
	failpoint.Hit("csi/open")
	if err := os.MkdirAll(pods, 0o750); err != nil {
		return nil, local.Classify("", "", fmt.Errorf("make the directory of pods: %w", err))
	}
	pods, err := filepath.EvalSymlinks(pods)
	if err != nil {
		return nil, fmt.Errorf("resolve the directory of pods: %w", err)
	}
	if pods, err = filepath.Abs(pods); err != nil {
		return nil, fmt.Errorf("resolve the directory of pods: %w", err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read the boot ID: %w", err)
	}
	return &Volumes{
		cfg:   cfg,
		pods:  pods,
		boot:  strings.TrimSpace(string(boot)),
		gates: map[string]*gate{},
		known: map[string]known{},

		slowAfter: local.SlowAfter,
		slowEvery: local.SlowEvery,
	}, nil
}

// Close waits until every call has ended, also those whose caller gave up. A
// call stuck in the kernel (a dead network file system) can outlast ctx.
func (v *Volumes) Close(ctx context.Context) error {
	v.mu.Lock()
	if v.calls == 0 {
		v.mu.Unlock()
		return nil
	}
	idle := make(chan struct{})
	v.idle = append(v.idle, idle)
	v.mu.Unlock()
	select {
	case <-idle:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("volume work still under way: %w", ctx.Err())
	}
}

// Mount sets up every volume of pod that a container uses and returns them by
// name. It is idempotent and is also the refresh: rendered volumes whose content
// changed are switched at one instant, and nothing else is written.
//
// A failure is a *volume.Error or volume.Errors, which name every volume that
// failed; what could be set up stays, and the next Mount or Unmount goes on from
// there. When ctx ends first, the error says which volumes are missing.
func (v *Volumes) Mount(ctx context.Context, pod *v1.Pod) (map[string]Volume, error) {
	uid := string(pod.UID)
	dir, err := v.dir(uid, volume.OpSetUp)
	if err != nil {
		return nil, err
	}
	planned, refused := volume.Of(pod)
	work := newProgress(planned, refused)
	var mounted known
	err = v.alone(ctx, uid, volume.OpSetUp, func() error {
		failpoint.Hit("csi/pod-mkdir")
		if err := os.MkdirAll(dir, 0o750); err != nil {
			return err
		}
		all, err := v.setUp(ctx, dir, pod, work)
		if err != nil {
			return err
		}
		if have, ok := v.recollect(uid, dir); !ok || !have.equal(all) {
			if err := v.record(dir, planned, all.all); err != nil {
				return err
			}
			v.remember(uid, all)
		}
		mounted = all
		return nil
	})
	if ended := ctx.Err(); err != nil && ended != nil {
		return nil, work.cut(ended)
	}
	if err != nil {
		return nil, err
	}
	return mounted.all, nil
}

func (v *Volumes) setUp(ctx context.Context, dir string, pod *v1.Pod, work *progress) (known, error) {
	p := local.Pod{
		Dir:       dir,
		Facts:     volume.Facts{Pod: pod, Objects: v.cfg.Objects, Allocatable: v.cfg.Allocatable()},
		Slow:      func(name string, files int64, first bool) { v.slow(pod, name, files, first) },
		SlowAfter: v.slowAfter, SlowEvery: v.slowEvery,
	}
	k := known{all: make(map[string]Volume, len(work.planned))}
	for _, one := range work.planned {
		if err := ctx.Err(); err != nil {
			return known{}, err
		}
		if one.InMemory {
			v.swappable.Do(v.warnSwappable)
		}
		work.begin(one.Name)
		path, err := local.SetUp(ctx, v.cfg.Mounter, p, one)
		if err != nil {
			work.fail(local.Classify(volume.OpSetUp, one.Name, err))
			continue
		}
		work.done(one.Name)
		k.all[one.Name] = Volume{HostPath: path, ReadOnly: one.ReadOnly}
		k.scratch = appendScratch(k.scratch, one, path)
	}
	return k, work.result()
}

// SubPath makes the path sub of a mounted volume available at a path of its own,
// as the index-th mount of container, and returns that path. Missing directories
// are made. It is idempotent; Unmount takes it away. Only the volume's own files
// can be reached, whatever links the pod's containers put there.
func (v *Volumes) SubPath(ctx context.Context, pod *v1.Pod, container, name, sub string, index int) (string, error) {
	uid := string(pod.UID)
	dir, err := v.dir(uid, volume.OpSubPath)
	if err != nil {
		return "", err
	}
	if !volume.ValidUID(container) || !volume.ValidUID(name) || index < 0 {
		return "", &volume.Error{Op: volume.OpSubPath, Volume: name, Code: volume.Invalid,
			Err: fmt.Errorf("container %q, mount %d: not a name a directory can have", container, index)}
	}
	target := filepath.Join(dir, "volume-subpaths", name, container, strconv.Itoa(index))
	err = v.alone(ctx, uid, volume.OpSubPath, func() error {
		mounted, _ := v.Mounted(uid)
		from, ok := mounted[name]
		if !ok {
			return local.Classify(volume.OpSubPath, name, errors.New("the volume is not set up"))
		}
		if err := local.SubPath(v.cfg.Mounter, from.HostPath, sub, target); err != nil {
			return local.Classify(volume.OpSubPath, name, err)
		}
		return nil
	})
	if err != nil {
		return "", err
	}
	return target, nil
}

// Mounted returns what the last complete Mount of the pod made, and whether that
// is all still there. After a restart of the agent it is found again from disk.
// The map must not be changed.
func (v *Volumes) Mounted(uid string) (map[string]Volume, bool) {
	dir, err := v.dir(uid, "")
	if err != nil {
		return nil, false
	}
	k, ok := v.recollect(uid, dir)
	return k.all, ok
}

func (v *Volumes) recollect(uid, dir string) (known, bool) {
	v.mu.Lock()
	k, ok := v.known[uid]
	v.mu.Unlock()
	if ok {
		return k, true
	}
	if k, ok = v.recall(dir); ok {
		v.remember(uid, k)
	}
	return k, ok
}

func (v *Volumes) remember(uid string, k known) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.known[uid] = k
}

func (v *Volumes) forget(uid string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	delete(v.known, uid)
}

// UIDs returns the pods that have a directory on this node.
func (v *Volumes) UIDs() ([]string, error) {
	entries, err := os.ReadDir(v.pods)
	if err != nil {
		return nil, fmt.Errorf("list the directories of pods: %w", err)
	}
	var uids []string
	for _, e := range entries {
		if e.IsDir() && volume.ValidUID(e.Name()) {
			uids = append(uids, e.Name())
		}
	}
	return uids, nil
}

// PodDir returns the directory of a pod, whether or not it exists.
func (v *Volumes) PodDir(uid string) (string, error) { return v.dir(uid, "") }

func (v *Volumes) dir(uid, op string) (string, error) {
	if !volume.ValidUID(uid) {
		return "", &volume.Error{Op: op, Code: volume.Invalid, Err: fmt.Errorf("%q cannot be the UID of a pod: it must be usable as the name of a directory", uid)}
	}
	return filepath.Join(v.pods, uid), nil
}

package container

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/berthd/berth/cri/apparmor"
	"github.com/berthd/berth/cri/cdi"
	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/record"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Rootfs mounts root filesystems and image volumes.
type Rootfs interface {
	// MountRootfs mounts what m describes at m.Target, an existing directory, and
	// keeps the image's layers until it is unmounted. Idempotent. An image that is
	// not stored is an errdefs.ErrNotFound.
	MountRootfs(ctx context.Context, m RootfsMount) error
	// UnmountRootfs unmounts it and drops what was written. Succeeds if there is nothing.
	UnmountRootfs(ctx context.Context, id, target string) error
}

// RootfsMount is one mount of an image.
type RootfsMount struct {
	// ID names it: a container's ID, or that and a suffix of its own.
	ID string
	// Image is an image's ID, or for a volume any name of one.
	Image  string
	Target string
	// Volume mounts the layers alone, read-only and without programs; otherwise
	// there is a writable part on top.
	Volume bool
	// Users is whose root owns the files.
	Users ocispec.Users
	// Label is the SELinux label of all files; empty: none.
	Label string
}

// EventKind is what happened to a container.
type EventKind int

// The kinds of events.
const (
	Created EventKind = iota
	Started
	Stopped
	Deleted
)

// Event says that a container has changed; the change is on record already.
type Event struct {
	Kind        EventKind
	ContainerID string
	SandboxID   string
	At          time.Time
}

// Config is what a Store needs.
type Config struct {
	// Dir is STATE/containers; BootID is record.BootID's.
	Dir, BootID string
	Rootfs      Rootfs
	// Runtime is that of the handler ""; Runtimes are those of handlers with a name.
	Runtime  *ociruntime.Runtime
	Runtimes map[string]*ociruntime.Runtime
	Monitor  *monitor.Monitor
	Host     ocispec.Host
	Rlimits  []specs.POSIXRlimit
	// Labels make SELinux labels; nil makes none.
	Labels *label.Labeler
	// AppArmor knows the profiles that are loaded; nil: AppArmor is off.
	AppArmor *apparmor.Profiles
	// CDI knows the devices of vendors; nil knows none.
	CDI *cdi.Registry
	// OnEvent is called after each change, on the goroutine that made it; it
	// must return at once. May be nil.
	OnEvent func(Event)
	Log     *slog.Logger
}

// Store holds all containers. Its methods may be called at once, also for the
// same container. Errors are errdefs kinds, or *ociruntime.Error.
type Store struct {
	cfg     Config
	records *record.Dir[Record]
	names   record.Names
	work    sync.WaitGroup // goroutines that end what a lost monitor left
	said    sync.Map       // notes of ocispec that have been logged
	filters filters

	mu         sync.RWMutex
	containers index
}

// Open returns a Store without containers; Restore fills it.
func Open(cfg Config) (*Store, error) {
	records, err := record.Open[Record](cfg.Dir, cfg.BootID, cfg.Log)
	if err != nil {
		return nil, err
	}
	// Root users of user namespaces pass through; what is theirs inside is theirs alone.
	if err := os.Chmod(cfg.Dir, 0o711); err != nil {
		return nil, fmt.Errorf("opening the directory of containers: %w", err)
	}
	if cfg.OnEvent == nil {
		cfg.OnEvent = func(Event) {}
	}
	return &Store{cfg: cfg, records: records, containers: newIndex()}, nil
}

// Quarantined counts the records that were found unreadable.
func (s *Store) Quarantined() int64 { return s.records.Quarantined() }

// runtime is the one that rec's container was made with. A handler that is not
// configured any more leaves the default one, which for all that is done to a
// container that exists is as good as not.
func (s *Store) runtime(rec Record) *ociruntime.Runtime {
	if rt := s.cfg.Runtimes[rec.Handler]; rt != nil {
		return rt
	}
	return s.cfg.Runtime
}

// settled names the handler that handler stands for, so that a container keeps
// its runtime when another becomes the default one.
func (s *Store) settled(handler string) string {
	if name := s.cfg.Runtime.Binary().Name; handler == "" && s.cfg.Runtimes[name] != nil {
		return name
	}
	return handler
}

func (s *Store) bundle(id string) string { return filepath.Join(s.records.Path(id), "bundle") }
func (s *Store) rootfs(id string) string { return filepath.Join(s.records.Path(id), "rootfs") }

// get finds a container by ID, or by a prefix of it that fits no other.
func (s *Store) get(id string) (*container, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return s.containers.find(id)
}

// complete is get for what needs a container whose creation is over.
func (s *Store) complete(id string) (*container, error) {
	c, err := s.get(id)
	if err != nil {
		return nil, err
	}
	if rec, _ := c.snapshot(); !rec.Complete {
		return nil, fmt.Errorf("container %q is still being created: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

// lock takes the container's op; unlock gives it back.
func (c *container) lock(ctx context.Context) error {
	select {
	case c.op <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for another operation on container %s: %w", c.id, ctx.Err())
	}
}

func (c *container) unlock() { <-c.op }

// update changes the record by change, on disk first. change may refuse by
// returning false; then nothing is done.
func (s *Store) update(c *container, change func(*Record) bool) (bool, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	next := c.rec
	if c.removed || !change(&next) {
		return false, nil
	}
	if err := s.records.Write(c.id, next); err != nil {
		return false, err
	}
	ended := c.rec.Exit == nil && next.Exit != nil
	c.rec = next
	c.list()
	if ended {
		close(c.exited)
	}
	return true, nil
}

func (s *Store) event(kind EventKind, c *container) {
	rec, _ := c.snapshot()
	s.cfg.OnEvent(Event{Kind: kind, ContainerID: c.id, SandboxID: rec.SandboxID, At: time.Now()})
}

// Facts are what other parts of the runtime may want to know of a container.
type Facts struct {
	ID, SandboxID string
	// PID of the first process; 0 when it has none.
	PID int
	// CgroupsPath is in the OCI's spelling: a path, or slice:prefix:name.
	CgroupsPath string
	LogPath     string
	Tty         bool
	Running     bool
	// OOMKills is how often the kernel killed in its cgroup, known once it has exited.
	OOMKills int64
}

// Facts returns a container's facts.
func (s *Store) Facts(id string) (Facts, error) {
	c, err := s.complete(id)
	if err != nil {
		return Facts{}, err
	}
	rec, cfg := c.snapshot()
	f := Facts{ID: c.id, SandboxID: rec.SandboxID, CgroupsPath: rec.CgroupsPath, LogPath: rec.LogPath, Tty: cfg.GetTty()}
	f.Running = rec.State() == runtimeapi.ContainerState_CONTAINER_RUNNING
	if rec.Exit == nil {
		f.PID = rec.Init.PID
	} else {
		f.OOMKills = rec.Exit.OOMKills
	}
	return f, nil
}

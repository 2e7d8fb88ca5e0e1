package sandbox

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/record"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// cleanupTime bounds the removal of what a failed creation has made.
const cleanupTime = time.Minute

// Pins keep namespaces alive without a process in them; mountns.Namespaces.
type Pins interface {
	// Pin keeps namespaces of the living process pid under name; done again, it replaces.
	Pin(pid int, kinds []mountns.Kind, name string) error
	// Open fails with errdefs.ErrNotFound if kind is not pinned under name.
	Open(name string, kind mountns.Kind) (*os.File, error)
	// Unpin lets go of all under name; idempotent.
	Unpin(name string) error
	// List returns every name with its kinds.
	List() (map[string][]mountns.Kind, error)
}

// Config is what a Store works with.
type Config struct {
	// Dir holds the records and files: STATE/sandboxes.
	Dir string
	// BootID is record.BootID's.
	BootID  string
	Pins    Pins
	Network Network
	// SystemdCgroup says that cgroup parents are slices of systemd.
	SystemdCgroup bool
	// Labels make SELinux labels; nil makes none.
	Labels *label.Labeler
	Log    *slog.Logger
	// OnChange is told that a sandbox was made, changed or removed. It must not
	// block. May be nil.
	OnChange func(ID)
}

// Store owns all sandboxes of a runtime. All methods may be called at once;
// operations on one sandbox wait for each other, reading waits for none.
type Store struct {
	cfg   Config
	dir   *record.Dir[state]
	names record.Names
	stop  context.CancelFunc // of the removal of strays; nil until Restore
	wg    sync.WaitGroup

	mu    sync.RWMutex
	boxes index
}

// Open returns the store over cfg.Dir; call Restore before anything else.
func Open(cfg Config) (*Store, error) {
	dir, err := record.Open[state](cfg.Dir, cfg.BootID, cfg.Log)
	if err != nil {
		return nil, err
	}
	if cfg.OnChange == nil {
		cfg.OnChange = func(ID) {}
	}
	return &Store{cfg: cfg, dir: dir, boxes: newIndex()}, nil
}

// Close ends the store's goroutines. Sandboxes stay as they are.
func (s *Store) Close() {
	if s.stop != nil {
		s.stop()
	}
	for _, b := range s.all() {
		b.mu.Lock()
		if b.watch != nil {
			b.watch.close()
		}
		b.mu.Unlock()
	}
	s.wg.Wait()
}

// Quarantined counts the records that were found unreadable.
func (s *Store) Quarantined() int64 { return s.dir.Quarantined() }

// Get returns the status of a sandbox, or errdefs.ErrNotFound.
func (s *Store) Get(id ID) (Status, error) {
	b, err := s.get(id)
	if err != nil {
		return Status{}, err
	}
	return b.status(), nil
}

// Facts are what a container of the sandbox is made from.
type Facts struct {
	Status
	Files
	// Hostname is the sandbox's own, or the host's on the host's network.
	Hostname                      string
	HostNetwork, HostPID, HostIPC bool
	// Join lists the namespaces that a container takes from the sandbox, opened by OpenNamespaces.
	Join []mountns.Kind
	// CgroupParent is where the container's cgroup goes.
	CgroupParent string
	LogDirectory string
	// Labels are its SELinux labels, empty where there are none.
	Labels label.Labels
	// Users is the mapping of its own user namespace, zero if it has none.
	Users UserNamespace
}

// Facts returns what a container needs to know. Its sandbox may be not Ready.
func (s *Store) Facts(id ID) (Facts, error) {
	b, err := s.get(id)
	if err != nil {
		return Facts{}, err
	}
	st := b.status()
	rec, _ := b.snapshot()
	m := modesOf(st.Config)
	name, err := hostname(st.Config, m)
	if err != nil {
		return Facts{}, err
	}
	users, err := UserNamespaceOf(st.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions())
	if err != nil {
		return Facts{}, err
	}
	f := Facts{
		Users: users, Labels: rec.Labels,
		Status: st, Files: filesIn(s.dir.Path(string(id)), m.hostIPC), Hostname: name,
		HostNetwork: m.hostNet, HostPID: m.hostPID, HostIPC: m.hostIPC, Join: m.kinds(),
		CgroupParent: st.Config.GetLinux().GetCgroupParent(), LogDirectory: st.Config.GetLogDirectory(),
	}
	if f.CgroupParent == "" {
		f.CgroupParent = defaultParent(s.cfg.SystemdCgroup)
	}
	return f, nil
}

// Namespaces are open namespaces of a sandbox.
type Namespaces struct{ files map[mountns.Kind]*os.File }

// OpenNamespaces opens the namespaces that containers of id join. It fails with
// errdefs.ErrFailedPrecondition if one is gone.
func (s *Store) OpenNamespaces(id ID) (*Namespaces, error) {
	b, err := s.get(id)
	if err != nil {
		return nil, err
	}
	_, config := b.snapshot()
	n := &Namespaces{files: map[mountns.Kind]*os.File{}}
	for _, k := range modesOf(config).kinds() {
		f, err := s.cfg.Pins.Open(string(id), k)
		if err != nil {
			n.Close()
			if errdefs.IsNotFound(err) {
				err = fmt.Errorf("sandbox %s: its %s namespace is gone; it must be made anew: %w", id, k, errdefs.ErrFailedPrecondition)
			}
			return nil, err
		}
		n.files[k] = f
	}
	return n, nil
}

// Path names the namespace of kind k for any program on this host, until Close;
// empty if the sandbox has none of its own.
func (n *Namespaces) Path(k mountns.Kind) string {
	f, ok := n.files[k]
	if !ok {
		return ""
	}
	if k == mountns.User {
		// runc from 1.2 on takes the user namespace of process N for the one at any
		// path that begins with /proc/N: with two slashes it looks into the file.
		return fmt.Sprintf("/proc//%d/fd/%d", os.Getpid(), f.Fd())
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd())
}

// File returns the namespace of kind k, nil if there is none. It stays n's.
func (n *Namespaces) File(k mountns.Kind) *os.File { return n.files[k] }

// Close closes the files.
func (n *Namespaces) Close() {
	for _, f := range n.files {
		f.Close()
	}
}

// NetworkStatus says why no sandbox can be attached now; nil if one can.
func (s *Store) NetworkStatus(ctx context.Context) error { return s.cfg.Network.Status(ctx) }

// PinLeaks returns the names under which namespaces are pinned for no sandbox.
func (s *Store) PinLeaks() ([]string, error) {
	pins, err := s.cfg.Pins.List()
	if err != nil {
		return nil, err
	}
	var out []string
	for name := range pins {
		if _, err := s.get(ID(name)); err != nil {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out, nil
}

// take waits for b's other operations to end.
func (b *box) take(ctx context.Context) error {
	select {
	case b.busy <- struct{}{}:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("waiting for another operation on sandbox %s: %w", b.id, context.Cause(ctx))
	}
}

func (b *box) give() { <-b.busy }

// write changes b's record on disk, then in memory. Only the operation that has
// taken b may.
func (s *Store) write(b *box, change func(*state)) error {
	rec, _ := b.snapshot()
	change(&rec)
	if err := s.dir.Write(string(b.id), rec); err != nil {
		return err
	}
	b.mu.Lock()
	b.rec = rec
	b.mu.Unlock()
	return nil
}

// hostname is what the sandbox is called inside.
func hostname(c *runtimeapi.PodSandboxConfig, m modes) (string, error) {
	if name := c.GetHostname(); name != "" && !m.hostNet {
		if len(name) > 64 || strings.ContainsAny(name, "\x00\n/ ") {
			return "", fmt.Errorf("host name %q: at most 64 characters, no spaces or slashes: %w", name, errdefs.ErrInvalidArgument)
		}
		return name, nil
	}
	return os.Hostname()
}

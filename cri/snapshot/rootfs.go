package snapshot

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"sort"
	"strings"
	"sync"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/berthd/berth/test/failpoint"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// Ref says which layers a container's root filesystem stands on. It is written
// before the mount, without fsync, and void after a reboot.
type Ref struct {
	// Boot is the boot it belongs to.
	Boot string `json:"boot"`
	// Container is the container's ID; Image the ID of its image.
	Container string `json:"container"`
	Image     string `json:"image"`
	// Chain is the chain ID of the topmost layer; empty for an image without layers.
	Chain string `json:"chain"`
	// Lower are the layers' directories, topmost first.
	Lower []string `json:"lower"`
	// Target is where it is mounted.
	Target string `json:"target"`
}

// Rootfs holds the writable parts of containers' root filesystems:
//
//	DIR/<container>/ref     the Ref: temp + rename, before anything is mounted
//	DIR/<container>/upper   what the container wrote
//	DIR/<container>/work    overlayfs' own
//	DIR/<container>.img<n>/ref   the Ref of an image volume, which has no more
//	DIR/.trash/             on the way out
//
//	(nothing) ──Mount──▶ directory ──▶ ref ──▶ mounted
//	    ▲                    │          │         │
//	    └────── Unmount ─────┴──────────┴─────────┘
//
// No database takes part, so a container's creation syncs nothing.
type Rootfs struct {
	dir      string
	boot     string
	log      *slog.Logger
	volatile bool

	mu       sync.Mutex
	refs     map[string]Ref    // by container ID; unreadable refs have no Chain and a Boot of this boot
	workshop *mountns.Workshop // of idmapped overlays; made when the first is

	trash chan struct{} // capacity 1: "there is trash" is all it says
	done  chan struct{}
	stop  context.CancelFunc
}

// containerID keeps IDs single path elements that cannot be hidden.
var containerID = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$`)

const (
	trashDir = ".trash"
	emptyDir = ".empty"
	blankDir = ".blank" // a second one: overlayfs takes no layer twice
	probeDir = ".probe"
)

// OpenRootfs opens dir, creating it if needed. What an earlier boot or a
// half-made Mount left there is removed; refs of this boot are read again.
// Close releases it; mounts stay.
func OpenRootfs(ctx context.Context, dir string, log *slog.Logger) (*Rootfs, error) {
	for _, d := range []string{dir, filepath.Join(dir, trashDir), filepath.Join(dir, emptyDir), filepath.Join(dir, blankDir)} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return nil, fmt.Errorf("create directory for root filesystems: %w", err)
		}
	}
	// Containers' root users reach their files through the mount, never by this path.
	if err := os.Chmod(dir, 0o700); err != nil {
		return nil, fmt.Errorf("close %s to others: %w", dir, err)
	}
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return nil, fmt.Errorf("read boot ID: %w", err)
	}
	r := &Rootfs{
		dir: dir, boot: strings.TrimSpace(string(boot)), log: log,
		refs: map[string]Ref{}, trash: make(chan struct{}, 1), done: make(chan struct{}),
	}
	r.volatile = probeVolatile(dir)
	if err := r.load(); err != nil {
		return nil, err
	}
	ctx, r.stop = context.WithCancel(context.WithoutCancel(ctx))
	go r.emptyTrash(ctx)
	r.wakeTrash()
	return r, nil
}

// Close waits for the removal under way; the rest of the trash is removed after the next open.
func (r *Rootfs) Close() {
	r.stop()
	<-r.done
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workshop != nil {
		r.workshop.Close()
		r.workshop = nil
	}
}

func (r *Rootfs) load() error {
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return fmt.Errorf("list root filesystems: %w", err)
	}
	mounts, err := uppers()
	if err != nil {
		return err
	}
	for _, e := range entries {
		id := e.Name()
		if id == trashDir || id == emptyDir || id == blankDir || id == probeDir {
			continue
		}
		ref, err := r.readRef(id)
		switch {
		case err == nil && ref.Boot == r.boot && ref.Container == id:
			r.refs[id] = ref
		case err == nil, errors.Is(err, os.ErrNotExist):
			// Of an earlier boot, or killed before the ref: never mounted since.
			if err := r.discard(id); err != nil {
				r.log.Warn("cannot remove a void root filesystem", "container", id, "err", err)
			}
		case !mounts[filepath.Join(r.dir, id, "upper")]:
			// What a power cut leaves of a file that was never synced. Writable layers
			// of this boot are mounted from their ref on until they are given up.
			r.log.Info("removing a root filesystem of an earlier boot whose reference is torn", "container", id, "err", err)
			if err := r.discard(id); err != nil {
				r.log.Warn("cannot remove a void root filesystem", "container", id, "err", err)
			}
		default:
			// In use: kept, and no layer is removed while it is there.
			r.log.Warn("unreadable reference of a root filesystem: layers are kept until it is removed", "container", id, "err", err)
			r.refs[id] = Ref{Boot: r.boot, Container: id}
		}
	}
	return nil
}

// uppers are the writable layers of all overlays that are mounted.
func uppers() (map[string]bool, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.FSTypeFilter("overlay"))
	if err != nil {
		return nil, fmt.Errorf("read the mount table to find root filesystems in use: %w", err)
	}
	dirs := map[string]bool{}
	for _, m := range mounts {
		for _, o := range strings.Split(m.VFSOptions, ",") {
			if dir, ok := strings.CutPrefix(o, "upperdir="); ok {
				dirs[dir] = true
			}
		}
	}
	return dirs, nil
}

func (r *Rootfs) readRef(id string) (Ref, error) {
	var ref Ref
	b, err := os.ReadFile(filepath.Join(r.dir, id, "ref"))
	if err != nil {
		return ref, err
	}
	return ref, json.Unmarshal(b, &ref)
}

// Pin records that ref's container stands on ref's layers, before Mount is
// called; a pinned chain must not be removed. Pinning again is success when
// image and chain are the same.
func (r *Rootfs) Pin(ref Ref) error {
	if !containerID.MatchString(ref.Container) {
		return fmt.Errorf("container ID %q is not usable as a file name", ref.Container)
	}
	ref.Boot = r.boot
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.refs[ref.Container]; ok && (old.Image != ref.Image || old.Chain != ref.Chain || old.Target != ref.Target) {
		return fmt.Errorf("container %s has a root filesystem of image %s at %s already: unmount it first", ref.Container, old.Image, old.Target)
	} else if ok {
		return nil
	}
	r.refs[ref.Container] = ref
	return nil
}

// prepare makes the container's directory; each step may have been done before.
func (r *Rootfs) prepare(dir string, ref Ref, o MountOptions) error {
	failpoint.Hit("cri/snapshot/rootfs-mkdir")
	if err := os.Mkdir(dir, 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	b, err := json.Marshal(ref)
	if err != nil {
		return err
	}
	failpoint.Hit("cri/snapshot/rootfs-ref")
	tmp := filepath.Join(dir, "ref.tmp")
	if err := os.WriteFile(tmp, b, 0o600); err != nil {
		return err
	}
	if err := os.Rename(tmp, filepath.Join(dir, "ref")); err != nil {
		return err
	}
	failpoint.Hit("cri/snapshot/rootfs-ref-done")
	if o.Volume {
		return nil
	}
	st := unix.Stat_t{Mode: 0o755}
	if len(ref.Lower) > 0 {
		if err := unix.Stat(ref.Lower[0], &st); err != nil {
			return fmt.Errorf("topmost layer %s: %w", ref.Lower[0], err)
		}
	}
	for _, d := range []string{"upper", "work"} {
		err := os.Mkdir(filepath.Join(dir, d), 0o755)
		if err != nil && !errors.Is(err, os.ErrExist) {
			return err
		}
	}
	// The upper directory is the container's "/": it looks as the image's does.
	upper := filepath.Join(dir, "upper")
	uid, gid := o.Owner.host(st.Uid, st.Gid)
	if err := os.Lchown(upper, uid, gid); err != nil {
		return err
	}
	if err := unix.Chmod(upper, st.Mode&0o7777); err != nil {
		return err
	}
	if len(ref.Lower) > 0 && o.Owner == nil {
		// Attributes may name users, which other owners would have to be shifted in.
		if err := copyXattrs(ref.Lower[0], upper); err != nil {
			return err
		}
	}
	at := []unix.Timespec{st.Atim, st.Mtim}
	return unix.UtimesNanoAt(unix.AT_FDCWD, upper, at, unix.AT_SYMLINK_NOFOLLOW)
}

func copyXattrs(from, to string) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	t, err := os.Open(to)
	if err != nil {
		return err
	}
	defer t.Close()
	return layer.CopyXattrs(int(f.Fd()), int(t.Fd()))
}

// Unmount unmounts target and gives up the container's root filesystem; its
// files are removed later. Idempotent, and works on any prefix of a Mount.
func (r *Rootfs) Unmount(container, target string) error {
	if !containerID.MatchString(container) {
		return fmt.Errorf("container ID %q is not usable as a file name", container)
	}
	r.mu.Lock()
	ref, ok := r.refs[container]
	r.mu.Unlock()
	targets := []string{target}
	if ok && ref.Target != target {
		targets = append(targets, ref.Target)
	}
	for _, t := range targets {
		if t == "" {
			continue
		}
		failpoint.Hit("cri/snapshot/rootfs-unmount")
		if err := unmountAll(t); err != nil {
			return err
		}
		failpoint.Hit("cri/snapshot/rootfs-unmount-done")
	}
	if err := r.discard(container); err != nil {
		return fmt.Errorf("give up root filesystem of %s: %w", container, err)
	}
	r.mu.Lock()
	delete(r.refs, container)
	r.mu.Unlock()
	r.wakeTrash()
	return nil
}

// discard moves a container's directory to the trash; one that is gone is success.
func (r *Rootfs) discard(id string) error {
	failpoint.Hit("cri/snapshot/rootfs-remove")
	err := os.Rename(filepath.Join(r.dir, id), filepath.Join(r.dir, trashDir, id+"."+rand.Text()))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	failpoint.Hit("cri/snapshot/rootfs-remove-done")
	return err
}

func (r *Rootfs) wakeTrash() {
	select {
	case r.trash <- struct{}{}:
	default:
	}
}

// emptyTrash is the one goroutine that removes files; Close ends it.
func (r *Rootfs) emptyTrash(ctx context.Context) {
	defer close(r.done)
	dir := filepath.Join(r.dir, trashDir)
	for {
		select {
		case <-ctx.Done():
			return
		case <-r.trash:
		}
		entries, err := os.ReadDir(dir)
		if err != nil {
			r.log.Warn("cannot list removed root filesystems", "err", err)
		}
		for _, e := range entries {
			if ctx.Err() != nil {
				return
			}
			failpoint.Hit("cri/snapshot/empty-trash")
			if err := os.RemoveAll(filepath.Join(dir, e.Name())); err != nil {
				r.log.Warn("cannot remove a root filesystem", "path", e.Name(), "err", err)
			}
		}
	}
}

// List returns the refs of all root filesystems, by container ID. A ref that
// could not be read has a Container and no Image.
func (r *Rootfs) List() []Ref {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Ref, 0, len(r.refs))
	for _, ref := range r.refs {
		out = append(out, ref)
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Container < out[j].Container })
	return out
}

// Unpin gives up a Pin whose Mount has not begun.
func (r *Rootfs) Unpin(container string) {
	if _, err := os.Lstat(filepath.Join(r.dir, container)); err == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.refs, container)
}

// Upper is the directory that holds what container wrote; it need not exist.
func (r *Rootfs) Upper(container string) string {
	return filepath.Join(r.dir, filepath.Base(container), "upper")
}

// Damaged tells whether a ref could not be read: while so, no layer may be removed.
func (r *Rootfs) Damaged() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, ref := range r.refs {
		if ref.Image == "" {
			return true
		}
	}
	return false
}

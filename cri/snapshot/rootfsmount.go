package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/test/failpoint"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// MountOptions are the choices of Mount.
type MountOptions struct {
	// ReadOnly mounts read-only.
	ReadOnly bool
	// Volume mounts the layers alone, for an image volume: read-only, without
	// devices, set-user-ID and programs, and without a writable part.
	Volume bool
	// Owner is whose root owns the image's files; nil for the host's.
	Owner *Owner
	// Label is the SELinux label of all files; empty: none.
	Label string
}

// Owner is a user namespace in which a root filesystem is used. Layers stay as
// they are on disk: they are mounted through its mapping (Linux 5.19).
type Owner struct {
	UserNS *os.File
	// UID and GID are the host's IDs of the namespace's ID 0; the next Length-1
	// follow.
	UID, GID uint32
	Length   uint32
}

// host translates what the image's IDs are on disk in the writable part.
func (o *Owner) host(uid, gid uint32) (int, int) {
	if o == nil {
		return int(uid), int(gid)
	}
	// What the mapping does not cover belongs to nobody inside: root gets it.
	if uid >= o.Length {
		uid = 0
	}
	if gid >= o.Length {
		gid = 0
	}
	return int(o.UID + uid), int(o.GID + gid)
}

// Mount makes the root filesystem of the pinned container and mounts it at the
// ref's Target, which is created if missing. Idempotent: an existing mount stays.
func (r *Rootfs) Mount(container string, o MountOptions) error {
	r.mu.Lock()
	ref, ok := r.refs[container]
	r.mu.Unlock()
	if !ok {
		return fmt.Errorf("container %s is not pinned", container)
	}
	dir := filepath.Join(r.dir, container)
	if err := r.prepare(dir, ref, o); err != nil {
		return fmt.Errorf("prepare root filesystem of %s: %w", container, err)
	}
	if err := os.Mkdir(ref.Target, 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create mount point: %w", err)
	}
	if mounted, err := mountinfo.Mounted(ref.Target); err != nil {
		return fmt.Errorf("look at mount point: %w", err)
	} else if mounted {
		return nil
	}
	failpoint.Hit("cri/snapshot/rootfs-mount")
	if err := r.mount(dir, ref, o); err != nil {
		return fmt.Errorf("mount root filesystem of %s: %w", container, err)
	}
	failpoint.Hit("cri/snapshot/rootfs-mount-done")
	return nil
}

func (r *Rootfs) mount(dir string, ref Ref, o MountOptions) error {
	lower := append([]string(nil), ref.Lower...)
	if len(lower) == 0 || o.Volume && len(lower) == 1 {
		lower = append(lower, filepath.Join(r.dir, emptyDir))
	}
	if o.Volume && len(lower) == 1 { // without a writable part there must be two
		lower = append(lower, filepath.Join(r.dir, blankDir))
	}
	var extra []string
	if r.volatile && !o.Volume {
		extra = append(extra, "volatile")
		// Left by a mount of this boot that was undone: nothing was lost.
		failpoint.Hit("cri/snapshot/rootfs-clear")
		if err := os.RemoveAll(filepath.Join(dir, "work", "work", "incompat")); err != nil {
			return fmt.Errorf("clear overlay marker: %w", err)
		}
	}
	if o.Label != "" {
		extra = append(extra, `context="`+o.Label+`"`) // a level has commas
	}
	if o.Owner == nil && !o.Volume {
		if o.ReadOnly {
			extra = append(extra, "ro")
		}
		return overlayMount(ref.Target, lower, filepath.Join(dir, "upper"), filepath.Join(dir, "work"), extra)
	}
	return r.assemble(dir, ref.Target, lower, extra, o)
}

// assemble puts an overlay together in the workshop and attaches it to target.
func (r *Rootfs) assemble(dir, target string, lower, extra []string, o MountOptions) error {
	w, err := r.openWorkshop()
	if err != nil {
		return err
	}
	over := mountns.Overlay{Options: append(overlayOptions(), extra...)}
	if o.Volume {
		over.Flags = unix.MS_RDONLY | unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC
	} else if o.ReadOnly {
		over.Flags = unix.MS_RDONLY
	}
	defer func() {
		for _, t := range append(over.Lower, over.Writable) {
			t.Close()
		}
	}()
	for _, path := range lower {
		t, err := mountns.CloneTree(path, false)
		if err != nil {
			return err
		}
		over.Lower = append(over.Lower, t)
		if o.Owner == nil {
			continue
		}
		if err := t.MapIDs(o.Owner.UserNS); err != nil {
			return fmt.Errorf("mount layer %s in a user namespace: %w", path, err)
		}
	}
	if !o.Volume {
		if over.Writable, err = mountns.CloneTree(dir, false); err != nil {
			return err
		}
		over.WritablePath = dir
	}
	tree, err := w.Overlay(over)
	if err != nil {
		return err
	}
	defer tree.Close()
	return tree.Attach(target)
}

func (r *Rootfs) openWorkshop() (*mountns.Workshop, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.workshop != nil {
		return r.workshop, nil
	}
	var err error
	r.workshop, err = mountns.OpenWorkshop()
	return r.workshop, err
}

// ProbeIDMap tells why no root filesystem can be mounted in the user namespace
// userns here; nil if they can. It leaves nothing mounted.
func (r *Rootfs) ProbeIDMap(userns *os.File) error {
	t, err := mountns.CloneTree(filepath.Join(r.dir, emptyDir), false)
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.MapIDs(userns); err != nil {
		return fmt.Errorf("image layers in %s: %w", r.dir, err)
	}
	second, err := mountns.CloneTree(filepath.Join(r.dir, blankDir), false)
	if err != nil {
		return err
	}
	defer second.Close()
	w, err := r.openWorkshop()
	if err != nil {
		return err
	}
	merged, err := w.Overlay(mountns.Overlay{Lower: []*mountns.Tree{t, second}, Options: overlayOptions(), Flags: unix.MS_RDONLY})
	if err != nil {
		return fmt.Errorf("overlayfs does not take idmapped layers, Linux 5.19 or newer is needed: %w", err)
	}
	merged.Close()
	return nil
}

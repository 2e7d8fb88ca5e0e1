package image

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/berthd/berth/cri/snapshot"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/metadata"
	"github.com/containerd/containerd/v2/pkg/gc"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/errdefs"
)

// RootfsOptions are the choices of MountRootfs.
type RootfsOptions struct {
	// ReadOnly mounts read-only. A runtime cannot make mount points in such a
	// root: for readOnlyRootFilesystem set the OCI spec's root.readonly instead.
	ReadOnly bool
	// Volume mounts the layers alone, for an image volume: read-only, nosuid,
	// nodev, noexec. container is then a name of its own, such as "<container>.img0".
	Volume bool
	// Owner is the user namespace whose root is to own the files; nil for the
	// host's.
	Owner *snapshot.Owner
	// Label is the SELinux label of all files; empty: none.
	Label string
}

// MountRootfs mounts a root filesystem for container at target: the image's
// layers below, and an empty directory of the container's own on top. image is
// an ID or anything Get takes. Idempotent for the same image and target. No
// database is written; where nothing was lost, it takes a few system calls.
// After an error or a crash, UnmountRootfs undoes what was made. Nothing is
// known of target's propagation: it is mounted in the calling process's
// mount namespace.
func (s *Store) MountRootfs(ctx context.Context, container, image, target string, opts RootfsOptions) error {
	ctx = namespaces.WithNamespace(ctx, namespace)
	if err := s.pinRootfs(ctx, container, image, target); err != nil {
		return failed("mount root filesystem of container "+container+" from image", image, err)
	}
	if err := s.rootfs.Mount(container, snapshot.MountOptions(opts)); err != nil {
		s.rootfs.Unpin(container)
		return failed("mount root filesystem of container "+container+" from image", image, err)
	}
	return nil
}

// pinRootfs finds the layers and pins them. An image is taken from the index
// and pinned under the index's lock, so that a Remove either finds the pin or
// was before.
func (s *Store) pinRootfs(ctx context.Context, container, image, target string) error {
	for attempt := 0; ; attempt++ {
		e := s.index.Load().find(image)
		if e == nil {
			return codef(CodeNotFound, "image is not stored on this node: %w", errdefs.ErrNotFound)
		}
		dirs, err := s.dirs(ctx, e)
		if errdefs.IsNotFound(err) && attempt == 0 {
			// The layers were lost with their database, or found damaged.
			if err := s.unpackAgain(ctx, e); err != nil {
				return err
			}
			continue
		}
		if err != nil {
			return err
		}
		s.indexMu.Lock()
		// Another reading of the image may mean other directories.
		current := s.index.Load().byID[e.ID]
		same := current != nil && current.parsed == e.parsed
		if same {
			err = s.rootfs.Pin(snapshot.Ref{Container: container, Image: string(e.ID), Chain: string(e.parsed.top()), Lower: dirs, Target: target})
		}
		s.indexMu.Unlock()
		if same {
			return err
		}
	}
}

// dirs gives the directories of e's layers, remembered once they were found.
func (s *Store) dirs(ctx context.Context, e *entry) ([]string, error) {
	if d := e.parsed.dirs.Load(); d != nil {
		return *d, nil
	}
	d, err := s.chainDirs(ctx, e.parsed)
	if err != nil {
		return nil, err
	}
	e.parsed.dirs.Store(&d)
	return d, nil
}

func (s *Store) unpackAgain(ctx context.Context, e *entry) error {
	s.log.Warn("layers of an image are missing: unpacking them again", "image", e.ID)
	err := s.leased(ctx, func(ctx context.Context) error {
		if err := s.unpackImage(ctx, e.parsed, newTracker(string(e.ID)), nil); err != nil {
			return err
		}
		return s.labelConfig(ctx, e.parsed)
	})
	if err == nil || codeFor(err) != CodeBadImage && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	// Its blobs are damaged as well. Without its names it counts as absent, and is pulled again.
	err = codef(CodeDamaged, "neither unpacked nor packed layers are sound, the image is forgotten: %w", err)
	return errors.Join(err, s.dropNames(ctx, e.records), s.namesChanged(ctx))
}

// UnmountRootfs unmounts target and removes the container's root filesystem;
// its files go in the background. Idempotent; works on any prefix of MountRootfs.
func (s *Store) UnmountRootfs(_ context.Context, container, target string) error {
	if err := s.rootfs.Unmount(container, target); err != nil {
		return failed("remove root filesystem of container", container, err)
	}
	return nil
}

// ProbeIDMap tells why images cannot be mounted in user namespaces here; nil if
// they can. userns is any user namespace with a mapping.
func (s *Store) ProbeIDMap(userns *os.File) error { return s.rootfs.ProbeIDMap(userns) }

// Rootfs lists the root filesystems there are, for the audit of leaks.
func (s *Store) Rootfs() []snapshot.Ref { return s.rootfs.List() }

// RootfsUpper is the directory that holds what container wrote to its root
// filesystem, for accounting; it need not exist.
func (s *Store) RootfsUpper(container string) string { return s.rootfs.Upper(container) }

// resourceRootfs makes containers' root filesystems roots of the collection.
const resourceRootfs = metadata.ResourceMount + 8

// rootfsRoots tells the garbage collector which layers containers stand on. A
// container refers to its image's topmost layer, and that to those below.
type rootfsRoots struct{ rootfs *snapshot.Rootfs }

// StartCollection begins one collection.
func (r rootfsRoots) StartCollection(context.Context) (metadata.CollectionContext, error) {
	return r, nil
}

// ReferenceLabel is empty: nothing refers to a root filesystem.
func (r rootfsRoots) ReferenceLabel() string { return "" }

// All sends nothing: the collector removes no root filesystems.
func (r rootfsRoots) All(func(gc.Node)) {}

// Active sends the topmost layer of each root filesystem.
func (r rootfsRoots) Active(ns string, fn func(gc.Node)) {
	for _, ref := range r.rootfs.List() {
		if ref.Chain != "" {
			fn(gc.Node{Type: metadata.ResourceSnapshot, Namespace: ns, Key: fmt.Sprintf("%s/%s", snapshotterName, ref.Chain)})
		}
	}
}

// Leased sends nothing: root filesystems are in no lease.
func (r rootfsRoots) Leased(string, string, func(gc.Node)) {}

// Remove is never called, for All sends nothing.
func (r rootfsRoots) Remove(gc.Node) {}

// Cancel ends a collection.
func (r rootfsRoots) Cancel() error { return nil }

// Finish ends a collection.
func (r rootfsRoots) Finish() error { return nil }

// leaseSnapshot makes ctx's lease hold an existing layer.
func (s *Store) leaseSnapshot(ctx context.Context, key string) error {
	id, ok := leases.FromContext(ctx)
	if !ok {
		return nil
	}
	return s.leases.AddResource(ctx, leases.Lease{ID: id}, leases.Resource{ID: key, Type: "snapshots/" + snapshotterName})
}

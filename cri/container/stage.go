package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// Some sources of bind mounts are not given to the OCI runtime as they are, but
// as mounts of ours below STATE/containers/<id>/mounts:
//
//	<n>       the n-th mount of the container's configuration, or
//	<name>    a file of its sandbox: idmapped into its user namespace, or a part
//	          of an image volume
//	img<k>    the k-th of the images that its image volumes name
//
// That makes user namespaces work with runtimes that know no idmapped mounts, or
// make them too late, and with sources that the pod's root cannot reach by path.
// Whole images stay until the container is removed, the others only until it has
// been created. All of it comes after record.json and is gone before it.

func (s *Store) mounts(id string) string { return filepath.Join(s.records.Path(id), "mounts") }

// openTo lets the root of the container's user namespace reach its root
// filesystem by path, which OCI runtimes need, and nobody else.
func (s *Store) openTo(id string, u ocispec.Users) error {
	dir := s.records.Path(id)
	failpoint.Hit("cri/container/open-to-root")
	err := os.Chown(dir, 0, int(u.GIDs.Host))
	if err == nil {
		err = os.Chmod(dir, 0o710)
	}
	if err != nil {
		return fmt.Errorf("opening the directory of container %s to its root user: %w", id, err)
	}
	return nil
}

// stageAll replaces the sources of bind mounts that need it in in.
func (s *Store) stageAll(ctx context.Context, c *container, in *ocispec.Input) error {
	users := in.Sandbox.Users
	images := imagesOf(in.Config)
	in.Keep = map[string][]string{}
	if users.NS == "" && len(images) == 0 {
		return nil
	}
	failpoint.Hit("cri/container/mkdir-mounts")
	if err := os.Mkdir(s.mounts(c.id), 0o711); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("making the directory for mounts of container %s: %w", c.id, err)
	}
	for k, image := range images {
		m := RootfsMount{ID: volumeID(c.id, k), Image: image, Target: s.volume(c.id, k), Volume: true, Users: users, Label: in.MountLabel}
		if err := s.mountImage(ctx, m); err != nil {
			return err
		}
	}
	var ns *os.File
	if users.NS != "" {
		var err error
		if ns, err = os.Open(users.NS); err != nil {
			return fmt.Errorf("opening the pod's user namespace: %w", err)
		}
		defer ns.Close()
	}
	own := map[string]bool{}
	for i, m := range in.Config.GetMounts() {
		own[filepath.Clean(m.GetContainerPath())] = true
		var err error
		switch {
		case m.GetImage().GetImage() != "":
			err = s.stageImage(c.id, i, m, images)
		case ns != nil:
			err = s.stageBind(c.id, i, m, ns)
		}
		if err != nil {
			return err
		}
	}
	if ns == nil {
		return keepOptions(in)
	}
	for _, f := range []struct {
		dst, name string
		src       *string
	}{
		{"/etc/hosts", "hosts", &in.Sandbox.HostsPath}, {"/etc/hostname", "hostname", &in.Sandbox.HostnamePath},
		{"/etc/resolv.conf", "resolv.conf", &in.Sandbox.ResolvConfPath}, {"/dev/shm", "shm", &in.Sandbox.ShmPath},
	} {
		if *f.src == "" || own[f.dst] {
			continue
		}
		staged, err := s.stage(c.id, f.name, *f.src, staging{private: true}) // owned by the pod's root already
		if err != nil {
			return err
		}
		*f.src = staged
	}
	return keepOptions(in)
}

// keepOptions finds what the mounts that have been staged restrict.
func keepOptions(in *ocispec.Input) error {
	sources := []string{in.Sandbox.HostsPath, in.Sandbox.HostnamePath, in.Sandbox.ResolvConfPath, in.Sandbox.ShmPath}
	for _, m := range in.Config.GetMounts() {
		sources = append(sources, m.GetHostPath())
	}
	for _, src := range sources {
		var st unix.Statfs_t
		if src == "" {
			continue
		}
		if err := unix.Statfs(src, &st); err != nil {
			return fmt.Errorf("looking at the source %s of a mount: %w", src, err)
		}
		for _, o := range []struct {
			flag int64
			name string
		}{{unix.ST_RDONLY, "ro"}, {unix.ST_NOSUID, "nosuid"}, {unix.ST_NODEV, "nodev"}, {unix.ST_NOEXEC, "noexec"}} {
			if int64(st.Flags)&o.flag != 0 {
				in.Keep[src] = append(in.Keep[src], o.name)
			}
		}
	}
	return nil
}

// imagesOf are the images that cfg's mounts name, each once, in order.
func imagesOf(cfg *runtimeapi.ContainerConfig) []string {
	var out []string
	for _, m := range cfg.GetMounts() {
		if image := m.GetImage().GetImage(); image != "" && !slices.Contains(out, image) {
			out = append(out, image)
		}
	}
	return out
}

// volumeID names the k-th image volume of a container to Rootfs.
func volumeID(id string, k int) string { return id + ".img" + strconv.Itoa(k) }

func (s *Store) volume(id string, k int) string {
	return filepath.Join(s.mounts(id), "img"+strconv.Itoa(k))
}

func (s *Store) mountImage(ctx context.Context, m RootfsMount) error {
	failpoint.Hit("cri/container/mkdir-image-volume")
	err := os.Mkdir(m.Target, 0o711)
	if err == nil || errors.Is(err, os.ErrExist) {
		failpoint.Hit("cri/container/mount-image-volume")
		err = s.cfg.Rootfs.MountRootfs(ctx, m)
		failpoint.Hit("cri/container/mount-image-volume-done")
	}
	if err != nil {
		return fmt.Errorf("%w: image %s: %w", crierrors.ErrImageVolumeMountFailed, m.Image, err)
	}
	return nil
}

// stageImage makes the image volume m, which is the i-th mount, a bind mount of
// the image, or of its sub path, whose links do not lead out of the image.
func (s *Store) stageImage(id string, i int, m *runtimeapi.Mount, images []string) error {
	image, sub := m.GetImage().GetImage(), m.GetImageSubPath()
	root := s.volume(id, slices.Index(images, image))
	m.Image, m.ImageSubPath, m.HostPath, m.Readonly = nil, "", root, true
	if sub == "" {
		return nil
	}
	fail := func(err error) error {
		return fmt.Errorf("%w: subPath %q of image %s: %w", crierrors.ErrImageVolumeMountFailed, sub, image, err)
	}
	if !filepath.IsLocal(sub) {
		return fail(fmt.Errorf("it must be a relative path without ..: %w", errdefs.ErrInvalidArgument))
	}
	at, err := pathrs.OpenInRoot(root, sub)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return fail(fmt.Errorf("the image has no such file or directory: %w", errdefs.ErrNotFound))
	}
	if err != nil {
		return fail(err)
	}
	defer at.Close()
	if m.HostPath, err = s.stageFile(id, strconv.Itoa(i), at, staging{private: true}); err != nil {
		return fail(err)
	}
	return nil
}

func (s *Store) stageBind(id string, i int, m *runtimeapi.Mount, ns *os.File) (err error) {
	if !filepath.IsAbs(m.GetHostPath()) {
		return nil // Build refuses it
	}
	if m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		return fmt.Errorf("mount at %s: mountPropagation Bidirectional cannot work in a pod with a user namespace of its own, the kernel lets no mounts out of it: %w",
			m.GetContainerPath(), errdefs.ErrInvalidArgument)
	}
	o := staging{private: m.GetPropagation() == runtimeapi.MountPropagation_PROPAGATION_PRIVATE}
	if len(m.GetUidMappings())+len(m.GetGidMappings()) > 0 {
		o.users = ns
	}
	m.HostPath, err = s.stage(id, strconv.Itoa(i), m.GetHostPath(), o)
	if err != nil {
		return fmt.Errorf("mount at %s: %w", m.GetContainerPath(), err)
	}
	return nil
}

// staging says how a source is mounted.
type staging struct {
	// users is the user namespace it is mapped into; nil: owners stay.
	users *os.File
	// private takes it out of its source's propagation.
	private bool
}

// stage mounts source, a path without links, under name and returns where.
func (s *Store) stage(id, name, source string, o staging) (string, error) {
	f, err := os.OpenFile(source, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", fmt.Errorf("opening the source of a mount: %w", err)
	}
	defer f.Close()
	return s.stageFile(id, name, f, o)
}

func (s *Store) stageFile(id, name string, source *os.File, o staging) (string, error) {
	st, err := source.Stat()
	if err != nil {
		return "", fmt.Errorf("looking at the source of a mount: %w", err)
	}
	target := filepath.Join(s.mounts(id), name)
	failpoint.Hit("cri/container/mount-point")
	if st.IsDir() {
		err = os.Mkdir(target, 0o700)
	} else {
		err = os.WriteFile(target, nil, 0o600)
	}
	if err != nil {
		return "", fmt.Errorf("making a mount point of container %s: %w", id, err)
	}
	tree, err := mountns.CloneTreeOf(source, true)
	if err != nil {
		return "", err
	}
	defer tree.Close()
	if o.users != nil {
		if err := tree.MapIDs(o.users); err != nil {
			return "", fmt.Errorf("%s cannot be mounted in a user namespace: %w; use a volume on another file system (%s), or set hostUsers: true",
				source.Name(), err, fsType(source.Name()))
		}
	}
	if o.private {
		if err := tree.Restrict(0, true); err != nil {
			return "", err
		}
	}
	return target, tree.Attach(target)
}

// fsType is what a person needs to know: which file system it is that cannot.
func fsType(path string) string {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil || len(mounts) == 0 {
		return "this one is not known"
	}
	at := mounts[0]
	for _, m := range mounts {
		if len(m.Mountpoint) >= len(at.Mountpoint) {
			at = m
		}
	}
	return "this one is " + at.FSType
}

// unstageBinds unmounts all but whole images once the container exists: it has
// copies of its own, and these would keep volumes busy that are to be taken away
// before the container is removed.
func (s *Store) unstageBinds(id string) error {
	entries, err := s.staged(id)
	if err != nil {
		return err
	}
	for _, name := range entries {
		if !strings.HasPrefix(name, "img") {
			if err := s.unmountPoint(id, name); err != nil {
				return err
			}
		}
	}
	return nil
}

// unstage unmounts all that stageAll made, or any part of it.
func (s *Store) unstage(ctx context.Context, id string) error {
	entries, err := s.staged(id)
	if err != nil {
		return err
	}
	for _, name := range entries {
		if k, ok := strings.CutPrefix(name, "img"); ok {
			failpoint.Hit("cri/container/unmount-image-volume")
			if err := s.cfg.Rootfs.UnmountRootfs(ctx, id+".img"+k, filepath.Join(s.mounts(id), name)); err != nil {
				return fmt.Errorf("unmounting an image volume: %w", err)
			}
			failpoint.Hit("cri/container/unmount-image-volume-done")
		}
		if err := s.unmountPoint(id, name); err != nil {
			return err
		}
	}
	failpoint.Hit("cri/container/remove-mounts")
	if err := os.Remove(s.mounts(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the directory for mounts: %w", err)
	}
	return nil
}

func (s *Store) staged(id string) ([]string, error) {
	entries, err := os.ReadDir(s.mounts(id))
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("looking for mounts of container %s: %w", id, err)
	}
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names, nil
}

// unmountPoint unmounts and removes one mount point. What is still mounted in
// spite of all is not emptied: only the point itself is removed.
func (s *Store) unmountPoint(id, name string) error {
	path := filepath.Join(s.mounts(id), name)
	if err := mountns.UnmountAll(path); err != nil {
		return fmt.Errorf("unmounting %s: %w", path, err)
	}
	failpoint.Hit("cri/container/remove-mount-point")
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing a mount point: %w", err)
	}
	return nil
}

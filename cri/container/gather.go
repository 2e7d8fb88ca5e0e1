package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"github.com/cyphar/filepath-securejoin/pathrs-lite"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// gather collects the facts that ocispec.Build needs.
func (s *Store) gather(ctx context.Context, c *container, req CreateRequest) (ocispec.Input, error) {
	in := ocispec.Input{
		ID: c.id, Rootfs: s.rootfs(c.id), Sandbox: req.Sandbox, Image: req.ImageConfig, Host: s.cfg.Host, Rlimits: s.cfg.Rlimits,
		Config: proto.CloneOf(req.Config),
	}
	binary := s.runtime(Record{Handler: req.Handler}).Binary()
	in.Sandbox.Users.Untold = binary.Name == "crun" // see giveStreams
	in.Annotations = s.runtime(Record{Handler: req.Handler}).Annotations(req.Pod.GetAnnotations(), req.Config.GetAnnotations())
	in.Host.RecursiveReadOnly = in.Host.RecursiveReadOnly && binary.RecursiveReadOnly()
	sec := in.Config.GetLinux().GetSecurityContext()
	err := checkUsers(in.Config, req.Sandbox.Users)
	if err != nil {
		return in, err
	}
	if in.User, err = s.user(in.Rootfs, sec, req.ImageConfig.User); err != nil {
		return in, err
	}
	if err := mapped(in.User, req.Sandbox.Users); err != nil {
		return in, err
	}
	for _, m := range in.Config.GetMounts() {
		if m.GetImage().GetImage() != "" {
			continue
		}
		if err := resolveMount(m); err != nil {
			return in, err
		}
	}
	if err := checkPlaces(in); err != nil {
		return in, err
	}
	if in.Devices, err = devices(in.Config); err != nil {
		return in, err
	}
	if p := sec.GetSeccomp(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && !sec.GetPrivileged() {
		if in.LocalSeccomp, err = loadSeccomp(p.GetLocalhostRef()); err != nil {
			return in, err
		}
	}
	if kind, name := ocispec.AppArmorProfile(sec); kind == runtimeapi.SecurityProfile_Localhost && name != "" {
		if err = s.cfg.AppArmor.Check(name); err != nil {
			return in, fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
		}
	}
	if ns := sec.GetNamespaceOptions(); ns.GetPid() == runtimeapi.NamespaceMode_TARGET {
		if in.TargetPIDNamespace, err = s.targetNamespace(ns.GetTargetId(), req.Sandbox.ID); err != nil {
			return in, err
		}
	}
	in.ProcessLabel, in.MountLabel = req.Labels.Process, req.Labels.Mount
	for _, m := range in.Config.GetMounts() {
		if m.GetSelinuxRelabel() && m.GetHostPath() != "" {
			if err := s.cfg.Labels.Relabel(m.GetHostPath(), in.MountLabel); err != nil {
				return in, err
			}
		}
	}
	return in, s.stageAll(ctx, c, &in)
}

// checkUsers makes sure that the container means the user namespace that its
// sandbox has.
func checkUsers(cfg *runtimeapi.ContainerConfig, have ocispec.Users) error {
	fits := func(maps []*runtimeapi.IDMapping, r ocispec.IDRange) bool {
		return len(maps) == 1 && maps[0].GetContainerId() == 0 && maps[0].GetHostId() == r.Host && maps[0].GetLength() == r.Length
	}
	want := cfg.GetLinux().GetSecurityContext().GetNamespaceOptions().GetUsernsOptions()
	if want.GetMode() == runtimeapi.NamespaceMode_POD && want != nil && (have.NS == "" || !fits(want.GetUids(), have.UIDs) || !fits(want.GetGids(), have.GIDs)) {
		return fmt.Errorf("the container asks for another user namespace than its sandbox has: %w", errdefs.ErrInvalidArgument)
	}
	for _, m := range cfg.GetMounts() {
		if len(m.GetUidMappings())+len(m.GetGidMappings()) == 0 {
			continue
		}
		if have.NS == "" || !fits(m.GetUidMappings(), have.UIDs) || !fits(m.GetGidMappings(), have.GIDs) {
			return fmt.Errorf("mount at %s: its mapping of IDs is not that of the pod's user namespace: %w", m.GetContainerPath(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// mapped makes sure that the pod's user namespace has who the container runs as:
// the kernel would refuse the others when all else has been made.
func mapped(u ocispec.User, in ocispec.Users) error {
	if in.NS == "" {
		return nil
	}
	if u.UID >= in.UIDs.Length {
		return fmt.Errorf("user %d is not one of the %d that the pod's user namespace has: %w", u.UID, in.UIDs.Length, errdefs.ErrInvalidArgument)
	}
	for _, g := range append([]uint32{u.GID}, u.Groups...) {
		if g >= in.GIDs.Length {
			return fmt.Errorf("group %d is not one of the %d that the pod's user namespace has: %w", g, in.GIDs.Length, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// user resolves who the container runs as, from the files of its image.
func (s *Store) user(rootfs string, sec *runtimeapi.LinuxContainerSecurityContext, imageUser string) (ocispec.User, error) {
	var acc ocispec.Accounts
	var err error
	if acc.Passwd, err = readInRoot(rootfs, "etc/passwd"); err == nil {
		acc.Group, err = readInRoot(rootfs, "etc/group")
	}
	if err != nil {
		return ocispec.User{}, err
	}
	u, err := ocispec.ResolveUser(sec, imageUser, acc)
	if err != nil {
		return u, kinded(err)
	}
	return u, nil
}

const maxAccounts = 4 << 20

// readInRoot reads a file of the image, whose links cannot lead outside it. A file
// that is not there reads as empty. Anything but a file is refused: OCI runtimes
// read the same by themselves, and would wait for a FIFO, or read /dev/zero.
func readInRoot(root, path string) ([]byte, error) {
	at, err := pathrs.OpenInRoot(root, path)
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, unix.ENOTDIR) || errors.Is(err, unix.ELOOP) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening /%s of the image: %w", path, err)
	}
	defer at.Close()
	st, err := at.Stat()
	if err != nil {
		return nil, fmt.Errorf("looking at /%s of the image: %w", path, err)
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("/%s of the image is not a file: %w", path, errdefs.ErrInvalidArgument)
	}
	f, err := pathrs.Reopen(at, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("opening /%s of the image: %w", path, err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxAccounts+1))
	if err != nil {
		return nil, fmt.Errorf("reading /%s of the image: %w", path, err)
	}
	if len(b) > maxAccounts {
		return nil, fmt.Errorf("/%s of the image is larger than %d bytes: %w", path, maxAccounts, errdefs.ErrInvalidArgument)
	}
	return b, nil
}

// resolveMount follows the links of a mount's source, makes a missing one a
// directory, and checks that its propagation can work.
func resolveMount(m *runtimeapi.Mount) error {
	src := m.GetHostPath()
	if !filepath.IsAbs(src) {
		return nil // Build refuses it
	}
	real, err := filepath.EvalSymlinks(src)
	if errors.Is(err, os.ErrNotExist) {
		failpoint.Hit("cri/container/mkdir-mount-source")
		if err = os.MkdirAll(src, 0o755); err == nil {
			real, err = filepath.EvalSymlinks(src)
		}
	}
	if err != nil {
		return fmt.Errorf("source of the mount at %s: %w", m.GetContainerPath(), err)
	}
	m.HostPath = real
	p := m.GetPropagation()
	if p == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return nil
	}
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(real))
	if err != nil {
		return fmt.Errorf("reading mounts: %w", err)
	}
	var at *mountinfo.Info
	for _, mi := range mounts {
		if at == nil || len(mi.Mountpoint) >= len(at.Mountpoint) {
			at = mi
		}
	}
	shared := at != nil && strings.Contains(at.Optional, "shared:")
	slave := at != nil && strings.Contains(at.Optional, "master:")
	if !shared && (p == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL || !slave) {
		return fmt.Errorf("mount at %s: %s does not lie on a shared mount, so mounts cannot propagate (mount --make-rshared): %w",
			m.GetContainerPath(), real, errdefs.ErrFailedPrecondition)
	}
	return nil
}

// devices looks up the device nodes a container gets: all of the host's if it
// is privileged.
func devices(cfg *runtimeapi.ContainerConfig) ([]ocispec.Device, error) {
	if cfg.GetLinux().GetSecurityContext().GetPrivileged() {
		return hostDevices("/dev")
	}
	var out []ocispec.Device
	for _, d := range cfg.GetDevices() {
		path, err := filepath.EvalSymlinks(d.GetHostPath())
		if err != nil {
			return nil, fmt.Errorf("device %s: %w", d.GetHostPath(), err)
		}
		perms := d.GetPermissions()
		if perms == "" {
			perms = "rwm"
		}
		dst := d.GetContainerPath()
		if dst == "" {
			dst = d.GetHostPath()
		}
		if dev, ok := device(path, dst, perms); ok {
			out = append(out, dev)
			continue
		}
		found, err := hostDevices(path)
		if err != nil || len(found) == 0 {
			return nil, fmt.Errorf("%s is not a device, nor a directory of devices: %w", path, errdefs.ErrInvalidArgument)
		}
		for _, dev := range found {
			dev.Path = dst + strings.TrimPrefix(dev.Path, path)
			dev.Permissions = perms
			out = append(out, dev)
		}
	}
	return out, nil
}

func device(path, dst, perms string) (ocispec.Device, bool) {
	var st unix.Stat_t
	if unix.Lstat(path, &st) != nil {
		return ocispec.Device{}, false
	}
	d := ocispec.Device{
		Path: dst, HostPath: path, Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)), Mode: st.Mode & 0o777,
		UID: st.Uid, GID: st.Gid, Permissions: perms,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFBLK:
		d.Type = "b"
	default:
		return ocispec.Device{}, false
	}
	return d, true
}

// hostDevices walks dir. Terminals, queues and shared memory belong to the container itself.
func hostDevices(dir string) ([]ocispec.Device, error) {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, fmt.Errorf("listing devices: %w", err)
	}
	var out []ocispec.Device
	for _, e := range entries {
		path := filepath.Join(dir, e.Name())
		switch {
		case e.IsDir():
			if n := e.Name(); n == "pts" || n == "shm" || n == "fd" || n == "mqueue" || n == ".lxc" || n == ".udev" {
				continue
			}
			below, err := hostDevices(path)
			if err != nil {
				return nil, err
			}
			out = append(out, below...)
		case path == "/dev/console" || path == "/dev/ptmx" || path == "/dev/tty":
		default:
			if d, ok := device(path, path, "rwm"); ok {
				out = append(out, d)
			}
		}
	}
	return out, nil
}

// targetNamespace is the PID namespace of a running container of the same pod.
func (s *Store) targetNamespace(target, sandboxID string) (string, error) {
	t, err := s.complete(target)
	if err != nil {
		return "", err
	}
	rec, _ := t.snapshot()
	if rec.SandboxID != sandboxID {
		return "", fmt.Errorf("target container %s belongs to another pod: %w", target, errdefs.ErrInvalidArgument)
	}
	if rec.Exit != nil || !rec.Init.Alive() {
		return "", fmt.Errorf("target container %s is not running: %w", target, errdefs.ErrFailedPrecondition)
	}
	return fmt.Sprintf("/proc/%d/ns/pid", rec.Init.PID), nil
}

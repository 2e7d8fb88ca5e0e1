package ocispec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// setMounts lays out the file systems: the kernel's, the sandbox's files, then
// the container's own, parents before children.
func setMounts(spec *specs.Spec, in Input, _ *notes) error {
	own, err := ownMounts(spec, in)
	if err != nil {
		return err
	}
	taken := map[string]bool{}
	for _, m := range own {
		taken[m.Destination] = true
	}
	for _, m := range append(kernelMounts(in), sandboxMounts(in)...) {
		if !taken[m.Destination] {
			spec.Mounts = append(spec.Mounts, m)
		}
	}
	spec.Mounts = append(spec.Mounts, own...)
	// Stable: of two mounts of the same depth, the one named first stays first.
	slices.SortStableFunc(spec.Mounts, func(a, b specs.Mount) int { return depth(a.Destination) - depth(b.Destination) })
	return nil
}

func depth(p string) int {
	if p == "/" {
		return 0
	}
	return strings.Count(p, "/")
}

func kernelMounts(in Input) []specs.Mount {
	access := "ro"
	if privileged(in) {
		access = "rw"
	}
	sys := specs.Mount{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", access}}
	if in.Sandbox.Users.NS != "" && in.Config.GetLinux().GetSecurityContext().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE {
		// sysfs may be mounted only by an owner of the network namespace.
		sys = specs.Mount{Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "nosuid", "noexec", "nodev", "ro"}}
	}
	// On cgroup v1 the tree shows the whole host: nobody writes there but root of the host.
	cgroupAccess := access
	if !in.Host.CgroupV2 {
		cgroupAccess = "ro"
	}
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts",
			Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		sys,
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
			Options: []string{"nosuid", "noexec", "nodev", "relatime", cgroupAccess}},
	}
}

// sandboxMounts are the files all containers of a pod share.
func sandboxMounts(in Input) []specs.Mount {
	access := "rw"
	if in.Config.GetLinux().GetSecurityContext().GetReadonlyRootfs() {
		access = "ro"
	}
	var out []specs.Mount
	for _, f := range []struct{ dst, src, access string }{
		{"/etc/hosts", in.Sandbox.HostsPath, access},
		{"/etc/hostname", in.Sandbox.HostnamePath, access},
		{"/etc/resolv.conf", in.Sandbox.ResolvConfPath, access},
		{"/dev/shm", in.Sandbox.ShmPath, "rw"},
	} {
		if f.src == "" {
			continue
		}
		opts := []string{"rbind", "rprivate", f.access}
		if f.dst == "/dev/shm" {
			opts = append(opts, "nosuid", "noexec", "nodev")
		}
		out = append(out, specs.Mount{Destination: f.dst, Type: "bind", Source: f.src, Options: append(opts, in.Keep[f.src]...)})
	}
	return out
}

func ownMounts(spec *specs.Spec, in Input) ([]specs.Mount, error) {
	var out []specs.Mount
	for _, m := range in.Config.GetMounts() {
		dst := m.GetContainerPath()
		if !path.IsAbs(dst) {
			dst = "/" + dst
		}
		dst = path.Clean(dst)
		switch {
		case dst == "/":
			return nil, invalid("a mount at / would hide the whole image")
		case m.GetImage().GetImage() != "":
			return nil, invalid("the image volume at %s has not been mounted", dst)
		case !path.IsAbs(m.GetHostPath()):
			return nil, invalid("mount at %s: host path %q is not absolute", dst, m.GetHostPath())
		}
		opts := []string{"rbind"}
		prop, err := propagation(spec, m.GetPropagation())
		if err != nil {
			return nil, err
		}
		access, err := accessMode(in, m)
		if err != nil {
			return nil, err
		}
		opts = append(append(opts, prop, access), in.Keep[m.GetHostPath()]...)
		out = append(out, specs.Mount{Destination: dst, Type: "bind", Source: m.GetHostPath(), Options: opts})
	}
	return out, nil
}

// propagation returns the mount's option, and opens the root's propagation as
// far as the mount needs it: mounts below a private root would not travel.
func propagation(spec *specs.Spec, p runtimeapi.MountPropagation) (string, error) {
	switch p {
	case runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "rprivate", nil
	case runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER:
		if spec.Linux.RootfsPropagation == "" {
			spec.Linux.RootfsPropagation = "rslave"
		}
		return "rslave", nil
	case runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL:
		spec.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	}
	return "", invalid("unknown mount propagation %s", p)
}

func accessMode(in Input, m *runtimeapi.Mount) (string, error) {
	if !m.GetRecursiveReadOnly() {
		if m.GetReadonly() {
			return "ro", nil
		}
		return "rw", nil
	}
	switch {
	case !m.GetReadonly():
		return "", invalid("mount at %s: recursive read-only needs read-only", m.GetContainerPath())
	case m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE:
		return "", invalid("mount at %s: recursive read-only needs private propagation", m.GetContainerPath())
	case !in.Host.RecursiveReadOnly:
		return "", fmt.Errorf("%w: %w", crierrors.ErrRROUnsupported,
			unsupported("recursive read-only mount at %s needs Linux 5.12, and crun 1.4 or runc 1.1, or newer", m.GetContainerPath()))
	}
	return "rro", nil
}

// setDevices makes device nodes and the rules of the device cgroup.
func setDevices(spec *specs.Spec, in Input, _ *notes) error {
	rules := []specs.LinuxDeviceCgroup{{Allow: privileged(in), Access: "rwm"}}
	for _, d := range in.Devices {
		if !path.IsAbs(d.Path) || path.Clean(d.Path) != d.Path {
			return invalid("device path %q is not a clean absolute path", d.Path)
		}
		if strings.Trim(d.Permissions, "rwm") != "" {
			return invalid("device %s: permissions %q are not a subset of rwm", d.Path, d.Permissions)
		}
		if in.Sandbox.Users.NS != "" {
			bindDevice(spec, d)
		} else {
			makeDevice(spec, d)
		}
		if !privileged(in) {
			rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: d.Permissions})
		}
	}
	resources(spec).Devices = rules
	return nil
}

func makeDevice(spec *specs.Spec, d Device) {
	mode := fileMode(d.Mode)
	spec.Linux.Devices = append(spec.Linux.Devices, specs.LinuxDevice{
		Path: d.Path, Type: d.Type, Major: d.Major, Minor: d.Minor, FileMode: &mode, UID: &d.UID, GID: &d.GID,
	})
}

// bindDevice brings the host's node into a user namespace, where none can be
// made. Runtimes bind by themselves, but by the path inside, which on the host
// may be another device. What each container has they provide.
func bindDevice(spec *specs.Spec, d Device) {
	if d.HostPath == d.Path && slices.Contains(providedDevices, d.Path) {
		return
	}
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: d.Path, Type: "bind", Source: d.HostPath, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
}

var providedDevices = []string{"/dev/null", "/dev/zero", "/dev/full", "/dev/tty", "/dev/random", "/dev/urandom"}

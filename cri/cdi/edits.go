package cdi

import (
	"cmp"
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	lib "tags.cncf.io/container-device-interface/pkg/cdi"
	spec "tags.cncf.io/container-device-interface/specs-go"
)

// Edits are what the devices of one container change in its OCI specification.
type Edits struct{ edits spec.ContainerEdits }

// None says that nothing is changed.
func (e *Edits) None() bool {
	c := e.edits
	return len(c.Env)+len(c.DeviceNodes)+len(c.Hooks)+len(c.Mounts)+len(c.AdditionalGIDs) == 0 && c.IntelRdt == nil
}

// Restage lets stage put another path in the place of the n-th source that is
// bind-mounted: in a user namespace the files have to be mounted with shifted IDs.
func (e *Edits) Restage(stage func(n int, source string) (string, error)) error {
	for n, m := range e.edits.Mounts {
		if !binds(m) {
			continue
		}
		to, err := stage(n, m.HostPath)
		if err != nil {
			return fmt.Errorf("CDI mount at %s: %w", m.ContainerPath, err)
		}
		m.HostPath = to
	}
	return nil
}

func binds(m *spec.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// Apply changes s: environment, device nodes and the rules of the device cgroup,
// mounts, hooks, groups, cache allocation. In a user namespace, where no node can
// be made, the host's are bound instead. Apply reads nothing but the device nodes
// of the host. Killed or failed in the midst, s is to be thrown away.
func (e *Edits) Apply(s *specs.Spec) error {
	if e.None() {
		return nil
	}
	own := e.edits
	if namespaced(s) {
		if err := bindNodes(s, own.DeviceNodes); err != nil {
			return err
		}
		for _, m := range own.Mounts {
			s.Mounts = slices.DeleteFunc(s.Mounts, func(have specs.Mount) bool { return have.Destination == m.ContainerPath })
			s.Mounts = append(s.Mounts, specs.Mount{Source: m.HostPath, Destination: m.ContainerPath, Type: cmp.Or(m.Type, "bind"), Options: plain(m.Options)})
		}
		own.DeviceNodes, own.Mounts = nil, nil
		// Parents before children, as the specification has them.
		slices.SortStableFunc(s.Mounts, func(a, b specs.Mount) int {
			return strings.Count(path.Clean(a.Destination), "/") - strings.Count(path.Clean(b.Destination), "/")
		})
	}
	if err := (&lib.ContainerEdits{ContainerEdits: &own}).Apply(s); err != nil {
		return fmt.Errorf("%w: %w", ErrUnknown, err)
	}
	return nil
}

func namespaced(s *specs.Spec) bool {
	return s.Linux != nil && slices.ContainsFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.UserNamespace })
}

// plain leaves out what asks the OCI runtime to shift IDs: it has been done.
func plain(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "idmap" || o == "ridmap" })
}

// bindNodes brings the host's nodes to where the specification wants its own.
func bindNodes(s *specs.Spec, nodes []*spec.DeviceNode) error {
	for _, d := range nodes {
		host := cmp.Or(d.HostPath, d.Path)
		var st unix.Stat_t
		if err := unix.Lstat(host, &st); err != nil {
			return fmt.Errorf("%w: device node %s: %w", ErrUnknown, host, err)
		}
		kind := map[uint32]string{unix.S_IFCHR: "c", unix.S_IFBLK: "b"}[st.Mode&unix.S_IFMT]
		if kind == "" {
			return fmt.Errorf("%w: %s is not a device node", ErrUnknown, host)
		}
		s.Mounts = slices.DeleteFunc(s.Mounts, func(have specs.Mount) bool { return have.Destination == d.Path })
		s.Mounts = append(s.Mounts, specs.Mount{Destination: path.Clean(d.Path), Type: "bind", Source: host, Options: []string{"bind", "rprivate", "nosuid", "noexec"}})
		access := cmp.Or(d.Permissions, "rwm")
		if access == lib.NoPermissions {
			continue
		}
		major, minor := int64(unix.Major(uint64(st.Rdev))), int64(unix.Minor(uint64(st.Rdev)))
		if s.Linux.Resources == nil {
			s.Linux.Resources = &specs.LinuxResources{}
		}
		s.Linux.Resources.Devices = append(s.Linux.Resources.Devices, specs.LinuxDeviceCgroup{Allow: true, Type: kind, Major: &major, Minor: &minor, Access: access})
	}
	return nil
}

package ocispec

import (
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// defaultCapabilities is what a container gets unless it asks otherwise: the
// set that containerd and Docker give.
var defaultCapabilities = []string{
	"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
	"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
}

// setCapabilities works out default + add - drop, or everything for a
// privileged container, clamped to the host's bounding set: the runtime could
// not grant more, and would fail to start the container.
func setCapabilities(spec *specs.Spec, in Input, n *notes) error {
	sec := in.Config.GetLinux().GetSecurityContext()
	var want, ambient []string
	if sec.GetPrivileged() {
		want = slices.Clone(in.Host.Capabilities)
		if !slices.Contains(want, "CAP_SYS_RESOURCE") || !slices.Contains(want, "CAP_SYS_ADMIN") {
			n.add("privileged containers get only the %d capabilities that this host grants", len(want))
		}
	} else {
		var err error
		c := sec.GetCapabilities()
		if want, err = addDrop(in, c.GetAddCapabilities(), c.GetDropCapabilities()); err != nil {
			return err
		}
		for _, name := range c.GetAddAmbientCapabilities() {
			if name, err = capability(name); err != nil {
				return err
			}
			ambient = append(ambient, name)
			if !slices.Contains(want, name) {
				want = append(want, name)
			}
		}
	}
	granted := want[:0:0]
	for _, c := range want {
		if slices.Contains(in.Host.Capabilities, c) {
			granted = append(granted, c)
			continue
		}
		n.add("capability %s is left out: this host does not grant it", c)
	}
	slices.Sort(granted)
	ambient = slices.DeleteFunc(ambient, func(c string) bool { return !slices.Contains(granted, c) })
	slices.Sort(ambient)
	// Inheritable stays empty but for ambient ones (CVE-2022-24769): file
	// capabilities of a binary must not give back what was dropped.
	spec.Process.Capabilities = &specs.LinuxCapabilities{
		Bounding: granted, Effective: granted, Permitted: granted, Inheritable: ambient, Ambient: ambient,
	}
	return nil
}

// addDrop applies the lists of Kubernetes: "ALL" may stand in either; a name in
// both is dropped unless "ALL" is dropped, when the added ones remain.
func addDrop(in Input, add, drop []string) ([]string, error) {
	set := map[string]bool{}
	for _, c := range defaultCapabilities {
		set[c] = true
	}
	if containsAll(add) {
		for _, c := range in.Host.Capabilities {
			set[c] = true
		}
	}
	if containsAll(drop) {
		clear(set)
	}
	for _, name := range add {
		if isAll(name) {
			continue
		}
		c, err := capability(name)
		if err != nil {
			return nil, err
		}
		set[c] = true
	}
	for _, name := range drop {
		if isAll(name) {
			continue
		}
		c, err := capability(name)
		if err != nil {
			return nil, err
		}
		delete(set, c)
	}
	out := make([]string, 0, len(set))
	for c := range set {
		out = append(out, c)
	}
	slices.Sort(out)
	return out, nil
}

func isAll(name string) bool {
	return strings.EqualFold(name, "ALL") || strings.EqualFold(name, "CAP_ALL")
}

func containsAll(names []string) bool { return slices.ContainsFunc(names, isAll) }

// capability spells a name of Kubernetes ("NET_ADMIN", "cap_net_admin") as the OCI does.
func capability(name string) (string, error) {
	c := strings.ToUpper(name)
	if !strings.HasPrefix(c, "CAP_") {
		c = "CAP_" + c
	}
	if !slices.Contains(knownCapabilities, c) {
		return "", invalid("unknown capability %q", name)
	}
	return c, nil
}

// knownCapabilities are Linux's, by number.
var knownCapabilities = []string{
	"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID",
	"CAP_SETUID", "CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN",
	"CAP_NET_RAW", "CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE",
	"CAP_SYS_PACCT", "CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME",
	"CAP_SYS_TTY_CONFIG", "CAP_MKNOD", "CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP",
	"CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG", "CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ",
	"CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
}

// Capabilities names the bits of mask, the form in which /proc/PID/status shows
// a set ("CapBnd").
func Capabilities(mask uint64) []string {
	var out []string
	for i, c := range knownCapabilities {
		if mask&(1<<i) != 0 {
			out = append(out, c)
		}
	}
	return out
}

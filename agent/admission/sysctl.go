package admission

import (
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/pod"
)

// safeSysctls are those that every pod may set: each is kept apart by a
// namespace, and none lets a pod harm the node or another pod.
var safeSysctls = []string{
	"kernel.shm_rmid_forced",
	"net.ipv4.ip_local_port_range",
	"net.ipv4.tcp_syncookies",
	"net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start",
	"net.ipv4.ip_local_reserved_ports",
	"net.ipv4.tcp_keepalive_time",
	"net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl",
	"net.ipv4.tcp_keepalive_probes",
	"net.ipv4.tcp_rmem",
	"net.ipv4.tcp_wmem",
}

// namespaced says which namespace keeps the sysctls of a name or prefix apart.
var namespaced = []struct{ prefix, namespace string }{
	{"kernel.sem", "ipc"}, {"kernel.shm", "ipc"}, {"kernel.msg", "ipc"}, {"fs.mqueue.", "ipc"}, {"net.", "net"},
}

// sysctlNamespace is empty for a sysctl that belongs to the whole host.
func sysctlNamespace(name string) string {
	for _, n := range namespaced {
		if name == n.prefix || strings.HasPrefix(name, n.prefix) && n.prefix != "kernel.sem" {
			return n.namespace
		}
	}
	return ""
}

// SysctlName returns the name with dots between its parts, whichever separator
// (dot or slash) it was written with: the first one that occurs separates.
func SysctlName(name string) string {
	if i := strings.IndexAny(name, "./"); i < 0 || name[i] == '.' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '/':
			return '.'
		case '.':
			return '/'
		}
		return r
	}, name)
}

var sysctlPattern = regexp.MustCompile(`^([a-z0-9]([-_a-z0-9]*[a-z0-9])?[./])*([a-z0-9][-_a-z0-9]*)?[a-z0-9*]$`)

// CheckSysctlPattern says why pattern cannot stand among a node's allowed
// unsafe sysctls: it must be the name of a sysctl that a namespace keeps apart,
// or the beginning of such names and a *.
func CheckSysctlPattern(pattern string) error {
	if len(pattern) > 253 || !sysctlPattern.MatchString(pattern) {
		return errors.New(`expected the name of a sysctl such as "net.core.somaxconn", or the beginning of one and a *`)
	}
	if sysctlNamespace(strings.TrimSuffix(SysctlName(pattern), "*")) == "" {
		return errors.New("this sysctl is the whole host's: pods may only set what a namespace keeps apart (kernel.shm*, kernel.msg*, kernel.sem, fs.mqueue.*, net.*)")
	}
	return nil
}

func sysctls(d pod.Desired, node Node) *pod.Rejection {
	s := d.Pod.Spec.SecurityContext
	if s == nil {
		return nil
	}
	for _, ctl := range s.Sysctls {
		name := SysctlName(ctl.Name)
		why := ""
		switch ns := sysctlNamespace(name); {
		case !allowed(name, node.UnsafeSysctls):
			why = fmt.Sprintf("%q not allowlisted", name)
		case ns == "net" && d.Pod.Spec.HostNetwork, ns == "ipc" && d.Pod.Spec.HostIPC:
			why = fmt.Sprintf("%q not allowed with host %s enabled", name, ns)
		default:
			continue
		}
		return &pod.Rejection{Reason: SysctlForbidden, Message: "forbidden sysctl: " + why}
	}
	return nil
}

func allowed(name string, unsafe []string) bool {
	return slices.Contains(safeSysctls, name) || slices.ContainsFunc(unsafe, func(pattern string) bool {
		prefix, wild := strings.CutSuffix(SysctlName(pattern), "*")
		return name == prefix || wild && strings.HasPrefix(name, prefix)
	})
}

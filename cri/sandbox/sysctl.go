package sandbox

import (
	"fmt"
	"slices"
	"strings"

	"github.com/berthd/berth/cri/sandbox/internal/podinit"
	"github.com/containerd/errdefs"
)

// maxSysctlValue bounds one value; the longest real ones are lists of ports.
const maxSysctlValue = 1024

// sysctls turns the requested sysctls into files below /proc/sys, in order of
// name. A name is refused unless it belongs to a namespace of the sandbox's
// own: any other would change the host. Which of those a pod may set is decided
// above.
func sysctls(requested map[string]string, m modes) ([]podinit.Setting, error) {
	var out []podinit.Setting
	for name, value := range requested {
		path, err := sysctlPath(name)
		if err != nil {
			return nil, err
		}
		if len(value) > maxSysctlValue || strings.ContainsAny(value, "\x00\n") {
			return nil, fmt.Errorf("sysctl %s: the value must be one line of at most %d bytes: %w", name, maxSysctlValue, errdefs.ErrInvalidArgument)
		}
		if err := sysctlNamespace(name, path, m); err != nil {
			return nil, err
		}
		out = append(out, podinit.Setting{Path: "/proc/sys/" + path, Value: value})
	}
	slices.SortFunc(out, func(a, b podinit.Setting) int { return strings.Compare(a.Path, b.Path) })
	return out, nil
}

// sysctlPath accepts both spellings: net.ipv4.conf.eth0/1.forwarding and
// net/ipv4/conf/eth0.1/forwarding, told apart by the first separator.
func sysctlPath(name string) (string, error) {
	path := name
	if i := strings.IndexAny(name, "./"); i >= 0 && name[i] == '.' {
		path = strings.NewReplacer(".", "/", "/", ".").Replace(name)
	}
	for _, element := range strings.Split(path, "/") {
		bad := strings.IndexFunc(element, func(c rune) bool {
			return !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '_' || c == '-' || c == '.')
		})
		if element == "" || element == "." || element == ".." || bad >= 0 || len(name) > 253 {
			return "", fmt.Errorf("sysctl %q is not a name: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return path, nil
}

func sysctlNamespace(name, path string, m modes) error {
	ipc := []string{"kernel/msgmax", "kernel/msgmnb", "kernel/msgmni", "kernel/sem", "kernel/shmall", "kernel/shmmax", "kernel/shmmni", "kernel/shm_rmid_forced",
		"kernel/msg_next_id", "kernel/sem_next_id", "kernel/shm_next_id"}
	switch {
	case strings.HasPrefix(path, "net/"):
		if m.hostNet {
			return fmt.Errorf("sysctl %s cannot be set for a pod on the host's network: %w", name, errdefs.ErrInvalidArgument)
		}
	case slices.Contains(ipc, path), strings.HasPrefix(path, "fs/mqueue/"):
		if m.hostIPC {
			return fmt.Errorf("sysctl %s cannot be set for a pod in the host's IPC namespace: %w", name, errdefs.ErrInvalidArgument)
		}
	case path == "kernel/domainname":
		if m.hostNet {
			return fmt.Errorf("sysctl %s cannot be set for a pod on the host's network: %w", name, errdefs.ErrInvalidArgument)
		}
	default:
		return fmt.Errorf("sysctl %s is not namespaced: it would change the whole host: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

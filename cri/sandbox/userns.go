package sandbox

import (
	"fmt"
	"math"
	"os"
	"syscall"

	"github.com/berthd/berth/cri/sandbox/internal/podinit"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// IDRange maps the IDs 0 to Length-1 of a user namespace to the host's from Host on.
type IDRange struct{ Host, Length uint32 }

// UserNamespace is the mapping of a sandbox that has a user namespace of its
// own; zero for one that has not.
type UserNamespace struct{ UIDs, GIDs IDRange }

// Own tells whether there is a user namespace at all.
func (u UserNamespace) Own() bool { return u.UIDs.Length > 0 }

func ownUsers(u *runtimeapi.UserNamespace) bool {
	return u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD
}

// UserNamespaceOf reads the mapping that is asked for. As in CRI today it is one
// range of users and one of groups, each beginning with ID 0. Errors wrap
// errdefs.ErrInvalidArgument.
func UserNamespaceOf(u *runtimeapi.UserNamespace) (UserNamespace, error) {
	var out UserNamespace
	if u == nil || u.GetMode() == runtimeapi.NamespaceMode_NODE {
		return out, nil
	}
	if u.GetMode() != runtimeapi.NamespaceMode_POD {
		return out, fmt.Errorf("namespace mode %s is not possible for the user namespace of a sandbox: %w", u.GetMode(), errdefs.ErrInvalidArgument)
	}
	var err error
	if out.UIDs, err = idRange("user", u.GetUids()); err == nil {
		out.GIDs, err = idRange("group", u.GetGids())
	}
	if err != nil {
		return UserNamespace{}, err
	}
	return out, nil
}

func idRange(what string, maps []*runtimeapi.IDMapping) (IDRange, error) {
	if len(maps) != 1 {
		return IDRange{}, fmt.Errorf("a user namespace needs exactly one mapping of %s IDs, %d were given: %w", what, len(maps), errdefs.ErrInvalidArgument)
	}
	m := maps[0]
	switch {
	case m.GetContainerId() != 0:
		return IDRange{}, fmt.Errorf("mapping of %s IDs: it begins with ID %d, it must begin with 0: %w", what, m.GetContainerId(), errdefs.ErrInvalidArgument)
	case m.GetHostId() == 0:
		return IDRange{}, fmt.Errorf("mapping of %s IDs: the host's ID 0 must not be mapped into a pod: %w", what, errdefs.ErrInvalidArgument)
	case m.GetLength() == 0, uint64(m.GetHostId())+uint64(m.GetLength()) > math.MaxUint32:
		return IDRange{}, fmt.Errorf("mapping of %s IDs: %d IDs from %d on are not a range: %w", what, m.GetLength(), m.GetHostId(), errdefs.ErrInvalidArgument)
	}
	return IDRange{Host: m.GetHostId(), Length: m.GetLength()}, nil
}

// checkUsers refuses namespaces of the host's in a pod with users of its own:
// they belong to another owner, and what needs one (mounting /proc or /sys,
// queues) would fail late.
func checkUsers(m modes) error {
	if !m.userns {
		return nil
	}
	for what, host := range map[string]bool{"network": m.hostNet, "IPC": m.hostIPC, "PID": m.hostPID} {
		if host {
			return fmt.Errorf("a pod with a user namespace of its own (hostUsers: false) cannot use the host's %s namespace: %w", what, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func (r IDRange) sys() []syscall.SysProcIDMap {
	if r.Length == 0 {
		return nil
	}
	return []syscall.SysProcIDMap{{ContainerID: 0, HostID: int(r.Host), Size: int(r.Length)}}
}

// ProbeUserNamespace makes a user namespace for as long as use takes; the error
// says why this host does not let us, or is use's.
func ProbeUserNamespace(use func(userns *os.File) error) error {
	ids := IDRange{Host: 1 << 16, Length: 1 << 16}
	init, err := podinit.Start(podinit.Options{UIDs: ids.sys(), GIDs: ids.sys()})
	if err != nil {
		return fmt.Errorf("this host does not let us make user namespaces (see user.max_user_namespaces and CONFIG_USER_NS): %w", err)
	}
	defer init.Abandon()
	f, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", init.PID))
	if err != nil {
		return fmt.Errorf("opening a user namespace: %w", err)
	}
	defer f.Close()
	return use(f)
}

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/cgroups"
	"github.com/opencontainers/cgroups/manager"
)

// defaultParent is the cgroup parent of sandboxes that name none.
func defaultParent(systemd bool) string {
	if systemd {
		return "system.slice"
	}
	return "/berth"
}

// initCgroup is the leaf below the pod's cgroup where its init sits. On version
// 2 no process may be in the pod's cgroup itself.
func initCgroup(parent string, id ID, systemd bool) (cgroups.Manager, error) {
	if parent == "" {
		parent = defaultParent(systemd)
	}
	c := &cgroups.Cgroup{Path: path.Join("/", parent, string(id)), Resources: &cgroups.Resources{SkipDevices: true}}
	if systemd {
		c = &cgroups.Cgroup{Parent: path.Base(parent), ScopePrefix: "berth", Name: string(id), Systemd: true, Resources: c.Resources}
	}
	m, err := manager.New(c)
	if err != nil {
		return nil, fmt.Errorf("finding the cgroup %s of the pod's init: %w", c.Path, err)
	}
	return m, nil
}

// checkCgroupParent refuses a parent that could leave the tree of cgroups.
func checkCgroupParent(parent string) error {
	for _, element := range strings.Split(parent, "/") {
		if element == ".." || strings.ContainsAny(element, "\x00\n") {
			return fmt.Errorf("cgroup parent %q is not a path: %w", parent, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

func enterCgroup(m cgroups.Manager, pid int) error {
	failpoint.Hit("cri/sandbox/init-cgroup")
	if err := m.Apply(pid); err != nil {
		return fmt.Errorf("moving the pod's init into its cgroup: %w", err)
	}
	failpoint.Hit("cri/sandbox/init-cgroup-done")
	// As a pause container's: the pod must not end for want of memory of others.
	// Some hosts do not let us; then it stays as it is.
	err := os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("-998"), 0)
	if err != nil && !errors.Is(err, os.ErrPermission) {
		return fmt.Errorf("sparing the pod's init when memory runs out: %w", err)
	}
	return nil
}

func removeCgroup(m cgroups.Manager) error {
	failpoint.Hit("cri/sandbox/init-cgroup-remove")
	if err := m.Destroy(); err != nil {
		return fmt.Errorf("removing the cgroup of the pod's init: %w", err)
	}
	return nil
}

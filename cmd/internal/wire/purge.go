package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/agent/cgroup"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/csi"
	"github.com/berthd/berth/csi/mount"
)

// purgeTime bounds the removal of one container or sandbox.
const purgeTime = 30 * time.Second

// Purge takes everything of an agent that does not run off the host: its
// containers, sandboxes, mounts, namespaces, network, rules and cgroups, and
// its directories, but not the pods' logs. It goes on after a failure, says all
// of them, and may be called again. It fails at once if the agent runs.
func Purge(ctx context.Context, o Options) error {
	for _, d := range []string{o.RootDir, o.StateDir} {
		if _, err := os.Stat(d); err == nil {
			break
		}
		if d == o.StateDir {
			return nil // neither directory: there is nothing of this agent
		}
	}
	if o.Endpoint != "" {
		return purgeExternal(ctx, o)
	}
	systemd := systemdCgroups(o)
	e, err := openEmbedded(ctx, o, systemd)
	if err != nil {
		return fmt.Errorf("take over what the agent has left: %w", err)
	}
	errs := e.purge(ctx, o.logLinksDir())
	errs = append(errs, purgeVolumes(ctx, o), e.network.Purge(ctx))
	e.close()
	errs = append(errs, purgeCgroups(ctx, o, systemd), mountns.Purge(filepath.Join(o.StateDir, "ns")), mountns.PurgeVolatile(o.StateDir))
	for _, d := range []string{o.StateDir, o.RootDir} {
		errs = append(errs, removeDir(d))
	}
	_ = os.Remove(o.logLinksDir()) // where it holds nobody else's links
	return errors.Join(errs...)
}

// purge removes every container and sandbox by the ordinary path, and the links
// to containers' logs, which nobody would take away any more.
func (e *embedded) purge(ctx context.Context, links string) []error {
	ctx, cancel := context.WithCancel(ctx)
	watch := make(chan error, 1)
	go func() { watch <- e.monitor.Run(ctx) }()
	done := make(chan struct{})
	go func() { e.containers.Run(); close(done) }()
	defer func() { cancel(); <-watch; <-done }()
	var errs []error
	one := func(what, id string, remove func(context.Context) error) {
		ctx, cancel := context.WithTimeout(ctx, purgeTime)
		defer cancel()
		if err := remove(ctx); err != nil {
			errs = append(errs, fmt.Errorf("remove %s %s: %w", what, id, err))
		}
	}
	for _, c := range e.containers.List(container.Filter{}) {
		errs = append(errs, runtime.RemoveLogLink(links, c.Labels, c.Id))
		one("container", c.Id, func(ctx context.Context) error { return e.containers.Remove(ctx, c.Id) })
	}
	for _, s := range e.sandboxes.List() {
		for _, id := range e.containers.IDs(string(s.ID)) {
			one("container", id, func(ctx context.Context) error { return e.containers.Remove(ctx, id) })
		}
		one("sandbox", string(s.ID), func(ctx context.Context) error { return e.sandboxes.Remove(ctx, s.ID) })
	}
	return errs
}

func purgeVolumes(ctx context.Context, o Options) error {
	v, err := csi.New(csi.Config{Root: o.RootDir, Logger: o.Log})
	if err != nil {
		return err
	}
	uids, err := v.UIDs()
	errs := []error{err}
	for _, uid := range uids {
		errs = append(errs, v.Remove(ctx, uid))
	}
	return errors.Join(append(errs, v.Close(ctx))...)
}

func purgeCgroups(ctx context.Context, o Options, systemd bool) error {
	driver := cgroup.Cgroupfs
	if systemd {
		driver = cgroup.Systemd
	}
	tree, err := cgroup.Open(cgroup.Config{Root: o.CgroupRoot, Driver: driver, Log: o.Log})
	if err != nil {
		return err
	}
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup"} {
		found, err := filepath.Glob(filepath.Join(pattern, o.CgroupRoot, monitorsGroup))
		if err != nil {
			return err
		}
		for _, dir := range found {
			// Monitors end with their containers; the last may be on its way out.
			for range 50 {
				if err = os.Remove(dir); !errors.Is(err, unix.EBUSY) {
					break
				}
				time.Sleep(20 * time.Millisecond)
			}
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("remove the monitors' cgroup: %w", err)
			}
			// Under systemd the pods' tree lies elsewhere (in slices), so that the
			// groups above are left to us; with cgroupfs it still holds them.
			for rel := filepath.Clean("/" + o.CgroupRoot); rel != "/"; rel = filepath.Dir(rel) {
				dir = filepath.Dir(dir)
				if err := unix.Rmdir(dir); err != nil && !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.ENOTEMPTY) {
					return fmt.Errorf("remove the cgroup of --cgroup-root: %w", err)
				}
			}
		}
	}
	return tree.Purge(ctx)
}

// removeDir removes one of the agent's own directories, unless something is
// still mounted below it: that may be somebody's data.
func removeDir(dir string) error {
	below, err := mount.Kernel{}.Below(dir)
	if err != nil {
		return err
	}
	for _, m := range below {
		if m != dir {
			return fmt.Errorf("%s is still mounted: unmount it, then run purge again", m)
		}
		if err := unix.Unmount(m, unix.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount %s: %w", m, err)
		}
	}
	return os.RemoveAll(dir)
}

package wire

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/cgroup"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/cri/mountns"
)

// Directories of the agent itself: an external runtime that is Berth's own may
// have its own beside them.
var (
	agentRoots  = []string{"pods", "records", "run", "source"}
	agentStates = []string{"pods"}
)

// purgeExternal is Purge for an agent with an external runtime: its pods are
// removed through the runtime, whose images stay.
func purgeExternal(ctx context.Context, o Options) error {
	if c, err := net.DialTimeout("unix", o.Socket, time.Second); err == nil {
		_ = c.Close() // only asked whether somebody is there
		return fmt.Errorf("an agent answers on %s: stop it first", o.Socket)
	}
	conn, err := dialCRI(o.Endpoint)
	if err != nil {
		return err
	}
	defer conn.Close()
	n := &node{o: o, conn: conn, external: &external{conn: conn}}
	if err := n.external.ask(ctx); err != nil {
		return fmt.Errorf("the container runtime %s does not answer, and has the pods: start it, then run purge again: %w", o.Endpoint, err)
	}
	errs := n.purgePods(ctx)
	errs = append(errs, purgeVolumes(ctx, o))
	driver := cgroup.Cgroupfs
	if n.systemdDriver() {
		driver = cgroup.Systemd
	}
	if tree, err := cgroup.Open(cgroup.Config{Root: o.CgroupRoot, Driver: driver, Log: o.Log}); err != nil {
		errs = append(errs, err)
	} else {
		errs = append(errs, tree.Purge(ctx))
	}
	errs = append(errs, removeDir(o.Socket), purgeDirs(o.RootDir, agentRoots), purgeDirs(o.StateDir, agentStates))
	_ = os.Remove(o.logLinksDir()) // where it holds nobody else's links
	return errors.Join(errs...)
}

// purgePods removes every pod that the agent would have taken over, and the links
// to its logs.
func (n *node) purgePods(ctx context.Context) (errs []error) {
	c := runtimeapi.NewRuntimeServiceClient(n.conn)
	sandboxes, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return []error{fmt.Errorf("list the pods: %w", err)}
	}
	for _, s := range sandboxes.Items {
		if !runtime.IsPod(s) {
			continue
		}
		id := s.Id
		ctx, cancel := context.WithTimeout(ctx, purgeTime)
		list, err := c.ListContainers(ctx, &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: id}})
		for _, one := range list.GetContainers() {
			errs = append(errs, runtime.RemoveLogLink(n.o.logLinksDir(), one.Labels, one.Id))
			_, stopped := c.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: one.Id})
			errs = append(errs, stopped)
		}
		if err == nil {
			_, err = c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
		}
		if err == nil {
			_, err = c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id})
		}
		cancel()
		if err != nil {
			errs = append(errs, fmt.Errorf("remove sandbox %s: %w", id, err))
		}
	}
	return errs
}

// purgeDirs removes the agent's own directories below dir, and dir with them
// where it holds nothing else.
func purgeDirs(dir string, own []string) error {
	var errs []error
	for _, name := range own {
		errs = append(errs, removeDir(filepath.Join(dir, name)))
	}
	left, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return errors.Join(errs...)
	}
	if err == nil && len(left) == 0 {
		if err = mountns.PurgeVolatile(dir); err == nil {
			err = unix.Rmdir(dir)
		}
	}
	return errors.Join(append(errs, err)...)
}

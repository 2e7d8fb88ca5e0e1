package wire

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cri/apparmor"
	"github.com/berthd/berth/cri/cdi"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/cri/stream"
	"github.com/berthd/berth/stats/report"
)

// monitorsGroup is the cgroup of all conmons, beside the pods'.
const monitorsGroup = "berth-monitors"

// collectTime bounds what the start does about attachments without a sandbox.
const collectTime = 10 * time.Second

// runNetwork keeps the network in order until ctx ends.
func (e *embedded) runNetwork(ctx context.Context) error {
	return e.network.Run(ctx, e.sandboxes.NetworkHolders)
}

// embedded is the CRI runtime in this process.
type embedded struct {
	ns         *mountns.Namespaces
	images     *image.Store
	imports    *image.Folder
	binary     ociruntime.Binary            // of the handler ""
	binaries   map[string]ociruntime.Binary // of the handlers with a name
	unusable   map[string]error             // by handler
	monitor    *monitor.Monitor
	containers *container.Store
	network    *cni.Network
	sandboxes  *sandbox.Store
	host       ocispec.Host
	events     *server.Events
	streaming  *stream.Server
	reporter   *report.Reporter // of serveCRI
}

// openEmbedded opens the runtime's parts and takes over what an earlier agent left.
func openEmbedded(ctx context.Context, o Options, systemd bool) (*embedded, error) {
	e := &embedded{events: server.NewEvents(), host: container.DetectHost(systemd)}
	if err := e.open(ctx, o, systemd); err != nil {
		e.close()
		return nil, err
	}
	return e, nil
}

func (e *embedded) open(ctx context.Context, o Options, systemd bool) error {
	boot, err := record.BootID()
	if err != nil {
		return err
	}
	log := o.Log.With("part", "cri")
	if e.ns, err = mountns.Open(filepath.Join(o.StateDir, "ns"), log); err != nil {
		return err
	}
	if e.images, err = image.Open(ctx, image.Config{Root: filepath.Join(o.RootDir, "images"), CertsDir: o.CertsDir, Logger: log}); err != nil {
		return err
	}
	if e.imports, err = e.images.OpenFolder(cmp.Or(o.ImportDir, filepath.Join(o.RootDir, "import"))); err != nil {
		return err
	}
	if e.binary, e.binaries, e.unusable, err = findRuntimes(ctx, o); err != nil {
		return err
	}
	log.Info("OCI runtime chosen", "name", e.binary.Name, "version", e.binary.Version, "path", e.binary.Path, "why", e.binary.Why)
	oci := ociruntime.New(e.binary, filepath.Join(o.StateDir, "oci"), systemd, e.ns)
	exits := filepath.Join(o.StateDir, "exits")
	if err := os.MkdirAll(exits, 0o700); err != nil {
		return err
	}
	if e.monitor, err = monitor.Open(monitor.Config{Path: o.Conmon, Runtime: oci, Starter: e.ns, ExitDir: exits, Cgroup: filepath.Join(o.CgroupRoot, monitorsGroup), Log: log}); err != nil {
		return err
	}
	if e.network, err = cni.Open(cni.Config{ConfDirs: o.CNIConfDirs, BinDirs: o.CNIBinDirs, Dir: filepath.Join(o.RootDir, "cni"), BootDir: filepath.Join(o.StateDir, "cni"), Subnets: o.Subnets, Log: log}); err != nil {
		return err
	}
	labels := label.New(nil)
	profiles := apparmor.Open(ctx, apparmor.Config{Log: log})
	e.host.AppArmor, e.host.AppArmorDefault = profiles.Enabled(), profiles.Default()
	e.sandboxes, err = sandbox.Open(sandbox.Config{
		Dir: filepath.Join(o.StateDir, "sandboxes"), BootID: boot, Pins: e.ns, Network: podNetwork{e.network}, SystemdCgroup: systemd, Labels: labels, Log: log,
		OnChange: e.events.OnSandbox,
	})
	if err != nil {
		return err
	}
	devices, err := cdi.Open(o.CDISpecDirs)
	if err != nil {
		return err
	}
	e.containers, err = container.Open(container.Config{
		Dir: filepath.Join(o.StateDir, "containers"), BootID: boot, Rootfs: rootfs{e.images}, Runtime: oci, Runtimes: e.named(o, systemd), Monitor: e.monitor, Host: e.host, Labels: labels, AppArmor: profiles, CDI: devices, Log: log,
		OnEvent: e.events.OnContainer,
	})
	if err != nil {
		return err
	}
	if e.streaming, err = stream.Open(stream.Config{Runtime: e.containers, Sandboxes: podNamespaces{e.sandboxes}, Log: log}); err != nil {
		return err
	}
	return e.restore(ctx, o)
}

// podNamespaces is sandbox.Store as cri/stream wants it.
type podNamespaces struct{ *sandbox.Store }

func (p podNamespaces) NetworkNamespace(_ context.Context, id string) (*os.File, error) {
	f, err := p.Facts(sandbox.ID(id))
	if err != nil || f.HostNetwork {
		return nil, err
	}
	ns, err := p.OpenNamespaces(sandbox.ID(id))
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	file := ns.File(mountns.Net)
	fd, err := unix.FcntlInt(file.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("duplicate the network namespace of sandbox %s: %w", id, err)
	}
	return os.NewFile(uintptr(fd), file.Name()), nil
}

// restore takes over containers, sandboxes and addresses of an earlier agent.
func (e *embedded) restore(ctx context.Context, o Options) error {
	if err := e.sandboxes.Restore(ctx); err != nil {
		return fmt.Errorf("take over sandboxes: %w", err)
	}
	if err := e.containers.Restore(ctx); err != nil {
		return fmt.Errorf("take over containers: %w", err)
	}
	// A plugin that hangs must not keep the node from starting: the network's own
	// rounds go on with what is left.
	ctx, cancel := context.WithTimeout(ctx, collectTime)
	defer cancel()
	if err := e.network.GC(ctx, e.sandboxes.NetworkHolders); err != nil {
		o.Log.Warn("attachments without a sandbox could not all be released; it is tried again and again", "error", err)
	}
	return nil
}

func (e *embedded) sandboxIDs() []string {
	var ids []string
	for _, s := range e.sandboxes.List() {
		ids = append(ids, string(s.ID))
	}
	return ids
}

// close ends what openEmbedded started; containers, sandboxes and mounts stay.
func (e *embedded) close() {
	if e.streaming != nil {
		_ = e.streaming.Close() // Run may have closed it already
	}
	if e.sandboxes != nil {
		e.sandboxes.Close()
	}
	if e.images != nil {
		_ = e.images.Close() // read-only from here on: nothing is lost
	}
	if e.ns != nil {
		e.ns.Close()
	}
}

// gone tells whether err is nil or says that ctx ended.
func gone(ctx context.Context, err error) bool {
	return err == nil || ctx.Err() != nil && errors.Is(err, ctx.Err())
}

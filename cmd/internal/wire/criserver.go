package wire

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/stats"
	"github.com/berthd/berth/stats/report"
)

// serveCRI puts the server over the embedded runtime's parts.
func (e *embedded) serveCRI(o Options, systemd bool, streaming server.Streaming) (*server.Server, error) {
	reader, err := stats.Open("/sys/fs/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read cgroup counters: %w", err)
	}
	log := o.Log.With("part", "cri")
	images := filepath.Join(o.RootDir, "images")
	e.reporter = report.New(report.Config{Reader: reader, Mountpoint: images, Log: log})
	conmon, err := exec.LookPath(cmp.Or(o.Conmon, "conmon"))
	if err != nil {
		return nil, fmt.Errorf("find conmon: %w", err)
	}
	needs := server.Needs{
		Programs: map[string]string{"the OCI runtime " + e.binary.Name: e.binary.Executable(), "the monitor (conmon)": conmon},
		Dirs:     []string{o.StateDir, images},
	}
	return server.New(server.Config{
		Sandboxes: e.sandboxes, Containers: e.containers, Images: e.images, Events: e.events, Streaming: streaming,
		Stats:   e.stats(),
		Version: o.Version, SystemdCgroup: systemd, Handlers: e.handlers(o), Ready: needs.Ready,
		Details: func() map[string]any { return e.details(o, conmon) },
		Leaks:   []func(context.Context) ([]*api.Leak, error){e.attachmentLeaks},
		Log:     log,
	})
}

// details are what a person who asks for the runtime's status may want to know.
func (e *embedded) details(o Options, conmon string) map[string]any {
	runtimes := map[string]string{}
	for name, b := range e.binaries {
		runtimes[name] = b.Name + " " + b.Version + " " + b.Path
	}
	return map[string]any{
		"rootDir": o.RootDir, "stateDir": o.StateDir, "conmon": conmon, "defaultRuntime": e.binary.Name, "runtimeBinaries": runtimes,
		"cgroupVersion": map[bool]int{false: 1, true: 2}[e.host.CgroupV2], "cniConfDirs": o.CNIConfDirs, "cniBinDirs": o.CNIBinDirs, "network": e.network.Details(),
	}
}

// stats is stats/report as cri/server wants it.
func (e *embedded) stats() server.Stats {
	return server.Stats{
		Descriptors: report.Descriptors(),
		Container: func(ctx context.Context, f container.Facts, now bool) (*runtimeapi.ContainerStats, error) {
			return e.reporter.Container(ctx, e.measured(f), now)
		},
		Pod: func(ctx context.Context, f sandbox.Facts, containers []*runtimeapi.ContainerStats) (*runtimeapi.LinuxPodSandboxStats, error) {
			return e.reporter.Pod(ctx, e.measuredPod(f), containers)
		},
		Metrics: func(ctx context.Context, f sandbox.Facts, all []server.Measured) (*runtimeapi.PodSandboxMetrics, error) {
			var of []report.Container
			for _, m := range all {
				c := e.measured(m.Facts)
				c.Name, c.Image = m.Status.GetMetadata().GetName(), cmp.Or(m.Status.GetImage().GetUserSpecifiedImage(), m.Status.GetImage().GetImage())
				c.StartedAt, c.Resources = m.Status.GetStartedAt(), m.Status.GetResources().GetLinux()
				of = append(of, c)
			}
			return e.reporter.Metrics(ctx, e.measuredPod(f), of)
		},
	}
}

func (e *embedded) measured(f container.Facts) report.Container {
	c := report.Container{ID: f.ID, Upper: e.images.RootfsUpper(f.ID), PID: f.PID}
	if f.Running {
		c.Cgroup = filepath.Join("/", cgroupPath(f.CgroupsPath))
	}
	return c
}

func (e *embedded) measuredPod(f sandbox.Facts) report.Pod {
	p := report.Pod{ID: string(f.ID), Name: f.Config.GetMetadata().GetName(), Namespace: f.Config.GetMetadata().GetNamespace()}
	if f.Config.GetLinux().GetCgroupParent() != "" { // else it is where all pods are that name none
		p.Cgroup = filepath.Join("/", cgroupPath(f.CgroupParent))
	} else {
		for _, id := range e.containers.IDs(string(f.ID)) {
			if c, err := e.containers.Facts(id); err == nil && c.Running {
				p.Parts = append(p.Parts, filepath.Join("/", cgroupPath(c.CgroupsPath)))
			}
		}
	}
	if !f.HostNetwork {
		p.NetNS = func() (*os.File, error) {
			return podNamespaces{e.sandboxes}.NetworkNamespace(context.Background(), string(f.ID)) // opens a file, waits for nothing
		}
	}
	return p
}

// attachmentLeaks lists attachments and addresses that no sandbox has.
func (e *embedded) attachmentLeaks(ctx context.Context) ([]*api.Leak, error) {
	lines, err := e.network.Audit(ctx, e.sandboxIDs())
	var leaks []*api.Leak
	for _, l := range lines {
		kind, path, _ := strings.Cut(l, " ")
		leaks = append(leaks, &api.Leak{Kind: api.LeakKind_LEAK_KIND_ADDRESS, Id: path, Why: "this " + kind + " belongs to no sandbox; the agent's next start releases it"})
	}
	return leaks, err
}

// cgroupPath turns the OCI's spelling of a container's cgroup, which under
// systemd is slice:prefix:name, into a path below the cgroup root.
func cgroupPath(oci string) string {
	parts := strings.Split(oci, ":")
	slice := parts[0]
	if !strings.HasSuffix(slice, ".slice") || strings.Contains(slice, "/") {
		return oci
	}
	path := "/"
	name := strings.TrimSuffix(slice, ".slice")
	for i, r := range name { // a-b.slice lies in a.slice
		if r == '-' {
			path = filepath.Join(path, name[:i]+".slice")
		}
	}
	path = filepath.Join(path, slice)
	if len(parts) == 3 {
		path = filepath.Join(path, parts[1]+"-"+parts[2]+".scope")
	}
	return path
}

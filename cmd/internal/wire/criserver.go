package wire

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/stats"
)

// serveCRI puts the server over the embedded runtime's parts.
func (e *embedded) serveCRI(o Options, systemd bool, streaming server.Streaming) (*server.Server, error) {
	reader, err := stats.Open("/sys/fs/cgroup")
	if err != nil {
		return nil, fmt.Errorf("read cgroup counters: %w", err)
	}
	return server.New(server.Config{
		Sandboxes: e.sandboxes, Containers: e.containers, Images: e.images, Events: e.events, Streaming: streaming,
		Stats: server.Stats{
			Container: func(_ context.Context, f container.Facts) (*runtimeapi.ContainerStats, error) {
				s, err := reader.Read(cgroupPath(f.CgroupsPath))
				if err != nil {
					return nil, err
				}
				return containerStats(s), nil
			},
			Pod: func(_ context.Context, f sandbox.Facts) (*runtimeapi.LinuxPodSandboxStats, error) {
				s, err := reader.Read(cgroupPath(f.CgroupParent))
				if err != nil {
					return nil, err
				}
				c := containerStats(s)
				return &runtimeapi.LinuxPodSandboxStats{Cpu: c.Cpu, Memory: c.Memory}, nil
			},
		},
		Version: o.Version, SystemdCgroup: systemd, Handlers: e.handlers(o),
		Leaks: []func(context.Context) ([]*api.Leak, error){e.attachmentLeaks},
		Log:   o.Log.With("part", "cri"),
	})
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

func containerStats(s stats.Sample) *runtimeapi.ContainerStats {
	at := s.At.UnixNano()
	if s.At.IsZero() {
		at = time.Now().UnixNano()
	}
	out := &runtimeapi.ContainerStats{}
	if s.CPU != nil {
		out.Cpu = &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(uint64(s.CPU.Usage))}
	}
	if s.Memory != nil {
		out.Memory = &runtimeapi.MemoryUsage{Timestamp: at, UsageBytes: value(s.Memory.Usage), WorkingSetBytes: value(s.Memory.WorkingSet), RssBytes: value(s.Memory.RSS), PageFaults: value(s.Memory.PageFaults), MajorPageFaults: value(s.Memory.MajorPageFaults)}
	}
	return out
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

// Package report turns counters into CRI's messages: the stats of containers and
// pods, and their metrics by cAdvisor's names, which the kubelet passes on.
//
// What is read is remembered for a moment, so that several scrapers cost little
// more than one; a rate of CPU use comes from two readings of one cgroup. What a
// container wrote is measured at once if that takes next to no time, and else in
// the background (Run) while the last measure is told, with its time.
package report

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"time"

	"github.com/berthd/berth/stats"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fresh is how old an answer may be that is shared by several callers.
const fresh = time.Second

// Config is what a Reporter reads from.
type Config struct {
	Reader *stats.Reader
	// Mountpoint names the file system of writable layers, as ImageFsInfo does.
	Mountpoint string
	Log        *slog.Logger
}

// Container is where one container is to be found.
type Container struct {
	ID string
	// Cgroup is as in /proc/PID/cgroup; empty for one that does not run.
	Cgroup string
	// Upper is the directory that holds what it wrote; it need not exist.
	Upper string
	// PID is its first process, 0 if there is none.
	PID int
	// Name and Image are as its configuration has them, StartedAt in nanoseconds.
	Name, Image string
	StartedAt   int64
	Resources   *runtimeapi.LinuxContainerResources
}

// Pod is where one pod is to be found.
type Pod struct {
	ID, Name, Namespace string
	// Cgroup is the pod's own. It is empty if it has none: then what its
	// containers use is added up, and the processes in Parts, their cgroups.
	Cgroup string
	Parts  []string
	// NetNS opens its network namespace; nil on the host's network.
	NetNS func() (*os.File, error)
}

// Reporter answers for all containers and pods of a node. It is safe for
// concurrent use.
type Reporter struct {
	cfg     Config
	samples cache[sampled]
	metrics cache[*runtimeapi.PodSandboxMetrics]
	layers  layers
}

// New returns a Reporter; its Run measures what is too large to be measured at once.
func New(cfg Config) *Reporter {
	return &Reporter{cfg: cfg, layers: newLayers()}
}

// sampled is a reading, and the rate that it and an earlier one tell.
type sampled struct {
	stats.Sample
	base  stats.Sample // what the next rate is counted from
	nanos *uint64
}

// sample reads a cgroup, or takes what was read less than maxAge ago.
func (r *Reporter) sample(path string, maxAge time.Duration) (sampled, error) {
	return r.samples.get(path, maxAge, func(last sampled) (sampled, error) {
		s, err := r.cfg.Reader.Read(path)
		if err != nil {
			return sampled{}, err
		}
		next := sampled{Sample: s, base: last.base, nanos: last.nanos}
		if next.base.At.IsZero() {
			next.base = s
		} else if s.At.Sub(next.base.At) >= fresh { // shorter ones tell more noise than use
			if n, ok := stats.NanoCores(next.base, s); ok {
				next.nanos = &n
			}
			next.base = s
		}
		return next, nil
	})
}

// Container tells what one container uses, read now if now, else as it may be
// shared. Of one that does not run only what it wrote is told. One whose cgroup
// is gone is fs.ErrNotExist.
func (r *Reporter) Container(ctx context.Context, c Container, now bool) (*runtimeapi.ContainerStats, error) {
	out := &runtimeapi.ContainerStats{}
	if c.Cgroup != "" {
		maxAge := fresh
		if now {
			maxAge = 0
		}
		s, err := r.sample(c.Cgroup, maxAge)
		if err != nil {
			return nil, err
		}
		out.Cpu, out.Memory, out.Swap, out.Io = cpu(s), memory(s), swap(s), io(s)
	}
	if c.Upper == "" {
		return out, nil
	}
	if u, ok := r.layers.usage(ctx, c.ID, c.Upper); ok {
		out.WritableLayer = &runtimeapi.FilesystemUsage{
			Timestamp: u.at.UnixNano(), FsId: &runtimeapi.FilesystemIdentifier{Mountpoint: r.cfg.Mountpoint},
			UsedBytes: value(uint64(max(0, u.Bytes))), InodesUsed: value(uint64(max(0, u.Inodes))),
		}
	}
	return out, nil
}

// Pod tells what one pod uses. containers are what Container told of its
// containers; they become part of the answer.
func (r *Reporter) Pod(_ context.Context, p Pod, containers []*runtimeapi.ContainerStats) (*runtimeapi.LinuxPodSandboxStats, error) {
	out := &runtimeapi.LinuxPodSandboxStats{Containers: containers}
	at := time.Now().UnixNano()
	if p.Cgroup != "" {
		s, err := r.sample(p.Cgroup, fresh)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		if err == nil {
			out.Cpu, out.Memory, out.Io = cpu(s), memory(s), io(s)
		}
	}
	out.Process = &runtimeapi.ProcessUsage{Timestamp: at, ProcessCount: value(r.processes(p))}
	if out.Cpu == nil && out.Memory == nil {
		out.Cpu, out.Memory = sum(at, containers)
	}
	if out.Cpu == nil { // a pod without any container uses nothing yet
		out.Cpu = &runtimeapi.CpuUsage{Timestamp: at, UsageCoreNanoSeconds: value(0)}
		out.Memory = &runtimeapi.MemoryUsage{Timestamp: at, UsageBytes: value(0), WorkingSetBytes: value(0)}
	}
	var err error
	out.Network, err = r.network(p)
	return out, err
}

// processes counts; what is gone meanwhile has none.
func (r *Reporter) processes(p Pod) (all uint64) {
	in := p.Parts
	if p.Cgroup != "" {
		in = []string{p.Cgroup}
	}
	for _, path := range in {
		_, n, _ := r.cfg.Reader.Processes(path, 0)
		all += n
	}
	return all
}

// primary is the name that CNI's first attachment gets in every pod.
const primary = "eth0"

func (r *Reporter) interfaces(p Pod) ([]stats.Interface, error) {
	if p.NetNS == nil {
		return nil, nil
	}
	ns, err := p.NetNS()
	if err != nil || ns == nil {
		return nil, err
	}
	defer ns.Close()
	all, err := stats.Interfaces(ns)
	return slices.DeleteFunc(all, func(i stats.Interface) bool { return i.Name == "lo" }), err
}

func (r *Reporter) network(p Pod) (*runtimeapi.NetworkUsage, error) {
	all, err := r.interfaces(p)
	if err != nil {
		return nil, fmt.Errorf("pod %s/%s: %w", p.Namespace, p.Name, err)
	}
	if len(all) == 0 {
		return nil, nil
	}
	out := &runtimeapi.NetworkUsage{Timestamp: time.Now().UnixNano()}
	for _, i := range all {
		u := &runtimeapi.NetworkInterfaceUsage{
			Name: i.Name, RxBytes: value(i.RxBytes), RxErrors: value(i.RxErrors), TxBytes: value(i.TxBytes), TxErrors: value(i.TxErrors),
		}
		if i.Name == primary {
			out.DefaultInterface = u
		} else {
			out.Interfaces = append(out.Interfaces, u)
		}
	}
	return out, nil
}

// Run measures large writable layers until ctx ends.
func (r *Reporter) Run(ctx context.Context) error { return r.layers.run(ctx, r.cfg.Log) }

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }

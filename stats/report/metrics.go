package report

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/stats"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// baseLabels stand first in every metric. For a pod's own, the container and the
// image are empty and the ID is the sandbox's.
var baseLabels = []string{"pod", "namespace", "container", "id", "image"}

// metric is one kind of metric of containers, or of a pod's interfaces.
type metric struct {
	name, help string
	gauge      bool
	labels     []string // beside baseLabels
	of         func(*reading) []point
}

// point is one value, with the values of the metric's own labels.
type point struct {
	value  uint64
	labels []string
}

// reading is all that a container's metrics are made from.
type reading struct {
	Container
	sampled
	written layer
	measure bool // written is known
	disk    unix.Statfs_t
	open    open
	now     time.Time
}

// Descriptors describes every metric that Metrics tells, always the same.
func Descriptors() []*runtimeapi.MetricDescriptor {
	out := make([]*runtimeapi.MetricDescriptor, 0, len(containerMetrics)+len(interfaceMetrics))
	for _, m := range containerMetrics {
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(baseLabels[:len(baseLabels):len(baseLabels)], m.labels...)})
	}
	for _, m := range interfaceMetrics {
		out = append(out, &runtimeapi.MetricDescriptor{Name: m.name, Help: m.help, LabelKeys: append(baseLabels[:len(baseLabels):len(baseLabels)], "interface")})
	}
	return out
}

// Metrics tells the metrics of a pod and of its running containers. A container
// that ends meanwhile is left out.
func (r *Reporter) Metrics(ctx context.Context, p Pod, containers []Container) (*runtimeapi.PodSandboxMetrics, error) {
	return r.metrics.get(p.ID, fresh, func(*runtimeapi.PodSandboxMetrics) (*runtimeapi.PodSandboxMetrics, error) {
		out := &runtimeapi.PodSandboxMetrics{PodSandboxId: p.ID}
		all, err := r.interfaces(p)
		if err != nil {
			r.cfg.Log.Debug("a pod's interfaces cannot be read", "sandbox", p.ID, "err", err)
		}
		for _, i := range all {
			labels := []string{p.Name, p.Namespace, "", p.ID, "", i.Name}
			for _, m := range interfaceMetrics {
				out.Metrics = append(out.Metrics, &runtimeapi.Metric{Name: m.name, MetricType: runtimeapi.MetricType_COUNTER, LabelValues: labels, Value: value(m.of(i))})
			}
		}
		for _, c := range containers {
			if c.Cgroup == "" {
				continue
			}
			if err := ctx.Err(); err != nil {
				return nil, err
			}
			if m, err := r.containerMetrics(ctx, p, c); err == nil {
				out.ContainerMetrics = append(out.ContainerMetrics, m)
			}
		}
		return out, nil
	})
}

func (r *Reporter) containerMetrics(ctx context.Context, p Pod, c Container) (*runtimeapi.ContainerMetrics, error) {
	s, err := r.sample(c.Cgroup, fresh)
	if err != nil {
		return nil, err
	}
	in := reading{Container: c, sampled: s, now: time.Now()}
	in.written, in.measure = r.layers.usage(ctx, c.ID, c.Upper)
	if unix.Statfs(r.cfg.Mountpoint, &in.disk) != nil {
		in.disk = unix.Statfs_t{}
	}
	if ids, n, err := r.cfg.Reader.Processes(c.Cgroup, maxOpenProcesses); err == nil {
		in.open = opened(ids, n)
	}
	labels := []string{p.Name, p.Namespace, c.Name, c.ID, c.Image}
	out := &runtimeapi.ContainerMetrics{ContainerId: c.ID}
	for _, m := range containerMetrics {
		kind := runtimeapi.MetricType_COUNTER
		if m.gauge {
			kind = runtimeapi.MetricType_GAUGE
		}
		for _, v := range m.of(&in) {
			own := labels
			if len(v.labels) > 0 {
				own = append(labels[:len(labels):len(labels)], v.labels...)
			}
			out.Metrics = append(out.Metrics, &runtimeapi.Metric{Name: m.name, MetricType: kind, LabelValues: own, Value: value(v.value)})
		}
	}
	return out, nil
}

// What one container can make us look at.
const (
	maxOpenProcesses = 512
	maxOpenFiles     = 4096
)

// open is what a container's processes have open. files is false where there is
// more than is looked at: a wrong number would be worse than none.
type open struct {
	processes, files, sockets uint64
	known                     bool
}

func opened(ids []int, processes uint64) open {
	o := open{processes: processes, known: uint64(len(ids)) == processes}
	for _, id := range ids {
		dir, err := os.Open(filepath.Join("/proc", strconv.Itoa(id), "fd"))
		if err != nil {
			continue // it has ended
		}
		names, _ := dir.Readdirnames(maxOpenFiles + 1)
		for _, n := range names {
			to := make([]byte, 16)
			k, err := unix.Readlinkat(int(dir.Fd()), n, to)
			if err != nil {
				continue
			}
			o.files++
			if strings.HasPrefix(string(to[:k]), "socket:") {
				o.sockets++
			}
		}
		dir.Close()
		if o.files > maxOpenFiles {
			o.known = false
		}
		if !o.known {
			break
		}
	}
	return o
}

// interfaceMetrics are of each interface of a pod.
var interfaceMetrics = []struct {
	name, help string
	of         func(stats.Interface) uint64
}{
	{"container_network_receive_bytes_total", "Bytes that the interface has received", func(i stats.Interface) uint64 { return i.RxBytes }},
	{"container_network_receive_packets_total", "Packets that the interface has received", func(i stats.Interface) uint64 { return i.RxPackets }},
	{"container_network_receive_packets_dropped_total", "Received packets that the interface has dropped", func(i stats.Interface) uint64 { return i.RxDropped }},
	{"container_network_receive_errors_total", "Errors while the interface received", func(i stats.Interface) uint64 { return i.RxErrors }},
	{"container_network_transmit_bytes_total", "Bytes that the interface has sent", func(i stats.Interface) uint64 { return i.TxBytes }},
	{"container_network_transmit_packets_total", "Packets that the interface has sent", func(i stats.Interface) uint64 { return i.TxPackets }},
	{"container_network_transmit_packets_dropped_total", "Packets that the interface has dropped instead of sending them", func(i stats.Interface) uint64 { return i.TxDropped }},
	{"container_network_transmit_errors_total", "Errors while the interface sent", func(i stats.Interface) uint64 { return i.TxErrors }},
}

package wire

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/agent/worker"
	"github.com/berthd/berth/cni"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/berthd/berth/csi"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/probes"
)

// podNetwork is cni.Network as cri/sandbox wants it.
type podNetwork struct{ *cni.Network }

func cniRequest(r sandbox.Request) cni.Request {
	out := cni.Request{SandboxID: r.SandboxID, Namespace: r.Namespace, Name: r.Name, UID: r.UID, NetNS: r.NetNS, Annotations: r.Annotations, CgroupParent: r.CgroupParent}
	for _, p := range r.PortMappings {
		out.PortMappings = append(out.PortMappings, cni.PortMapping{HostPort: p.HostPort, ContainerPort: p.ContainerPort, Protocol: p.Protocol, HostIP: p.HostIP})
	}
	out.Bandwidth = cniBandwidth(r.Bandwidth)
	if d := r.DNS; len(d.Servers)+len(d.Searches)+len(d.Options) > 0 {
		out.DNS = &cni.DNS{Servers: d.Servers, Searches: d.Searches, Options: d.Options}
	}
	return out
}

// cniBandwidth adds to each rate the burst that containerd and CRI-O give it: the
// most that the bandwidth plugin takes.
func cniBandwidth(b sandbox.Bandwidth) *cni.Bandwidth {
	if b == (sandbox.Bandwidth{}) {
		return nil
	}
	out := &cni.Bandwidth{IngressRate: b.Ingress, EgressRate: b.Egress}
	if b.Ingress > 0 {
		out.IngressBurst = math.MaxUint32
	}
	if b.Egress > 0 {
		out.EgressBurst = math.MaxUint32
	}
	return out
}

func (n podNetwork) Add(ctx context.Context, r sandbox.Request) (sandbox.Result, error) {
	res, err := n.Network.Add(ctx, cniRequest(r))
	return sandbox.Result{IPs: res.IPs}, err
}

func (n podNetwork) Delete(ctx context.Context, r sandbox.Request) error {
	return n.Network.Delete(ctx, cniRequest(r))
}

func (n podNetwork) SetPodRanges(ctx context.Context, ranges []string) error {
	err := n.Network.SetPodRanges(ctx, ranges)
	if cni.CodeOf(err) == cni.InvalidConf {
		return fmt.Errorf("%w: %w", err, errdefs.ErrInvalidArgument)
	}
	return err
}

// podVolumes is csi.Volumes as agent/runtime wants it.
type podVolumes struct{ *csi.Volumes }

func podVolume(all map[string]csi.Volume) map[string]pod.Volume {
	out := make(map[string]pod.Volume, len(all))
	for name, v := range all {
		out[name] = pod.Volume{HostPath: v.HostPath, ReadOnly: v.ReadOnly}
	}
	return out
}

func (v podVolumes) Mount(ctx context.Context, p *v1.Pod) (map[string]pod.Volume, error) {
	all, err := v.Volumes.Mount(ctx, p)
	return podVolume(all), volumeError("set up volumes", err)
}

func (v podVolumes) Unmount(ctx context.Context, uid pod.UID) error {
	return volumeError("take down volumes", v.Volumes.Unmount(ctx, string(uid)))
}

func (v podVolumes) Mounted(uid pod.UID) (map[string]pod.Volume, bool) {
	all, ok := v.Volumes.Mounted(string(uid))
	return podVolume(all), ok
}

func (v podVolumes) SubPath(ctx context.Context, p *v1.Pod, s runtime.SubPath) (string, error) {
	path, err := v.Volumes.SubPath(ctx, p, s.Container, s.Volume, s.Path, s.Index)
	return path, volumeError("resolve subPath", err)
}

func (v podVolumes) Remove(ctx context.Context, uid pod.UID) error {
	return volumeError("remove the pod's directory", v.Volumes.Remove(ctx, string(uid)))
}

// volumeEvent tells what csi has to say of a pod; what it says of the node is logged.
func volumeEvent(sink Sink, log *slog.Logger) func(csi.Event) {
	return func(e csi.Event) {
		if e.Pod == nil {
			log.Warn(e.Message, "reason", e.Reason)
			return
		}
		sink.Event(pod.UID(e.Pod.UID), pod.Event{Warning: e.Warning, Reason: pod.Reason(e.Reason), Message: e.Message, At: time.Now()})
	}
}

var volumeKinds = map[volume.Code]pod.Kind{
	volume.Internal:  pod.Internal,
	volume.Invalid:   pod.Invalid,
	volume.NotFound:  pod.NotFound,
	volume.Denied:    pod.Denied,
	volume.Exhausted: pod.Exhausted,
	volume.Timeout:   pod.Timeout,
	volume.Canceled:  pod.Canceled,
}

// volumeError gives a volume's failure the agent's kind.
func volumeError(op string, err error) error {
	if err == nil {
		return nil
	}
	kind := pod.Internal
	var e *volume.Error
	if errors.As(err, &e) {
		kind = volumeKinds[e.Code]
	} else if errors.Is(err, context.DeadlineExceeded) {
		kind = pod.Timeout
	} else if errors.Is(err, context.Canceled) {
		kind = pod.Canceled
	}
	return &pod.Error{Op: op, Kind: kind, Reason: pod.FailedMount, Err: err}
}

// podProbes is probes.Prober as agent/worker wants it. A worker sets its
// probes after every decision; only a change is passed on.
type podProbes struct {
	*probes.Prober
	mu  sync.Mutex
	set map[pod.UID]int // how many targets each pod has
}

var verdicts = map[pod.Verdict]probes.Verdict{pod.NoVerdict: probes.None, pod.Success: probes.Success, pod.Failed: probes.Failed}

func (p *podProbes) Set(uid pod.UID, targets []plan.ProbeTarget) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(targets) == 0 && p.set[uid] == 0 {
		return
	}
	p.set[uid] = len(targets)
	out := make([]probes.Target, 0, len(targets))
	for _, t := range targets {
		target := probes.Target{
			ContainerID: string(t.Container), Kind: probes.Kind(t.Kind), Probe: &t.Probe, Ports: t.Ports, StartedAt: t.StartedAt,
			Initial: verdicts[t.Verdict], Pod: t.Pod.Namespace + "/" + t.Pod.Name, Container: string(t.Name),
		}
		if len(t.IPs) > 0 {
			target.PodIP = t.IPs[0]
		}
		out = append(out, target)
	}
	p.Prober.Set(string(uid), out)
}

func (p *podProbes) Forget(uid pod.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.set, uid)
	p.Prober.Forget(string(uid))
}

// podRuntime is runtime.Runtime as agent/worker wants it.
type podRuntime struct {
	*runtime.Runtime
	// room waits until there is room for a pod that is about to start.
	room func(context.Context, pod.Desired) error
}

func (r podRuntime) Do(ctx context.Context, t worker.Task) pod.Result {
	if t.Action.Op == pod.OpCreateSandbox {
		if err := r.room(ctx, t.Desired); err != nil {
			return pod.Result{Action: t.Action, Err: err}
		}
	}
	return r.Runtime.Do(ctx, t.Desired, t.Observed, t.Record, t.Action)
}

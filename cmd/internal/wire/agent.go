package wire

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/cgroup"
	"github.com/berthd/berth/agent/checkpoint"
	"github.com/berthd/berth/agent/dispatch"
	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
	"github.com/berthd/berth/agent/userns"
	"github.com/berthd/berth/agent/worker"
	"github.com/berthd/berth/cri/record"
	"github.com/berthd/berth/cri/server"
	"github.com/berthd/berth/csi"
	"github.com/berthd/berth/probes"
)

// shutdownTime is how long the agent takes to let go of its pods when it ends.
const shutdownTime = 10 * time.Second

// node is the running agent. Its fields are set once, in order, by open.
type node struct {
	o       Options
	systemd bool

	embedded  *embedded      // nil with an external runtime
	cri       runtime.CRI    // the embedded server in-process, or the external one
	server    *server.Server // nil with an external runtime
	inProcess *server.InProcess
	external  *external        // nil with the embedded runtime
	conn      *grpc.ClientConn // to the external runtime

	cgroups    *cgroup.Tree
	volumes    *csi.Volumes
	records    *checkpoint.Store
	users      *userns.Allocator
	runtime    *runtime.Runtime
	prober     *probes.Prober
	dispatcher *dispatch.Dispatcher
	memory     int64
	swap       int64
	// capacity is all that the node has, allocatable what pods may request of it.
	capacity, allocatable v1.ResourceList
	ips                   []string
	event                 func(pod.UID, pod.Event)
	preemption            preemption
	early                 earlyEvents
	noStrictGroups        bool // the runtime cannot do supplementalGroupsPolicy Strict
	// recursive are the handlers that can make mounts recursively read-only; it is
	// filled before the first pod is looked at, and not changed then.
	recursive map[string]bool
}

// open makes the parts of the agent, in the order they need each other.
func (n *node) open(ctx context.Context) error {
	var err error
	o := &n.o
	if err := prepareDirs(*o); err != nil {
		return err
	}
	if err := os.MkdirAll(o.LogDir, 0o755); err != nil {
		return fmt.Errorf("make the log directory %s: %w", o.LogDir, err)
	}
	if o.NodeName, err = nodeName(o.NodeName); err != nil {
		return err
	}
	n.systemd = n.systemdDriver()
	driver := cgroup.Cgroupfs
	if n.systemd {
		driver = cgroup.Systemd
	}
	if n.cgroups, err = cgroup.Open(cgroup.Config{
		Root: o.CgroupRoot, Driver: driver, NoCPUQuota: o.NoCPUQuota, CPUPeriod: o.CPUPeriod, PodPidsLimit: o.PodPidsLimit, Log: o.Log,
	}); err != nil {
		return err
	}
	if n.capacity, err = capacity(o.RootDir, o.MaxPods); err != nil {
		return err
	}
	if n.allocatable, err = allocatable(n.capacity, o.Reserved); err != nil {
		return err
	}
	if n.memory, err = memoryTotal(); err != nil {
		return err
	}
	if n.swap, err = meminfo("SwapTotal"); err != nil {
		return err
	}
	n.ips = hostIPs()
	if err := n.openRuntime(ctx); err != nil {
		return err
	}
	boot, err := record.BootID()
	if err != nil {
		return err
	}
	n.records, err = checkpoint.Open(checkpoint.Config{DurableDir: filepath.Join(o.RootDir, "records"), BootDir: filepath.Join(o.StateDir, "pods"), BootID: boot, Log: o.Log})
	return err
}

// openRuntime opens the embedded runtime, or takes the external one that was found.
func (n *node) openRuntime(ctx context.Context) (err error) {
	if n.external != nil {
		n.cri = runtime.External(n.conn)
		return nil
	}
	if n.embedded, err = openEmbedded(ctx, n.o, n.systemd); err != nil {
		return err
	}
	if n.server, err = n.embedded.serveCRI(n.o, n.systemd, n.embedded.streaming); err != nil {
		return err
	}
	n.inProcess = server.NewInProcess(n.server)
	n.cri = n.inProcess
	return nil
}

// openAgent makes the parts that run pods, over the runtime.
func (n *node) openAgent(ctx context.Context, objs runtime.Objects, sink Sink) (err error) {
	o := n.o
	sink = n.listen(sink)
	n.event, n.recursive = sink.Event, map[string]bool{}
	n.volumes, err = csi.New(csi.Config{
		Root: o.RootDir, Objects: objs, Allocatable: func() v1.ResourceList { return n.allocatable }, Event: volumeEvent(sink, o.Log), Logger: o.Log,
	})
	if err != nil {
		return err
	}
	if err := n.openPodRuntime(ctx, objs, sink); err != nil {
		return err
	}
	n.prober = probes.New(probes.Config{
		Exec: n.execProbe,
		Report: func(uid, id string, kind probes.Kind, ok bool, message string) {
			v := pod.ProbeVerdict{Container: pod.ContainerID(id), Kind: pod.ProbeKind(kind), Verdict: pod.Failed, Message: message, At: time.Now()}
			if ok {
				v.Verdict = pod.Success
			}
			n.dispatcher.Verdict(pod.UID(uid), v)
		},
		Failed: func(uid string, t *probes.Target, message string) {
			now := time.Now()
			sink.Event(pod.UID(uid), pod.Event{Warning: true, Reason: pod.Unhealthy, Message: message, Container: pod.ContainerName(t.Container), At: now})
			_, said, _ := strings.Cut(message, ": ") // without "Readiness probe failed"
			if said == "" {
				said = "it fails and says nothing"
			}
			n.dispatcher.Verdict(pod.UID(uid), pod.ProbeVerdict{Container: pod.ContainerID(t.ContainerID), Kind: pod.ProbeKind(t.Kind), Message: said, At: now})
		},
		Logger: o.Log,
	})
	n.dispatcher = dispatch.New(ctx, dispatch.Config{
		Sources: []pod.Source{pod.SourceFile, pod.SourceHTTP, pod.SourceRun}, Admit: n.admit, Allocate: n.allocate,
		Worker: worker.Deps{
			Runtime: podRuntime{n.runtime, n.makeRoom}, Probes: &podProbes{Prober: n.prober, set: map[pod.UID]int{}}, Records: n.records,
			Publish: sink.Publish, Events: sink.Event, Log: o.Log,
			Config: plan.Config{
				CrashLoopInitial: 10 * time.Second, CrashLoopMax: o.CrashLoopMax, PullInitial: 10 * time.Second, PullMax: 300 * time.Second,
				NodeName: o.NodeName, HostIPs: n.ips, RuntimeName: n.runtimeName(), RecursiveReadOnly: n.recursive,
			},
		},
	})
	return nil
}

// Sink takes what workers tell the rest of the node. Its functions must not block.
type Sink struct {
	Publish func(pod.Snapshot)
	Event   func(pod.UID, pod.Event)
}

// execProbe runs a probe's command in a container.
func (n *node) execProbe(ctx context.Context, id string, cmd []string, timeout time.Duration) (int, []byte, error) {
	seconds := int64(timeout / time.Second)
	r, err := n.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: max(seconds, 1)})
	if err != nil {
		if status.Code(err) == codes.DeadlineExceeded || errors.Is(err, context.DeadlineExceeded) {
			return 0, nil, fmt.Errorf("%w: %w", context.DeadlineExceeded, err)
		}
		return 0, nil, err
	}
	return int(r.ExitCode), append(r.Stdout, r.Stderr...), nil
}

// restore takes up the pods that an earlier agent has left.
func (n *node) restore(ctx context.Context) error {
	records, err := n.records.Load()
	if err != nil {
		return fmt.Errorf("read the pods' records: %w", err)
	}
	known, err := n.knownPods(ctx)
	if err != nil {
		return err
	}
	if err := n.askFeatures(ctx); err != nil {
		return err
	}
	n.retainUsers(records, known)
	n.noteRestored(records, known)
	observed := map[pod.UID]dispatch.ObservedPod{}
	for uid, k := range known {
		observed[uid] = dispatch.ObservedPod{Namespace: k.Pod.Namespace, Name: k.Pod.Name, Source: k.Source, Observed: k.Observed}
	}
	n.dispatcher.Restore(records, observed)
	return nil
}

// knownPods asks the runtime what it has, and waits for one that is not up yet.
func (n *node) knownPods(ctx context.Context) (map[pod.UID]runtime.Known, error) {
	for first := true; ; first = false {
		known, err := n.runtime.Known(ctx)
		if err == nil || n.embedded != nil {
			return known, err
		}
		if first {
			n.o.Log.Warn("the container runtime does not answer; waiting for it", "endpoint", n.o.Endpoint, "error", err)
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(time.Second):
		}
	}
}

// run keeps the parts going until ctx ends or one of them fails, then ends them
// in the order that lets none wait for another. Pods stay.
func (n *node) run(ctx context.Context, more ...func(context.Context) error) error {
	g, gctx := errgroup.WithContext(ctx)
	loop := func(f func(context.Context) error) {
		g.Go(func() error {
			if err := f(gctx); !gone(gctx, err) {
				return err
			}
			return nil
		})
	}
	if e := n.embedded; e != nil {
		g.Go(func() error { e.containers.Run(); return nil })
		for _, f := range e.loops(n.server, n.o.CRISocket) {
			loop(f)
		}
	}
	loop(func(ctx context.Context) error {
		return n.runtime.Run(ctx, runtime.Hints{Pod: n.dispatcher.Hint, All: n.dispatcher.HintAll})
	})
	loop(n.prober.Run)
	loop(n.dispatcher.RunResizes)
	for _, f := range more {
		loop(f)
	}
	<-gctx.Done()
	ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTime)
	defer cancel()
	stopped := n.dispatcher.Shutdown(ending)
	return errors.Join(g.Wait(), stopped)
}

// close lets go of everything; what runs goes on running.
func (n *node) close() {
	ctx, cancel := context.WithTimeout(context.Background(), shutdownTime)
	defer cancel()
	if n.volumes != nil {
		if err := n.volumes.Close(ctx); err != nil {
			n.o.Log.Warn("a volume operation is still under way", "error", err)
		}
	}
	if n.records != nil {
		if err := n.records.Close(); err != nil {
			n.o.Log.Error("the last records could not be committed", "error", err)
		}
	}
	if n.conn != nil {
		_ = n.conn.Close() // nothing is in flight any more
	}
	if n.embedded != nil {
		n.embedded.close()
	}
}

package runtime

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"sync"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

// Volumes sets up and takes down what pods mount (csi, wired by cmd). Every
// method may be called again after any failure.
type Volumes interface {
	// Mount sets up all volumes that p's containers use, makes the pod's
	// directory, and refreshes rendered volumes that are there already.
	Mount(ctx context.Context, p *v1.Pod) (map[string]pod.Volume, error)
	// Unmount takes down all volumes of the pod, in whatever state they are.
	Unmount(ctx context.Context, uid pod.UID) error
	// Mounted returns what the last complete Mount made, and whether it is there.
	Mounted(uid pod.UID) (map[string]pod.Volume, bool)
	// SubPath makes a path inside a mounted volume available at a path of its own,
	// whatever symbolic links the pod's containers put there.
	SubPath(ctx context.Context, p *v1.Pod, s SubPath) (hostPath string, err error)
	// Remove takes away the pod's directory, crossing no mount.
	Remove(ctx context.Context, uid pod.UID) error
}

// SubPath is one mount of a part of a volume.
type SubPath struct {
	Volume    string
	Container string
	Index     int // of the mount in the container
	Path      string
}

// Cgroup makes and removes the cgroups of pods (agent/cgroup).
type Cgroup interface {
	// Ensure returns the pod's cgroup parent; it is cheap when nothing changed.
	Ensure(ctx context.Context, p *v1.Pod) (parent string, err error)
	Remove(ctx context.Context, uid pod.UID) error
	Exists(uid pod.UID) bool
	// Resize raises (up) or lowers the cgroup of p to what p asks for of what, and
	// calls before ahead of a change.
	Resize(ctx context.Context, p *v1.Pod, what v1.ResourceName, up bool, before func(context.Context) error) error
	// Memory returns the limit that p asks for, the one in force, and the usage, in bytes.
	Memory(p *v1.Pod) (want, have, usage int64, ok bool)
}

// Objects looks up the ConfigMaps and Secrets of the node.
type Objects interface {
	ConfigMap(namespace, name string) (*v1.ConfigMap, bool)
	Secret(namespace, name string) (*v1.Secret, bool)
}

// Node is what pods may know of their node.
type Node struct {
	Name        string
	IPs         []string // primary first
	Allocatable v1.ResourceList
	// Memory is the node's memory in bytes, for oom scores.
	Memory int64
	// Swap is the node's swap space in bytes.
	Swap int64
	// CgroupV2 and SwapAccounting say what the kernel's limits can do.
	CgroupV2, SwapAccounting bool
	// AppArmor says that the kernel has it switched on.
	AppArmor bool
	// HostsFile and ResolvConf are the node's own, /etc/hosts and /etc/resolv.conf if empty.
	HostsFile, ResolvConf string
}

// Config is how pods are run on this node. Zero values are the kubelet's
// defaults, but for Seccomp.
type Config struct {
	RootDir string // pods' directories lie in RootDir/pods
	LogDir  string // /var/log/pods
	// LogLinksDir gets a link to each container's log, for log shippers; none if
	// empty. /var/log/containers is where they look.
	LogLinksDir string
	// SeccompDefault runs containers that name no profile under the runtime's own.
	SeccompDefault bool
	// NoCPUQuota leaves CPU limits unenforced; CPUPeriod is 100 ms if 0.
	NoCPUQuota bool
	CPUPeriod  time.Duration
	// SingleProcessOOMKill lets the kernel kill one process of a container for
	// want of memory, instead of all, which is the default on cgroup v2.
	SingleProcessOOMKill bool
	// LimitedSwap lets burstable pods use a part of Node.Swap, on cgroup v2
	// (memorySwap.swapBehavior: LimitedSwap); else no pod swaps.
	LimitedSwap bool
	// ClusterDNS and ClusterDomain are for dnsPolicy ClusterFirst; without
	// ClusterDNS it means Default.
	ClusterDNS    []string
	ClusterDomain string
	// NoHostDNS keeps the node's resolv.conf from pods (resolvConf: "" of the
	// kubelet's configuration): dnsPolicy Default asks the loopback address.
	NoHostDNS bool
	// DockerConfigs are files with registry credentials of the node.
	DockerConfigs []string
	// Sandboxes, Starts and Pulls bound what runs at once on the node: 8, 8 and 3 if 0.
	Sandboxes, Starts, Pulls int
	Node                     Node

	masked    []string // paths that containers do not see
	pageSizes []string // of huge pages, as cgroups write them
}

// Deps are what a Runtime works with.
type Deps struct {
	CRI     CRI
	Volumes Volumes
	Cgroup  Cgroup
	Objects Objects
	// Services are those of the cluster, and whether they have been read at least
	// once; nil without a cluster. What it returns is not changed by either side.
	Services func() (all []*v1.Service, read bool)
	// Userns allots user namespaces; nil: pods that ask for one are refused.
	Userns Userns
	// Events takes what only the doer knows (Pulling, a failed preStop hook); it must not block.
	Events func(pod.UID, pod.Event)
	Log    *slog.Logger
}

// Runtime does the actions of all pods of the node. Its methods may be called
// side by side.
type Runtime struct {
	Deps
	cfg Config

	sandboxes, starts, pulls semaphore
	hooks                    *http.Client

	mu       sync.Mutex
	versions map[pod.UID]string // Inputs.Version that the volumes were last rendered from
	told     map[pod.UID]string // the warnings about the pod's DNS that were last told
}

// New returns a Runtime. It calls nothing and starts nothing.
func New(cfg Config, deps Deps) *Runtime {
	def := func(n, d int) semaphore {
		if n <= 0 {
			n = d
		}
		return make(semaphore, n)
	}
	if cfg.CPUPeriod == 0 {
		cfg.CPUPeriod = 100 * time.Millisecond
	}
	if cfg.LogDir == "" {
		cfg.LogDir = "/var/log/pods"
	}
	if cfg.Node.HostsFile == "" {
		cfg.Node.HostsFile = "/etc/hosts"
	}
	if cfg.Node.ResolvConf == "" {
		cfg.Node.ResolvConf = "/etc/resolv.conf"
	}
	cfg.masked = maskedOn()
	cfg.pageSizes = nodePageSizes()
	return &Runtime{
		Deps: deps, cfg: cfg, versions: map[pod.UID]string{}, told: map[pod.UID]string{},
		sandboxes: def(cfg.Sandboxes, 8), starts: def(cfg.Starts, 8), pulls: def(cfg.Pulls, 3),
		// Hooks go to the pod itself, whose certificate nobody has signed (upstream does the same).
		hooks: &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}, CheckRedirect: sameHost},
	}
}

// semaphore bounds what runs at once.
type semaphore chan struct{}

func (s semaphore) acquire(ctx context.Context) error {
	select {
	case s <- struct{}{}:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s semaphore) release() { <-s }

// task is one action and what it is done with.
type task struct {
	desired  pod.Desired
	pod      *v1.Pod
	uid      pod.UID
	observed pod.Observed
	action   pod.Action
	result   *pod.Result
}

// Do does action a of the pod and returns what became of it: exactly one
// result, whose error is nil or a *pod.Error. Doing it again finds the work
// done. It returns soon after ctx is over; what the runtime has begun then may
// or may not happen, and the next look tells.
func (r *Runtime) Do(ctx context.Context, desired pod.Desired, observed pod.Observed, record pod.Record, a pod.Action) pod.Result {
	began := time.Now()
	result := pod.Result{Action: a}
	t := &task{desired: desired, pod: desired.Pod, observed: observed, action: a, result: &result}
	if t.pod == nil {
		t.pod = record.Durable.Pod
	}
	if t.pod == nil {
		result.Err = &pod.Error{Op: string(a.Op), Kind: pod.Internal, Err: fmt.Errorf("no pod was given")}
		return result
	}
	t.uid = pod.UID(t.pod.UID)
	result.Err = r.do(ctx, t)
	result.Took = time.Since(began)
	return result
}

func (r *Runtime) do(ctx context.Context, t *task) error {
	switch t.action.Op {
	case pod.OpObserve:
		o, err := r.Observe(ctx, t.uid)
		if err == nil {
			if len(o.Containers) == 0 {
				o.Logged = r.logged(t.pod)
			}
			t.result.Observed = &o
		}
		return err
	case pod.OpMountVolumes:
		return r.mountVolumes(ctx, t)
	case pod.OpUnmountVolumes:
		return r.unmountVolumes(ctx, t)
	case pod.OpCreateSandbox:
		return r.createSandbox(ctx, t)
	case pod.OpStopSandbox:
		return r.stopSandbox(ctx, t)
	case pod.OpRemoveSandbox:
		return r.removeSandbox(ctx, t)
	case pod.OpPullImage:
		return r.pullImage(ctx, t)
	case pod.OpStartContainer:
		return r.startContainer(ctx, t)
	case pod.OpPostStart:
		return r.postStart(ctx, t)
	case pod.OpPreStop:
		return r.preStop(ctx, t)
	case pod.OpStopContainer:
		return r.stopContainer(ctx, t)
	case pod.OpRemoveContainer:
		return r.removeContainer(ctx, t)
	case pod.OpCleanup:
		return r.cleanup(ctx, t)
	case pod.OpResize:
		return r.resize(ctx, t)
	}
	return &pod.Error{Op: string(t.action.Op), Kind: pod.Internal, Err: fmt.Errorf("operation %q is not known", t.action.Op)}
}

// container is the spec of the action's container, nil if the pod has none of
// that name.
func (t *task) container() *v1.Container { return containerOf(t.pod, t.action.Container) }

func containerOf(p *v1.Pod, name pod.ContainerName) *v1.Container {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if list[i].Name == string(name) {
				return &list[i]
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == string(name) {
			c := v1.Container(p.Spec.EphemeralContainers[i].EphemeralContainerCommon)
			return &c
		}
	}
	return nil
}

func (r *Runtime) event(t *task, warning bool, reason pod.Reason, message string) {
	if r.Events != nil {
		r.Events(t.uid, pod.Event{Warning: warning, Reason: reason, Message: message, Container: t.action.Container, At: time.Now()})
	}
}

func (r *Runtime) podDir(uid pod.UID) string {
	return filepath.Join(r.cfg.RootDir, "pods", string(uid))
}

// logDirName is the directory of a pod's logs below Config.LogDir.
func logDirName(p *v1.Pod) string { return p.Namespace + "_" + p.Name + "_" + string(p.UID) }

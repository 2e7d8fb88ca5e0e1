package cni

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/test/failpoint"
)

// interfaceName is what a pod's interface is called inside its sandbox.
const interfaceName = "eth0"

// atOnce calls of plugins run side by side. They contend for the kernel's one
// lock on network configuration, but each also waits for links to come up or
// go: with 4 at once 110 ADDs take longer than with 16, with 110 too.
const atOnce = 16

// Config says where configurations, plugins and records are.
type Config struct {
	ConfDirs []string // default /etc/cni/net.d
	BinDirs  []string // default /opt/cni/bin, /usr/lib/cni
	Dir      string   // Berth's own: attachment records, default network
	// BootDir holds what a reboot makes void: the addresses and attachments of
	// the default network. In memory they cost a pod's start least. Dir if empty.
	BootDir string
	// Timeout bounds one call of all plugins of a network; 30 s if zero.
	Timeout time.Duration
	// Subnets are the default network's address ranges; chosen if empty.
	Subnets []string
	Log     *slog.Logger
}

// PortMapping forwards a port of the host to one of the sandbox.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// Request names a sandbox and what its network must do.
type Request struct {
	SandboxID    string            `json:"sandbox"`
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	UID          string            `json:"uid"`
	NetNS        string            `json:"netns"` // a path that plugins can open; empty when it is gone
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
}

// Result is what ADD gave the sandbox.
type Result struct {
	IPs []string // the first is the primary
}

// Network attaches sandboxes. All methods may be called at once.
type Network struct {
	cfg     Config
	cni     *libcni.CNIConfig
	cniOwn  *libcni.CNIConfig // for the default network
	records attachments
	own     *ownNetwork

	// slots bounds the calls of plugins that run at once.
	slots chan struct{}
	// adding is held shared by ADD and DEL and alone by GC, which must not take a
	// lease that is just being written for a leak.
	adding  sync.RWMutex
	current atomic.Pointer[network]
	problem atomic.Pointer[string]
}

// Open reads the configuration. It fails only when its own directory cannot be
// made; a missing or broken network configuration is told by Status.
func Open(cfg Config) (*Network, error) {
	if len(cfg.ConfDirs) == 0 {
		cfg.ConfDirs = []string{"/etc/cni/net.d"}
	}
	if len(cfg.BinDirs) == 0 {
		cfg.BinDirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 30 * time.Second
	}
	if cfg.BootDir == "" {
		cfg.BootDir = cfg.Dir
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	records := attachments{dir: filepath.Join(cfg.Dir, "attachments"), boot: filepath.Join(cfg.BootDir, "attachments")}
	for _, d := range []string{cfg.Dir, records.dir, records.boot} {
		failpoint.Hit("cni/mkdir")
		if err := os.MkdirAll(d, 0o700); err != nil {
			return nil, err
		}
	}
	n := &Network{
		slots: make(chan struct{}, atOnce),
		cfg:   cfg, records: records, own: &ownNetwork{dir: cfg.Dir, boot: cfg.BootDir, subnets: cfg.Subnets},
		cni:    libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, filepath.Join(cfg.Dir, "cache"), &runner{version.PluginDecoder{}}),
		cniOwn: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, filepath.Join(cfg.BootDir, "cache"), &runner{version.PluginDecoder{}}),
	}
	n.reload()
	return n, nil
}

// plugins calls those of the default network, or of another, and caches their answers.
func (n *Network) plugins(owned bool) *libcni.CNIConfig {
	if owned {
		return n.cniOwn
	}
	return n.cni
}

// reload chooses the network anew: the first valid conflist or, where nobody has
// configured any, the default. Files that are all broken are no reason for the
// default: to find themselves on another network than configured would surprise pods.
func (n *Network) reload() {
	found, problems := load(n.cfg.ConfDirs)
	for _, p := range problems {
		n.cfg.Log.Warn("a network configuration was passed over", "error", p)
	}
	if found == nil && len(problems) > 0 {
		msg := strings.ReplaceAll(fmt.Sprintf("network is not ready: no configuration is valid: %v", errors.Join(problems...)), "\n", "; ")
		n.problem.Store(&msg)
		n.current.Store(nil)
		return
	}
	if found == nil {
		var err error
		if found, err = n.own.open(); err != nil {
			msg := err.Error()
			n.problem.Store(&msg)
			n.cfg.Log.Error("the default network cannot be set up", "error", err)
			return
		}
	}
	n.problem.Store(nil)
	if old := n.current.Swap(found); old == nil || old.path != found.path {
		n.cfg.Log.Info("network chosen", "network", found.list.Name, "from", found.path)
	}
}

// Status returns nil when sandboxes can be attached, else an *Error that says
// why not, for the runtime's NetworkReady condition.
func (n *Network) Status(ctx context.Context) error {
	if msg := n.problem.Load(); msg != nil {
		return &Error{NotReady, "STATUS", errors.New(*msg)}
	}
	cur := n.current.Load()
	if cur == nil {
		return &Error{NotReady, "STATUS", errors.New("no network configuration")}
	}
	for _, p := range cur.list.Plugins {
		for _, plugin := range []string{p.Network.Type, p.Network.IPAM.Type} {
			if plugin == "" {
				continue
			}
			if _, err := (&runner{}).FindInPath(plugin, n.cfg.BinDirs); err != nil {
				return err
			}
		}
	}
	if gt, err := version.GreaterThanOrEqualTo(cur.list.CNIVersion, "1.1.0"); err != nil || !gt {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	return asError("STATUS", n.cni.GetStatusNetworkList(ctx, cur.list))
}

// Name is the network in use and where its configuration is.
func (n *Network) Name() (name, path string) {
	if cur := n.current.Load(); cur != nil {
		return cur.list.Name, cur.path
	}
	return "", ""
}

// Add attaches a sandbox. Called again for an attached sandbox it answers from
// the record; after a failure, or a kill, the caller deletes first.
func (n *Network) Add(ctx context.Context, r Request) (Result, error) {
	cur := n.current.Load()
	if cur == nil {
		return Result{}, n.Status(ctx)
	}
	n.adding.RLock()
	defer n.adding.RUnlock()
	if x, err := n.records.read(r.SandboxID); err != nil && !errors.Is(err, errTorn) {
		return Result{}, asError("ADD", err)
	} else if x != nil && len(x.IPs) > 0 {
		return Result{IPs: x.IPs}, nil
	}
	list := cur.list
	if cur.plain != nil && len(r.PortMappings) == 0 {
		list = cur.plain
	}
	x := &attachment{Request: r, Network: list.Name, Owned: cur.owned, Conflist: list.Bytes}
	if err := n.records.write(x, !cur.owned); err != nil {
		return Result{}, asError("ADD", fmt.Errorf("record the attachment: %w", err))
	}
	if err := prepare(r.NetNS); err != nil {
		return Result{}, asError("ADD", err)
	}
	ctx, done, err := n.slot(ctx, "ADD")
	if err != nil {
		return Result{}, err
	}
	defer done()
	answer, err := n.plugins(cur.owned).AddNetworkList(ctx, list, runtimeConf(r))
	if CodeOf(err) == Exhausted && cur.owned {
		err = n.exhausted(err)
	}
	if err != nil {
		return Result{}, asError("ADD", err)
	}
	if x.IPs, err = addresses(answer); err != nil {
		return Result{}, err
	}
	// Not flushed: if this is lost, Delete works from the first write.
	if err := n.records.write(x, false); err != nil {
		return Result{}, asError("ADD", err)
	}
	return Result{IPs: x.IPs}, nil
}

// slot waits for its turn among the calls of plugins, and then starts the
// call's deadline.
func (n *Network) slot(ctx context.Context, op string) (context.Context, func(), error) {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, &Error{Timeout, op, fmt.Errorf("no turn among %d calls of plugins: %w", cap(n.slots), ctx.Err())}
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	return ctx, func() { cancel(); <-n.slots }, nil
}

// addresses takes the sandbox's addresses from a plugin's answer, which is not trusted.
func addresses(answer types.Result) ([]string, error) {
	r, err := types100.NewResultFromResult(answer)
	if err != nil {
		return nil, &Error{BadAnswer, "ADD", err}
	}
	var ips []string
	for _, ip := range r.IPs {
		if ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(r.Interfaces)) {
			return nil, &Error{BadAnswer, "ADD", fmt.Errorf("the answer places an address on interface %d of %d", *ip.Interface, len(r.Interfaces))}
		}
		if ip.Interface != nil && r.Interfaces[*ip.Interface].Sandbox == "" {
			continue // the host's side
		}
		a := net.IP(ip.Address.IP)
		if a == nil || a.IsUnspecified() || a.IsMulticast() {
			return nil, &Error{BadAnswer, "ADD", fmt.Errorf("the answer has the address %v", ip.Address)}
		}
		ips = append(ips, a.String())
	}
	if len(ips) == 0 {
		return nil, &Error{BadAnswer, "ADD", errors.New("the plugins gave the pod no address")}
	}
	return ips, nil
}

func runtimeConf(r Request) *libcni.RuntimeConf {
	capabilities := map[string]any{}
	if len(r.PortMappings) > 0 {
		capabilities["portMappings"] = r.PortMappings
	}
	if r.CgroupParent != "" {
		capabilities["cgroupPath"] = r.CgroupParent
	}
	if len(r.Annotations) > 0 {
		capabilities["io.kubernetes.cri.pod-annotations"] = r.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: r.SandboxID, NetNS: r.NetNS, IfName: interfaceName, CapabilityArgs: capabilities,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", r.Namespace}, {"K8S_POD_NAME", r.Name}, {"K8S_POD_INFRA_CONTAINER_ID", r.SandboxID}, {"K8S_POD_UID", r.UID}},
	}
}

// Check asks the plugins whether the sandbox's attachment is as they made it.
func (n *Network) Check(ctx context.Context, r Request) error {
	x, err := n.records.read(r.SandboxID)
	if err != nil {
		return asError("CHECK", err)
	}
	if x == nil {
		return &Error{NotReady, "CHECK", fmt.Errorf("sandbox %s is not attached", r.SandboxID)}
	}
	list, err := libcni.ConfListFromBytes(x.Conflist)
	if err != nil {
		return &Error{InvalidConf, "CHECK", err}
	}
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	defer cancel()
	x.Request.NetNS = r.NetNS
	return asError("CHECK", n.plugins(x.Owned).CheckNetworkList(ctx, list, runtimeConf(x.Request)))
}

// GC detaches every recorded sandbox that is not in valid, tells plugins that
// speak CNI 1.1 which attachments are valid, and takes back leases of the
// default network that nobody holds. It goes on after a failure and returns all.
func (n *Network) GC(ctx context.Context, valid []string) error {
	n.adding.Lock()
	defer n.adding.Unlock()
	keep := map[string]bool{}
	for _, v := range valid {
		keep[v] = true
	}
	ids, err := n.records.list()
	errs := []error{err}
	for _, id := range ids {
		if !keep[id] {
			errs = append(errs, n.detach(ctx, id, ""))
		}
	}
	held := map[string]bool{}
	if ids, err = n.records.list(); err != nil {
		return errors.Join(append(errs, err)...)
	}
	args := &libcni.GCArgs{}
	for _, id := range ids {
		held[id] = true
		args.ValidAttachments = append(args.ValidAttachments, types.GCAttachment{ContainerID: id, IfName: interfaceName})
	}
	errs = append(errs, n.own.reclaim(held), n.own.sweepPorts(held))
	if cur := n.current.Load(); cur != nil && !cur.list.DisableGC {
		if ok, err := version.GreaterThanOrEqualTo(cur.list.CNIVersion, "1.1.0"); err == nil && ok {
			ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
			defer cancel()
			errs = append(errs, asError("GC", n.plugins(cur.owned).GCNetworkList(ctx, cur.list, args)))
		}
	}
	return errors.Join(errs...)
}

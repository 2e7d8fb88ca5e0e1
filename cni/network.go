package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/test/failpoint"
)

// interfaceName is what a pod's interface is called inside its sandbox.
const interfaceName = "eth0"

// atOnce calls of plugins run side by side. They contend for the kernel's one
// lock on network configuration, but each also waits for links to come up or
// go: with 4 at once 110 ADDs take longer than with 16, with 110 too.
const atOnce = 16

// openTime bounds what Open does for the default network.
const openTime = 30 * time.Second

// patience is how long a call counts among those: one that takes longer waits
// for something else than the kernel, and must not hold up other pods'.
const patience = 5 * time.Second

// Config says where configurations, plugins and records are.
type Config struct {
	ConfDirs []string // default /etc/cni/net.d
	BinDirs  []string // default /opt/cni/bin, /usr/lib/cni
	Dir      string   // Berth's own: attachment records, default network
	// BootDir holds what a reboot makes void: the addresses and attachments of
	// the default network. In memory they cost a pod's start least. Dir if empty.
	BootDir string
	// Timeout bounds one ADD, DEL or CHECK of all plugins of a network; 30 s if
	// zero. STATUS, VERSION and GC, for which nobody waits, have shorter ones.
	Timeout time.Duration
	// Period is how often Run looks whether all is as it should be; 30 s if zero.
	Period time.Duration
	// Subnets are the default network's address ranges; chosen if empty.
	Subnets []string
	Log     *slog.Logger
}

// Network attaches sandboxes. All methods may be called at once. While a plugin
// runs, only operations on its own sandbox wait, and during a GC of CNI 1.1, for
// at most gcTime, all of them.
type Network struct {
	cfg     Config
	cni     *libcni.CNIConfig
	cniOwn  *libcni.CNIConfig // for the default network
	exec    *runner
	records attachments
	own     *ownNetwork

	// slots bounds the calls of plugins that run at once.
	slots     chan struct{}
	sandboxes keyed
	gate      gate

	choosing   sync.Mutex // which network to use, and what it is
	passedOver string     // the last told problems of configurations
	current    atomic.Pointer[network]
	problem    atomic.Pointer[string]
	versions   versions
	health     health
	failure    atomic.Pointer[failure]
	collected  atomic.Int64 // when the last GC ended well, Unix nanoseconds
	// wake makes Run's next round come at once.
	wake chan struct{}
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
	if cfg.Period == 0 {
		cfg.Period = 30 * time.Second
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
	run := &runner{version.PluginDecoder{}}
	n := &Network{
		cfg: cfg, exec: run, records: records, own: &ownNetwork{dir: cfg.Dir, boot: cfg.BootDir, subnets: cfg.Subnets, log: cfg.Log},
		slots: make(chan struct{}, atOnce), health: health{looking: make(chan struct{}, 1)}, wake: make(chan struct{}, 1),
		cni:    libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, filepath.Join(cfg.Dir, "cache"), run),
		cniOwn: libcni.NewCNIConfigWithCacheDir(cfg.BinDirs, filepath.Join(cfg.BootDir, "cache"), run),
	}
	ctx, cancel := context.WithTimeout(context.Background(), openTime) // before there is anybody whose end could matter
	defer cancel()
	n.reload(ctx)
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
func (n *Network) reload(ctx context.Context) {
	n.choosing.Lock()
	defer n.choosing.Unlock()
	found, problems := load(n.cfg.ConfDirs)
	if told := fmt.Sprint(problems); told != n.passedOver {
		n.passedOver = told
		for _, p := range problems {
			n.cfg.Log.Warn("a network configuration was passed over", "error", p)
		}
	}
	if found == nil && len(problems) > 0 {
		n.unusable(strings.ReplaceAll(fmt.Sprintf("network is not ready: no configuration is valid: %v", errors.Join(problems...)), "\n", "; "))
		return
	}
	if found == nil {
		if cur := n.current.Load(); cur != nil && cur.owned {
			return // heal sees that it stays whole
		}
		var err error
		if found, err = n.own.open(ctx); err != nil {
			n.unusable(err.Error())
			n.cfg.Log.Error("the default network cannot be set up", "error", err)
			return
		}
	}
	n.use(found)
}

func (n *Network) unusable(why string) {
	n.problem.Store(&why)
	n.current.Store(nil)
}

func (n *Network) use(found *network) {
	n.problem.Store(nil)
	old := n.current.Swap(found)
	if old == nil || old.path != found.path || !bytes.Equal(old.list.Bytes, found.list.Bytes) {
		n.cfg.Log.Info("network chosen", "network", found.list.Name, "from", found.path)
	}
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
	res, err := n.add(ctx, r)
	n.note(r, err)
	return res, err
}

func (n *Network) add(ctx context.Context, r Request) (Result, error) {
	unlock, err := n.sandboxes.lock(ctx, r.SandboxID)
	if err != nil {
		return Result{}, asError("ADD", "", err)
	}
	defer unlock()
	if x, err := n.records.read(r.SandboxID); err != nil && !errors.Is(err, errTorn) {
		return Result{}, asError("ADD", "", err)
	} else if x != nil && len(x.IPs) > 0 {
		return Result{IPs: x.IPs}, nil
	}
	if err := n.gate.enter(ctx); err != nil {
		return Result{}, asError("ADD", "", err)
	}
	defer n.gate.leave()
	cur, err := n.usable(ctx)
	if err != nil {
		return Result{}, err
	}
	list := cur.listFor(r)
	if r.IPRanges == nil && !cur.owned {
		r.IPRanges = n.own.ranges()
	}
	x := &attachment{Request: r, Network: list.Name, Owned: cur.owned, Conflist: list.Bytes}
	if err := n.records.write(x, !cur.owned); err != nil {
		return Result{}, asError("ADD", "", fmt.Errorf("record the attachment: %w", err))
	}
	if err := prepare(r.NetNS); err != nil {
		return Result{}, asError("ADD", "", err)
	}
	if x.IPs, err = n.attach(ctx, cur, list, r); err != nil {
		return Result{}, err
	}
	// Not flushed: if this is lost, Delete works from the first write.
	if err := n.records.write(x, false); err != nil {
		return Result{}, asError("ADD", "", err)
	}
	return Result{IPs: x.IPs}, nil
}

// attach calls ADD of the plugins.
func (n *Network) attach(ctx context.Context, cur *network, list *libcni.NetworkConfigList, r Request) ([]string, error) {
	ctx, done, err := n.slot(ctx, "ADD")
	if err != nil {
		return nil, err
	}
	defer done()
	answer, err := addChain(ctx, n.plugins(cur.owned), list, runtimeConf(r))
	if CodeOf(err) == Exhausted && cur.owned {
		err = n.exhausted(err)
	}
	if err != nil {
		return nil, asError("ADD", list.Name, err)
	}
	ips, err := addresses(answer)
	if err != nil {
		last := called{plugin: list.Plugins[len(list.Plugins)-1].Network.Type, verb: "ADD", network: list.Name}
		return nil, last.error(BadAnswer, "ended with an answer that is not to be used: %w", err)
	}
	return ips, nil
}

// addChain calls ADD of one plugin after the other. What each has answered is
// cached before the next is called: DEL of a chain that was cut off passes it on
// as prevResult, without which some plugins undo nothing (firewall, for one).
func addChain(ctx context.Context, c *libcni.CNIConfig, list *libcni.NetworkConfigList, rt *libcni.RuntimeConf) (answer types.Result, err error) {
	for _, p := range list.Plugins {
		if answer != nil {
			if p, err = libcni.InjectConf(p, map[string]any{"prevResult": answer}); err != nil {
				return nil, err
			}
		}
		one := *list
		one.Plugins = []*libcni.PluginConfig{p}
		failpoint.Hit("cni/cache-write")
		if answer, err = c.AddNetworkList(ctx, &one, rt); err != nil {
			return nil, err
		}
	}
	return answer, nil
}

// slot waits for its turn among the calls of plugins, and then starts the
// call's deadline.
func (n *Network) slot(ctx context.Context, op string) (context.Context, func(), error) {
	select {
	case n.slots <- struct{}{}:
	case <-ctx.Done():
		return nil, nil, &Error{Timeout, op, fmt.Errorf("no turn among %d calls of plugins: %w", cap(n.slots), ctx.Err())}
	}
	var once sync.Once
	release := func() { once.Do(func() { <-n.slots }) }
	late := time.AfterFunc(patience, release)
	ctx, cancel := context.WithTimeout(ctx, n.cfg.Timeout)
	return ctx, func() { cancel(); late.Stop(); release() }, nil
}

// Check asks the plugins whether the sandbox's attachment is as they made it.
func (n *Network) Check(ctx context.Context, r Request) error {
	x, err := n.records.read(r.SandboxID)
	if err != nil {
		return asError("CHECK", "", err)
	}
	if x == nil {
		return &Error{NotReady, "CHECK", fmt.Errorf("sandbox %s is not attached", r.SandboxID)}
	}
	list, err := libcni.ConfListFromBytes(x.Conflist)
	if err != nil {
		return &Error{InvalidConf, "CHECK", err}
	}
	ctx, done, err := n.slot(ctx, "CHECK")
	if err != nil {
		return err
	}
	defer done()
	x.Request.NetNS = r.NetNS
	return asError("CHECK", x.Network, n.plugins(x.Owned).CheckNetworkList(ctx, list, runtimeConf(x.Request)))
}

package cni

import (
	"context"
	"errors"
	"maps"
	"os"
	"slices"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/test/failpoint"
)

// Delete detaches a sandbox: DEL of the plugins that ADD was, or may have been,
// called for, with the configuration of then. r.NetNS may be empty or gone.
// Idempotent; a sandbox that was never attached is success.
func (n *Network) Delete(ctx context.Context, r Request) error {
	err := n.delete(ctx, r)
	n.note(r, err)
	return err
}

func (n *Network) delete(ctx context.Context, r Request) error {
	unlock, err := n.sandboxes.lock(ctx, r.SandboxID)
	if err != nil {
		return asError("DEL", "", err)
	}
	defer unlock()
	return n.detach(ctx, r.SandboxID, r.NetNS)
}

// detach is Delete for one who has the sandbox's lock.
func (n *Network) detach(ctx context.Context, sandbox, netns string) error {
	x, err := n.records.read(sandbox)
	failed := err == nil && x != nil && len(x.IPs) == 0
	torn := errors.Is(err, errTorn)
	if torn {
		// What it said is lost: ask the plugins of now to release what they have for this sandbox.
		if cur := n.current.Load(); cur != nil {
			x, err = &attachment{Request: Request{SandboxID: sandbox}, Network: cur.list.Name, Owned: cur.owned, Conflist: cur.list.Bytes}, nil
		}
	}
	if err != nil || x == nil {
		return asError("DEL", "", err)
	}
	if err := n.gate.enter(ctx); err != nil {
		return asError("DEL", x.Network, err)
	}
	defer n.gate.leave()
	list, err := libcni.ConfListFromBytes(x.Conflist)
	if err != nil {
		return &Error{InvalidConf, "DEL", err}
	}
	cut := failed || torn || x.Undoing
	if !cut {
		n.mark(x)
	}
	x.Request.NetNS = netns
	if _, err := os.Stat(netns); err != nil {
		x.Request.NetNS = "" // as after a reboot: plugins release what they hold outside
	}
	ctx, done, err := n.slot(ctx, "DEL")
	if err != nil {
		return err
	}
	defer done()
	if cut {
		n.awaitStrays(ctx, sandbox)
	}
	if err := n.delChain(ctx, x, list, failed); err != nil {
		return asError("DEL", x.Network, err)
	}
	if (cut || x.Request.NetNS == "") && !x.Owned { // the default network masquerades its range, not pods
		if err := n.sweepMasquerade(ctx, x); err != nil {
			return asError("DEL", x.Network, err)
		}
	}
	return asError("DEL", x.Network, n.records.erase(sandbox))
}

// mark records that the plugins of an attachment are about to undo it, so that
// the next DEL knows of one that was cut off. Not flushed: after a crash of the
// machine nothing is left to sweep. Nor needed: a full disk keeps no sandbox.
func (n *Network) mark(x *attachment) {
	if x.Owned {
		return // no plugin of the default network needs it
	}
	x.Undoing = true
	if err := n.records.write(x, false); err != nil {
		n.cfg.Log.Warn("that a sandbox is being detached is not recorded", "sandbox", x.Request.SandboxID, "error", err)
	}
}

// delChain calls DEL of the plugins, the last first, with what the last ADD that
// was answered said; it stops at the first that fails. Of an ADD that failed
// nothing is left to undo for plugins that cannot have done their part: waiting
// for them would keep the sandbox for ever.
func (n *Network) delChain(ctx context.Context, x *attachment, list *libcni.NetworkConfigList, failed bool) error {
	c, rt := n.plugins(x.Owned), runtimeConf(x.Request)
	more := map[string]any{"name": list.Name, "cniVersion": list.CNIVersion}
	if old, err := version.GreaterThanOrEqualTo("0.3.1", list.CNIVersion); err == nil && !old { // prevResult on DEL came with 0.4.0
		if prev, err := c.GetNetworkListCachedResult(list, rt); err == nil && prev != nil {
			more["prevResult"] = prev
		}
	}
	for _, p := range slices.Backward(list.Plugins) {
		path, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
		if err != nil && failed {
			continue
		}
		if err != nil {
			return err
		}
		conf, err := libcni.InjectConf(p, withCapabilities(p, rt, more))
		if err != nil {
			return err
		}
		args := &invoke.Args{Command: "DEL", ContainerID: rt.ContainerID, NetNS: rt.NetNS, PluginArgs: rt.Args, IfName: rt.IfName, Path: joinDirs(n.cfg.BinDirs)}
		if err := invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, args, n.exec); err != nil && !(failed && mute(err)) {
			return err
		}
	}
	none := *list
	none.Plugins = nil
	failpoint.Hit("cni/cache-erase")
	return c.DelNetworkList(ctx, &none, rt) // drops the cached answer
}

// withCapabilities adds to more what p is told of rt.
func withCapabilities(p *libcni.PluginConfig, rt *libcni.RuntimeConf, more map[string]any) map[string]any {
	told := map[string]any{}
	for name, on := range p.Network.Capabilities {
		if v, ok := rt.CapabilityArgs[name]; on && ok {
			told[name] = v
		}
	}
	more = maps.Clone(more)
	if len(told) > 0 {
		more["runtimeConfig"] = told
	}
	return more
}

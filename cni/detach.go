package cni

import (
	"context"
	"errors"
	"os"
	"slices"

	"github.com/containernetworking/cni/libcni"
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
	if errors.Is(err, errTorn) {
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
	if failed {
		// A plugin that is not there has not done its part of an ADD that failed:
		// nothing of it is left, and waiting for it would keep the sandbox for ever.
		list.Plugins = slices.DeleteFunc(list.Plugins, func(p *libcni.PluginConfig) bool {
			_, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
			return err != nil
		})
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
	if err := n.plugins(x.Owned).DelNetworkList(ctx, list, runtimeConf(x.Request)); err != nil {
		return asError("DEL", x.Network, err)
	}
	return asError("DEL", x.Network, n.records.erase(sandbox))
}

package cni

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/invoke"
)

const (
	// statusTime bounds one plugin's answer to STATUS.
	statusTime = 5 * time.Second
	// statusWait bounds a call of Status, whatever plugins do.
	statusWait = 2 * time.Second
	// unreadyPeriod is how often plugins are asked that were not ready.
	unreadyPeriod = 5 * time.Second
)

// health is the latest verdict about the network in use.
type health struct {
	looking chan struct{} // full while somebody looks
	last    atomic.Pointer[verdict]
}

type verdict struct {
	of  *network // and no other
	err error
	at  time.Time
}

// failure is the last operation that failed, for those who ask for details.
type failure struct {
	pod, text string
	at        time.Time
}

// Status returns nil when sandboxes can be attached, else an *Error that says
// why not, for the runtime's NetworkReady condition. It answers with what was
// found in the last period, and asks plugins itself, for at most statusWait,
// only where nobody has.
func (n *Network) Status(ctx context.Context) error {
	if err := n.unready(); err != nil {
		return err
	}
	if v := n.verdict(); v != nil {
		return v.err
	}
	// A caller that goes away must not leave a verdict that its going away caused.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusWait)
	defer cancel()
	select {
	case n.health.looking <- struct{}{}:
		defer func() { <-n.health.looking }()
		if v := n.verdict(); v != nil {
			return v.err
		}
		return n.look(ctx)
	case <-ctx.Done():
	}
	if v := n.health.last.Load(); v != nil && v.of == n.current.Load() {
		return v.err // old, and better than none
	}
	return &Error{NotReady, "STATUS", errors.New("the network's plugins have not answered yet")}
}

// verdict is the last one, if it is about the network in use and not too old.
func (n *Network) verdict() *verdict {
	v := n.health.last.Load()
	if v == nil || v.of != n.current.Load() || time.Since(v.at) > n.maxAge(v) {
		return nil
	}
	return v
}

// maxAge leaves Run the time to look again before anybody else has to.
func (n *Network) maxAge(v *verdict) time.Duration {
	if v.err != nil {
		return min(unreadyPeriod, n.cfg.Period)
	}
	return n.cfg.Period + statusTime
}

// unready says why there is no network at all; nil if there is one.
func (n *Network) unready() error {
	if msg := n.problem.Load(); msg != nil {
		return &Error{NotReady, "STATUS", errors.New(*msg)}
	}
	if n.current.Load() == nil {
		return &Error{NotReady, "STATUS", errors.New("no network configuration")}
	}
	return nil
}

// refresh looks anew, for Run.
func (n *Network) refresh(ctx context.Context) {
	select {
	case n.health.looking <- struct{}{}:
		defer func() { <-n.health.looking }()
	case <-ctx.Done():
		return
	}
	if cur := n.current.Load(); cur != nil {
		for _, p := range cur.plugins() {
			if _, err := n.spokenBy(ctx, p); err != nil && CodeOf(err) != Missing {
				n.cfg.Log.Debug("a plugin does not tell which versions of CNI it speaks", "plugin", p, "error", err)
			}
		}
	}
	_ = n.look(ctx) // kept as the verdict
}

// look finds out whether the network in use is ready, and keeps the verdict.
// Only one may look at a time.
func (n *Network) look(ctx context.Context) error {
	cur, err := n.usable(ctx)
	if cur == nil {
		cur = n.current.Load()
	}
	if err == nil {
		err = n.ask(ctx, cur)
	}
	if errors.Is(ctx.Err(), context.Canceled) {
		return err
	}
	old := n.health.last.Swap(&verdict{cur, err, time.Now()})
	switch was := old != nil && old.err != nil; {
	case err != nil && !was:
		n.cfg.Log.Warn("the network is not ready", "error", err)
	case err == nil && was:
		n.cfg.Log.Info("the network is ready again")
	}
	return err
}

// ask sees that every plugin is there and, where the configuration is of CNI
// 1.1, that it says it is ready.
func (n *Network) ask(ctx context.Context, cur *network) error {
	for _, p := range cur.plugins() {
		if _, err := n.exec.FindInPath(p, n.cfg.BinDirs); err != nil {
			return asError("STATUS", cur.list.Name, err)
		}
	}
	if err := n.mismatched(cur); err != nil || !cur.speaks("1.1.0") {
		return err
	}
	for _, p := range cur.list.Plugins {
		ctx, cancel := context.WithTimeout(ctx, min(statusTime, n.cfg.Timeout))
		err := n.verb(ctx, cur, p, "STATUS", nil)
		cancel()
		if err != nil && !unspoken(err) {
			return err
		}
	}
	return nil
}

// verb calls a verb that is about no sandbox, with more in the configuration.
func (n *Network) verb(ctx context.Context, cur *network, p *libcni.PluginConfig, verb string, more map[string]any) error {
	inject := map[string]any{"name": cur.list.Name, "cniVersion": cur.list.CNIVersion}
	for k, v := range more {
		inject[k] = v
	}
	conf, err := libcni.InjectConf(p, inject)
	if err != nil {
		return asError(verb, cur.list.Name, fmt.Errorf("configuration of plugin %s: %w", p.Network.Type, err))
	}
	path, err := n.exec.FindInPath(p.Network.Type, n.cfg.BinDirs)
	if err == nil {
		err = invoke.ExecPluginWithoutResult(ctx, path, conf.Bytes, &invoke.Args{Command: verb, Path: joinDirs(n.cfg.BinDirs)}, n.exec)
	}
	return asError(verb, cur.list.Name, err)
}

// note keeps err as the last failure.
func (n *Network) note(r Request, err error) {
	if err != nil {
		n.failure.Store(&failure{r.Namespace + "/" + r.Name, err.Error(), time.Now()})
	}
}

// Details tells about the network in use, in names and values that can be
// encoded as JSON. It asks nobody.
func (n *Network) Details() map[string]any {
	out := map[string]any{}
	if cur := n.current.Load(); cur != nil {
		plugins := map[string]any{}
		for _, p := range cur.plugins() {
			path, err := n.exec.FindInPath(p, n.cfg.BinDirs)
			if err != nil {
				plugins[p] = map[string]any{"error": err.Error()}
				continue
			}
			spoken, _ := n.versions.of(path)
			plugins[p] = map[string]any{"path": path, "cniVersions": spoken}
		}
		out["name"], out["configuration"], out["cniVersion"], out["plugins"] = cur.list.Name, cur.path, cur.list.CNIVersion, plugins
		if cur.owned {
			out["subnets"] = n.own.inUse()
		}
	}
	if msg := n.problem.Load(); msg != nil {
		out["problem"] = *msg
	}
	if v := n.health.last.Load(); v != nil && v.err != nil {
		out["status"] = v.err.Error()
	}
	if f := n.failure.Load(); f != nil {
		out["lastError"] = map[string]any{"pod": f.pod, "error": f.text, "at": f.at}
	}
	return out
}

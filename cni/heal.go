package cni

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"

	"github.com/containernetworking/cni/libcni"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

// seen remembers a state of nftables in which nothing of ours was missing: as
// long as the kernel counts no change, there is nothing to list.
type seen struct {
	whole      bool
	generation uint32
}

// typeMask takes the flags off an attribute's type (NLA_TYPE_MASK).
const typeMask = 0x3fff

// generation is the kernel's count of changes of nftables in this network namespace.
func generation() (uint32, error) {
	req := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_GETGEN, 0)
	req.AddRawData([]byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, 0})
	answers, err := req.Execute(unix.NETLINK_NETFILTER, unix.NFNL_SUBSYS_NFTABLES<<8|unix.NFT_MSG_NEWGEN)
	if err != nil {
		return 0, err
	}
	for _, a := range answers {
		attrs, err := nl.ParseRouteAttr(a[min(len(a), nl.SizeofNfgenmsg):])
		if err != nil {
			return 0, err
		}
		for _, at := range attrs {
			if at.Attr.Type&typeMask == unix.NFTA_GEN_ID && len(at.Value) >= 4 {
				return binary.BigEndian.Uint32(at.Value), nil
			}
		}
	}
	return 0, errors.New("the kernel does not count changes of nftables")
}

// byNftables tells whether iptables keeps its rules where generation counts.
func byNftables(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	failpoint.Hit("cni/iptables-version")
	out, err := exec.CommandContext(ctx, find("iptables"), "-V").Output()
	return err == nil && strings.Contains(string(out), "nf_tables")
}

// heal puts back what somebody has taken from the default network: bridge,
// addresses, forwarding, rules, and the rules of its pods' host ports.
func (n *Network) heal(ctx context.Context) error {
	cur := n.current.Load()
	if cur == nil || !cur.owned {
		return nil
	}
	n.choosing.Lock()
	c := n.own.stored()
	now, err := generation()
	counted := err == nil && n.own.nft(ctx)
	quiet := c != nil && counted && n.own.seen == seen{true, now}
	n.choosing.Unlock()
	missing := "its choice"
	if c != nil {
		missing = missingLinks(c)
	}
	var rules map[string][]string
	if missing != "" { // host ports depend on settings of the bridge: all are made anew
		rules, quiet = map[string][]string{}, false
	} else if !quiet {
		if rules, err = allRules(ctx, c); err != nil {
			return err
		}
		missing = missingRules(c, rules)
	}
	if missing != "" {
		n.cfg.Log.Warn("the default network was taken apart and is put back", "missing", missing)
		if err := n.reopen(ctx, cur); err != nil {
			return err
		}
		if err := n.rejoin(); err != nil {
			return err
		}
	}
	if !quiet {
		if err := n.republish(ctx, rules); err != nil {
			return err
		}
	}
	n.choosing.Lock()
	defer n.choosing.Unlock()
	// Counted before the look: a change since then is looked at the next time.
	n.own.seen = seen{counted && missing == "", now}
	return nil
}

func (o *ownNetwork) nft(ctx context.Context) bool {
	if o.byNft == nil {
		yes := byNftables(ctx)
		o.byNft = &yes
	}
	return *o.byNft
}

// reopen sets the default network up again, if it is still in use.
func (n *Network) reopen(ctx context.Context, cur *network) error {
	n.choosing.Lock()
	defer n.choosing.Unlock()
	if n.current.Load() != cur {
		return nil
	}
	found, err := n.own.open(ctx)
	if err != nil {
		return fmt.Errorf("put the default network back: %w", err)
	}
	n.use(found)
	return nil
}

// missingLinks says what of c's bridge and of forwarding is missing.
func missingLinks(c *chosen) string {
	link, err := netlink.LinkByName(c.Bridge)
	if err != nil {
		return "the bridge " + c.Bridge
	}
	if link.Attrs().Flags&unix.IFF_UP == 0 {
		return "the bridge " + c.Bridge + " is down"
	}
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return ""
	}
	has := map[string]bool{}
	for _, a := range addrs {
		has[a.IPNet.String()] = true
	}
	for _, s := range c.Subnets {
		if g := gateway(s).String(); !has[g] {
			return "the address " + g
		}
		path := forward4
		if toolFor(s) == "ip6tables" {
			path = forward6
		}
		if body, err := os.ReadFile(path); err == nil && strings.TrimSpace(string(body)) != "1" {
			return path
		}
	}
	return ""
}

// allRules lists the rules of the families that c has.
func allRules(ctx context.Context, c *chosen) (map[string][]string, error) {
	rules := map[string][]string{}
	for _, s := range c.segments() {
		for _, subnet := range s.Subnets {
			tool := toolFor(subnet)
			if _, listed := rules[tool]; listed {
				continue
			}
			lines, err := listRules(ctx, tool)
			if err != nil {
				return nil, err
			}
			rules[tool] = lines
		}
	}
	return rules, nil
}

// missingRules says which of the rules that setRules sets are not among rules,
// by their number: what iptables lists is not written as it was given.
func missingRules(c *chosen, rules map[string][]string) string {
	for _, s := range c.segments() {
		for _, subnet := range s.Subnets {
			var own, jump int
			for _, l := range rules[toolFor(subnet)] {
				switch {
				case strings.HasPrefix(l, "-A "+chain(s.Bridge)+" "):
					own++
				case strings.HasPrefix(l, "-A ") && strings.HasSuffix(l, " -j "+chain(s.Bridge)):
					jump++
				}
			}
			if own < 4 || jump < 2 {
				return fmt.Sprintf("%s rules of %s", toolFor(subnet), chain(s.Bridge))
			}
		}
	}
	return ""
}

// segments are the bridges that have rules, the present one first.
func (c *chosen) segments() []segment {
	all := []segment{c.segment}
	for _, s := range c.Retired {
		if _, err := netlink.LinkByName(s.Bridge); err == nil { // else nobody can be on it
			all = append(all, s)
		}
	}
	return all
}

// republish makes the rules of host ports again that are gone, by ADD of the
// portmap plugin alone, which replaces what it finds. rules are those of before.
func (n *Network) republish(ctx context.Context, rules map[string][]string) error {
	ids, err := n.records.list()
	if err != nil {
		return err
	}
	var errs []error
	for _, id := range ids {
		x, err := n.records.peek(id)
		if err != nil || x == nil || !x.Owned || len(x.IPs) == 0 || len(x.Request.PortMappings) == 0 {
			continue
		}
		if published(x, rules) {
			continue
		}
		errs = append(errs, n.publish(ctx, id))
	}
	return errors.Join(errs...)
}

// published tells whether every family of x's addresses has a rule for its ports.
func published(x *attachment, rules map[string][]string) bool {
	mark := `id: \"` + x.Request.SandboxID + `\"`
	for _, ip := range x.IPs {
		lines, found := rules[toolFor(ip)], !wants(x, ip)
		for _, l := range lines {
			found = found || strings.HasPrefix(l, "-A CNI-HOSTPORT-DNAT ") && strings.Contains(l, mark)
		}
		if !found {
			return false
		}
	}
	return true
}

// wants tells whether any port of x is to be forwarded to ip: one with a host
// address is, to an address of its family.
func wants(x *attachment, ip string) bool {
	for _, p := range x.Request.PortMappings {
		if p.HostIP == "" || toolFor(p.HostIP) == toolFor(ip) {
			return true
		}
	}
	return false
}

func (n *Network) publish(ctx context.Context, id string) error {
	unlock := n.sandboxes.try(id)
	if unlock == nil {
		return nil // being made or removed
	}
	defer unlock()
	x, err := n.records.peek(id)
	if err != nil || x == nil {
		return err
	}
	if err := n.gate.enter(ctx); err != nil {
		return err
	}
	defer n.gate.leave()
	list, err := libcni.ConfListFromBytes(x.Conflist)
	if err != nil {
		return err
	}
	rt := runtimeConf(x.Request)
	answer, err := n.cniOwn.GetNetworkListCachedResult(list, rt)
	if err != nil || answer == nil {
		return errors.Join(err, fmt.Errorf("host ports of %s/%s are gone and cannot be restored: what its ADD answered is not known any more; make the pod anew", x.Request.Namespace, x.Request.Name))
	}
	for _, p := range list.Plugins {
		if p.Network.Type != "portmap" {
			continue
		}
		if p, err = libcni.InjectConf(p, map[string]any{"prevResult": answer}); err != nil {
			return err
		}
		ctx, done, err := n.slot(ctx, "ADD")
		if err != nil {
			return err
		}
		one := *list
		one.Plugins = []*libcni.PluginConfig{p}
		_, err = n.cniOwn.AddNetworkList(ctx, &one, rt)
		done()
		if err != nil {
			return asError("ADD", list.Name, err)
		}
		n.cfg.Log.Warn("the host ports of a pod were taken away and are put back", "pod", x.Request.Namespace+"/"+x.Request.Name)
	}
	return nil
}

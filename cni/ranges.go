package cni

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"

	"github.com/berthd/berth/test/failpoint"
)

// The ranges of the default network change as the node is assigned others:
//
//	free choice ──SetPodRanges──▶ assigned ──SetPodRanges──▶ assigned anew
//
// Pods that run keep their addresses: ranges that do not overlap the old ones get
// a bridge of their own, and the old bridge goes once no pod is on it any more.

// SetPodRanges gives the default network the ranges assigned to the node: one of
// IPv4, one of IPv6, or one of each, the primary family first. New pods get
// addresses of them; those that run keep theirs. The ranges are kept over
// restarts. What is set already changes nothing and writes nothing. Where the
// node has a network configuration of its own, or configured ranges, nothing is
// done and the log says so; a configuration whose plugins have the capability
// ipRanges is told them. An InvalidConf *Error says what is wrong with ranges.
func (n *Network) SetPodRanges(ctx context.Context, ranges []string) error {
	want, err := checkRanges(ranges)
	if err != nil {
		return &Error{InvalidConf, "set pod ranges", err}
	}
	n.choosing.Lock()
	defer n.choosing.Unlock()
	cur := n.current.Load()
	log := n.cfg.Log.With("ranges", strings.Join(want, ","))
	foreign := cur != nil && !cur.owned
	switch {
	case foreign && !takesRanges(cur):
		log.Info("the pod ranges assigned to the node are left to its network configuration, which is in use", "network", cur.list.Name, "from", cur.path)
		return nil
	case !foreign && len(n.cfg.Subnets) > 0:
		log.Info("the pod ranges assigned to the node are not used: others are configured", "configured", strings.Join(n.cfg.Subnets, ","))
		return nil
	}
	if changed, err := n.own.assign(want); err != nil || !changed && (foreign || n.problem.Load() == nil) {
		return asError("set pod ranges", "", err)
	}
	if foreign {
		log.Info("pod ranges assigned", "network", cur.list.Name)
		return nil
	}
	if found, problems := load(n.cfg.ConfDirs); found != nil || len(problems) > 0 {
		return nil // a configuration is just being written, or mended: Run follows it
	}
	found, err := n.own.open(ctx)
	if err != nil {
		n.unusable(err.Error())
		return asError("set pod ranges", ownName, err)
	}
	n.use(found)
	log.Info("pod ranges assigned", "network", ownName)
	n.nudge()
	return nil
}

func takesRanges(cur *network) bool {
	for _, p := range cur.list.Plugins {
		if p.Network.Capabilities["ipRanges"] {
			return true
		}
	}
	return false
}

// checkRanges returns ranges in canonical form.
func checkRanges(ranges []string) ([]string, error) {
	var out []string
	families := map[bool]string{}
	for _, s := range ranges {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			return nil, fmt.Errorf("pod range %q is not a CIDR: %w", s, err)
		}
		a := p.Addr()
		if other, twice := families[a.Is4()]; twice {
			return nil, fmt.Errorf("pod ranges %s and %s are of one family: give one of IPv4, one of IPv6, or one of each", other, p)
		}
		families[a.Is4()] = p.String()
		switch {
		case a.Is4In6() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast():
			return nil, fmt.Errorf("pod range %s: pods cannot have such addresses", p)
		case a.BitLen()-p.Bits() < 2:
			return nil, fmt.Errorf("pod range %s has no room for a gateway and a pod: /%d is the smallest", p, a.BitLen()-2)
		case p.Bits() < 8:
			return nil, fmt.Errorf("pod range %s is larger than a node's can be", p)
		}
		out = append(out, p.Masked().String())
	}
	if len(out) == 0 {
		return nil, errors.New("no pod range is given")
	}
	return out, nil
}

func (o *ownNetwork) rangesPath() string { return filepath.Join(o.dir, "pod-ranges.json") }

// assigned are the ranges that were assigned to the node; nil: none.
func (o *ownNetwork) assigned() []string {
	var ranges []string
	if body, err := os.ReadFile(o.rangesPath()); err != nil || json.Unmarshal(body, &ranges) != nil {
		return nil
	}
	ranges, err := checkRanges(ranges)
	if err != nil {
		return nil
	}
	return ranges
}

// assign keeps ranges; changed says that they are others than before.
func (o *ownNetwork) assign(ranges []string) (changed bool, err error) {
	if slices.Equal(ranges, o.assigned()) {
		return false, nil
	}
	body, err := json.Marshal(ranges)
	if err != nil {
		return false, err
	}
	failpoint.Hit("cni/ranges")
	return true, errors.Join(replace(o.rangesPath(), body), syncDir(o.dir))
}

// ranges are the assigned ones as plugins with the capability ipRanges want them.
func (o *ownNetwork) ranges() [][]IPRange {
	var out [][]IPRange
	for _, s := range o.assigned() {
		out = append(out, []IPRange{{s}})
	}
	return out
}

// move gives c other ranges, and the bridge for them.
func (c *chosen) move(o *ownNetwork, want []string) error {
	var next []netip.Prefix
	for _, s := range want {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return fmt.Errorf("the pod network's range: %w", err)
		}
		next = append(next, p)
	}
	if c.Bridge != "" && slices.ContainsFunc(c.Subnets, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && overlaps(p, next)
	}) {
		// Two bridges with one range would take each other's packets. Pods outside the
		// new range, or with another gateway, lose their connection.
		o.log.Warn("the pod network's range changes to one that overlaps it: running pods may have to be made anew", "from", strings.Join(c.Subnets, ","), "to", strings.Join(want, ","))
		c.Subnets = want
		return nil
	}
	taken := map[string]bool{c.Bridge: true}
	for _, r := range c.Retired {
		taken[r.Bridge] = true
	}
	bridge, err := freeBridge(o.dir, taken)
	if err != nil {
		return err
	}
	if c.Bridge != "" {
		c.Retired = append(c.Retired, c.segment)
	}
	c.segment = segment{bridge, want}
	return nil
}

func (o *ownNetwork) retiring() bool {
	c := o.stored()
	return c != nil && len(c.Retired) > 0
}

// dropRetired takes bridges of earlier ranges that are not in used off the host.
func (o *ownNetwork) dropRetired(ctx context.Context, used map[string]bool) error {
	c := o.stored()
	if c == nil {
		return nil
	}
	var left []segment
	for _, s := range c.Retired {
		if used[s.Bridge] {
			left = append(left, s)
			continue
		}
		if err := s.remove(ctx); err != nil {
			return err
		}
		o.log.Info("the bridge of an earlier pod range is gone", "bridge", s.Bridge, "ranges", strings.Join(s.Subnets, ","))
	}
	if len(left) == len(c.Retired) {
		return nil
	}
	c.Retired = left
	o.seen = seen{}
	failpoint.Hit("cni/own-retired")
	return o.keep(c)
}

// remove takes a bridge and its rules off the host. Idempotent.
func (s segment) remove(ctx context.Context) error {
	for _, subnet := range s.Subnets {
		tool := toolFor(subnet)
		for _, j := range jumps(s.Bridge, subnet) {
			for iptables(ctx, tool, "", edit("-D", j)...) == nil { // as often as it is there
			}
			_ = iptables(ctx, tool, "", "-w", "10", j[0], j[1], "-F", chain(s.Bridge)) // gone already is fine
			_ = iptables(ctx, tool, "", "-w", "10", j[0], j[1], "-X", chain(s.Bridge))
		}
	}
	link, err := netlink.LinkByName(s.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for the bridge %s: %w", s.Bridge, err)
	}
	failpoint.Hit("cni/bridge-delete")
	if err := netlink.LinkDel(link); err != nil {
		return fmt.Errorf("delete the bridge %s: %w", s.Bridge, err)
	}
	return nil
}

func toolFor(subnet string) string {
	if strings.Contains(subnet, ":") {
		return "ip6tables"
	}
	return "iptables"
}

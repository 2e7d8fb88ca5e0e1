package cni

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

// freeBridge returns the first of berth0 to berth99 that is not in taken and does
// not exist, or that dir's owner made and did not get to record.
func freeBridge(dir string, taken map[string]bool) (string, error) {
	for i := range 100 {
		name := fmt.Sprintf("berth%d", i)
		if taken[name] {
			continue
		}
		link, err := netlink.LinkByName(name)
		if errors.As(err, new(netlink.LinkNotFoundError)) || err == nil && link.Attrs().Alias == dir {
			return name, nil
		}
		if err != nil {
			return "", fmt.Errorf("look for the bridge %s: %w", name, err)
		}
	}
	return "", errors.New("bridges berth0 to berth99 all exist: remove the unused ones (ip link delete NAME)")
}

// makeBridge makes the bridge with the gateways' addresses, so that its name
// and its ranges are taken from now on. The bridge's alias tells whose it is.
// Idempotent.
func makeBridge(dir string, c segment) error {
	link, err := netlink.LinkByName(c.Bridge)
	if errors.As(err, new(netlink.LinkNotFoundError)) {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = c.Bridge
		// Without one of its own the bridge takes the lowest address of its ports, and
		// neighbours' caches go stale; they stay good when it is made again, too.
		sum := sha256.Sum256([]byte(dir + "\x00" + c.Bridge))
		attrs.HardwareAddr = net.HardwareAddr(sum[:6])
		attrs.HardwareAddr[0] = attrs.HardwareAddr[0]&^1 | 2 // unicast, locally administered
		failpoint.Hit("cni/bridge-add")
		if err := netlink.LinkAdd(&netlink.Bridge{LinkAttrs: attrs}); err != nil {
			return fmt.Errorf("make the bridge %s: %w", c.Bridge, err)
		}
		if link, err = netlink.LinkByName(c.Bridge); err != nil {
			return err
		}
	} else if err != nil {
		return err
	}
	if alias := link.Attrs().Alias; alias != "" && alias != dir {
		return fmt.Errorf("the bridge %s belongs to another agent, of %s: remove it (ip link delete %s), or %s/default.json to choose another", c.Bridge, alias, c.Bridge, dir)
	}
	failpoint.Hit("cni/bridge-alias")
	if err := netlink.LinkSetAlias(link, dir); err != nil {
		return err
	}
	for _, s := range c.Subnets {
		g := gateway(s)
		addr := &netlink.Addr{IPNet: &net.IPNet{IP: g.Addr().AsSlice(), Mask: net.CIDRMask(g.Bits(), g.Addr().BitLen())}}
		if g.Addr().Is6() {
			// A host may keep IPv6 from its interfaces; this one has nothing to learn from others.
			if err := setSysctl("/proc/sys/net/ipv6/conf/"+c.Bridge+"/disable_ipv6", "0"); err != nil {
				return fmt.Errorf("let the bridge %s have IPv6, which range %s needs: %w", c.Bridge, s, err)
			}
			addr.Flags = unix.IFA_F_NODAD
		}
		failpoint.Hit("cni/bridge-address")
		if err := netlink.AddrReplace(link, addr); err != nil {
			return fmt.Errorf("give the bridge %s the address %s: %w", c.Bridge, g, err)
		}
	}
	if err := dropFormer(link, c); err != nil {
		return err
	}
	failpoint.Hit("cni/bridge-up")
	return netlink.LinkSetUp(link)
}

// dropFormer takes gateways' addresses off a bridge whose ranges have changed:
// the bridge plugin refuses one that has another address of its range.
func dropFormer(link netlink.Link, c segment) error {
	addrs, err := whole(func() ([]netlink.Addr, error) { return netlink.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("list the addresses of the bridge %s: %w", c.Bridge, err)
	}
	for _, a := range addrs {
		ip, ok := netip.AddrFromSlice(a.IP)
		if ip = ip.Unmap(); !ok || ip.IsLinkLocalUnicast() {
			continue
		}
		ones, _ := a.Mask.Size()
		p := netip.PrefixFrom(ip, ones)
		if slices.ContainsFunc(c.Subnets, func(s string) bool { return p == gateway(s) }) {
			continue
		}
		if !slices.ContainsFunc(c.Subnets, func(s string) bool { q, err := netip.ParsePrefix(s); return err == nil && q.Overlaps(p) }) {
			continue
		}
		failpoint.Hit("cni/bridge-address-drop")
		if err := netlink.AddrDel(link, &a); err != nil {
			return fmt.Errorf("take the former address %s from the bridge %s: %w", p, c.Bridge, err)
		}
	}
	return nil
}

// gateway is the bridge's own address in a range, which has been checked.
func gateway(subnet string) netip.Prefix {
	p := netip.MustParsePrefix(subnet)
	return netip.PrefixFrom(p.Masked().Addr().Next(), p.Bits())
}

package cni

import (
	"errors"
	"fmt"

	"github.com/containernetworking/cni/libcni"
	types100 "github.com/containernetworking/cni/pkg/types/100"
	"github.com/vishvananda/netlink"

	"github.com/berthd/berth/test/failpoint"
)

// rejoin puts the pods' ends back into a bridge that was removed and made again.
func (n *Network) rejoin() error {
	ids, err := n.records.list()
	errs := []error{err}
	for _, id := range ids {
		unlock := n.sandboxes.try(id)
		if unlock == nil {
			continue // being made or removed
		}
		x, err := n.records.peek(id)
		if err == nil && x != nil && x.Owned && len(x.IPs) > 0 {
			err = n.rejoinOne(x)
		}
		unlock()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

func (n *Network) rejoinOne(x *attachment) error {
	bridge, err := netlink.LinkByName(x.bridge())
	if err != nil {
		return fmt.Errorf("look for the bridge %s: %w", x.bridge(), err)
	}
	list, err := libcni.ConfListFromBytes(x.Conflist)
	if err != nil {
		return err
	}
	answer, err := n.cniOwn.GetNetworkListCachedResult(list, runtimeConf(x.Request))
	if err != nil || answer == nil {
		return err // nothing tells which are its links
	}
	r, err := types100.NewResultFromResult(answer)
	if err != nil {
		return err
	}
	for _, i := range r.Interfaces {
		link, err := netlink.LinkByName(i.Name)
		if i.Sandbox != "" || err != nil || link.Type() != "veth" || link.Attrs().MasterIndex == bridge.Attrs().Index {
			continue
		}
		failpoint.Hit("cni/rejoin")
		if err := errors.Join(netlink.LinkSetMaster(link, bridge), netlink.LinkSetHairpin(link, true), netlink.LinkSetUp(link)); err != nil {
			return fmt.Errorf("put %s of pod %s/%s back into the bridge %s: %w", i.Name, x.Request.Namespace, x.Request.Name, x.bridge(), err)
		}
	}
	return nil
}

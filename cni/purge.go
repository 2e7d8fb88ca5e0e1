package cni

import (
	"context"
	"errors"
	"os"

	"github.com/berthd/berth/test/failpoint"
)

// Audit lists attachments and leases that belong to no sandbox in valid, as
// "kind path" lines, and rules of host ports likewise.
func (n *Network) Audit(ctx context.Context, valid []string) ([]string, error) {
	keep := map[string]bool{}
	for _, v := range valid {
		keep[v] = true
	}
	ids, err := n.records.list()
	if err != nil {
		return nil, err
	}
	var leaks []string
	for _, id := range ids {
		if !keep[id] {
			leaks = append(leaks, "attachment "+n.records.path(id))
		}
	}
	leases, err := n.own.leases(keep)
	for _, l := range leases {
		leaks = append(leaks, "address "+l)
	}
	for _, tool := range families {
		rules, _, e := strayPorts(ctx, tool, n.own.inUse(), func() (map[string]bool, error) { return keep, nil })
		err = errors.Join(err, e)
		for _, r := range rules {
			leaks = append(leaks, tool+" "+r)
		}
	}
	return leaks, err
}

// Purge removes every attachment, and the default network with its bridge,
// rules and state. Only for an agent that has no sandbox any more.
func (n *Network) Purge(ctx context.Context) error {
	err := errors.Join(n.GC(ctx, nil), n.own.remove(ctx))
	failpoint.Hit("cni/purge")
	return errors.Join(err, os.RemoveAll(n.cfg.Dir), os.RemoveAll(n.cfg.BootDir))
}

package cni

import (
	"fmt"
	"slices"
	"strings"
)

// exhausted says who has the addresses of the default network.
func (n *Network) exhausted(cause error) error {
	leases, err := n.own.leases(nil)
	if err != nil {
		return cause
	}
	ids, err := n.records.list()
	if err != nil {
		return cause
	}
	var holders []string
	for _, id := range ids {
		if x, err := n.records.read(id); err == nil && x != nil && len(x.IPs) > 0 {
			holders = append(holders, x.Request.Namespace+"/"+x.Request.Name)
		}
	}
	slices.Sort(holders)
	who := strings.Join(holders[:min(len(holders), 3)], ", ")
	if len(holders) > 3 {
		who += fmt.Sprintf(" and %d more", len(holders)-3)
	}
	return &Error{Exhausted, "ADD", fmt.Errorf("no address left in subnet %s: %d in use, by %d pods (%s); end pods that are no longer needed, or configure a larger range: %w",
		strings.Join(n.own.inUse(), " or "), len(leases), len(holders), who, cause)}
}

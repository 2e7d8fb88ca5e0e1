package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// The portmap plugin keeps, in the nat table of each family, one chain for a
// sandbox and a rule that leads to it and names the sandbox:
//
//	-A CNI-HOSTPORT-DNAT ... --comment "dnat name: \"NETWORK\" id: \"SANDBOX\"" ... -j CNI-DN-...
//
// beside three chains of its own that it never removes.
var portRule = regexp.MustCompile(`^-A CNI-HOSTPORT-DNAT .*name: \\"([^"\\]*)\\" id: \\"([^"\\]*)\\"" .*-j (CNI-DN-[0-9a-f]+)$`)

var portTarget = regexp.MustCompile(`^-A (CNI-DN-[0-9a-f]+) .*-j DNAT --to-destination (\S+)$`)

var portChains = []string{"CNI-HOSTPORT-DNAT", "CNI-HOSTPORT-MASQ", "CNI-HOSTPORT-SETMARK"}

var families = []string{"iptables", "ip6tables"}

// natRules lists the rules of the nat table; none if the tool is not there,
// because then no plugin can have made one.
func natRules(tool string) ([]string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), ruleTimeout) // part of cleaning up, which a caller's end must not cut
	defer cancel()
	failpoint.Hit("cni/rules-list")
	out, err := exec.CommandContext(ctx, find(tool+"-save"), "-t", "nat").Output()
	if errors.Is(err, exec.ErrNotFound) || exec.Command(find(tool)).Err != nil {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the rules of %s: %w", tool, err)
	}
	return strings.Split(string(out), "\n"), nil
}

// strayPorts returns, for one family, the rules of host ports that lead into
// one of subnets, for a sandbox that is not in held, and the chains that they
// lead through. Another agent's network has other subnets.
func strayPorts(tool string, subnets []string, held map[string]bool) (rules, chains []string, err error) {
	all, err := natRules(tool)
	ours := map[string]bool{}
	for _, l := range all {
		if m := portTarget.FindStringSubmatch(l); m != nil && within(m[2], subnets) {
			ours[m[1]] = true
		}
	}
	for _, l := range all {
		if m := portRule.FindStringSubmatch(l); m != nil && m[1] == ownName && !held[m[2]] && ours[m[3]] {
			rules, chains = append(rules, l), append(chains, m[3])
		}
	}
	return rules, chains, err
}

// within: target, "1.2.3.4:80" or "[fd00::1]:80", lies in one of subnets.
func within(target string, subnets []string) bool {
	a, err := netip.ParseAddrPort(target)
	return err == nil && slices.ContainsFunc(subnets, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(a.Addr())
	})
}

// sweepPorts removes the rules of this network's host ports that no sandbox in
// held has: what is left when an attachment's record was lost. No ADD may be running.
func (o *ownNetwork) sweepPorts(held map[string]bool) error {
	var errs []error
	for _, tool := range families {
		rules, chains, err := strayPorts(tool, o.inUse(), held)
		errs = append(errs, err)
		if len(rules) > 0 {
			errs = append(errs, dropRules(tool, rules, chains))
		}
	}
	return errors.Join(errs...)
}

// dropRules deletes nat rules, given as iptables-save shows them, and then chains.
func dropRules(tool string, rules, chains []string) error {
	var b strings.Builder
	b.WriteString("*nat\n")
	for _, r := range rules {
		b.WriteString("-D" + strings.TrimPrefix(r, "-A") + "\n")
	}
	for _, op := range []string{"-F ", "-X "} {
		for _, c := range chains {
			b.WriteString(op + c + "\n")
		}
	}
	b.WriteString("COMMIT\n")
	failpoint.Hit("cni/rules-drop")
	return iptables(tool+"-restore", b.String(), "-w", "10", "--noflush")
}

// dropPortChains removes the portmap plugin's own chains if no sandbox of any
// runtime uses them: the plugin makes them again when it needs them. One that
// begins to use them meanwhile keeps them: the removal is all or nothing.
func dropPortChains() error {
	var errs []error
	for _, tool := range families {
		rules, chains, err := idlePortChains(tool)
		if err == nil && len(chains) > 0 {
			if err = dropRules(tool, rules, chains); err != nil {
				if _, again, e := idlePortChains(tool); e == nil && len(again) == 0 {
					err = nil
				}
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// idlePortChains returns the plugin's own chains and the rules that lead to
// them; none if a sandbox uses them.
func idlePortChains(tool string) (rules, chains []string, err error) {
	all, err := natRules(tool)
	for _, l := range all {
		// A chain of a sandbox is made before the rule that leads to it.
		if strings.HasPrefix(l, "-A CNI-HOSTPORT-DNAT ") || strings.HasPrefix(l, "-A CNI-DN-") || strings.HasPrefix(l, ":CNI-DN-") {
			return nil, nil, err
		}
		for _, c := range portChains {
			if strings.HasPrefix(l, ":"+c+" ") {
				chains = append(chains, c)
			}
			if strings.HasPrefix(l, "-A ") && strings.HasSuffix(l, " -j "+c) && !strings.HasPrefix(l, "-A CNI-") {
				rules = append(rules, l)
			}
		}
	}
	return rules, chains, err
}

// lockHost keeps other agents of this network namespace from choosing a bridge
// and a range at the same moment. The lock is an abstract socket: it leaves
// nothing behind, however its holder ends.
func lockHost() (unlock func(), err error) {
	deadline := time.Now().Add(ruleTimeout)
	for {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@berth/cni/choice", Net: "unixgram"})
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		if time.Now().After(deadline) {
			return nil, fmt.Errorf("another agent has been setting up its network for %s: %w", ruleTimeout, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

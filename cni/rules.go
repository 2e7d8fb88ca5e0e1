package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
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

// natRules lists the rules of the nat table.
func natRules(ctx context.Context, tool string) ([]string, error) {
	return listRules(ctx, tool, "-t", "nat")
}

// listRules lists rules; none if the tool is not there, because then no plugin
// can have made one.
func listRules(ctx context.Context, tool string, args ...string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	cmd := exec.CommandContext(ctx, find(tool+"-save"), args...)
	cmd.WaitDelay = time.Second
	failpoint.Hit("cni/rules-list")
	out, err := cmd.Output()
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("list the rules of %s: %w", tool, err)
	}
	return strings.Split(string(out), "\n"), nil
}

// strayPorts returns, for one family, the rules of host ports that lead into
// one of subnets, for a sandbox that is not in held, and the chains that they
// lead through. Another agent's network has other subnets. held is asked after
// the rules were listed, and each has a record before it has a rule.
func strayPorts(ctx context.Context, tool string, subnets []string, held func() (map[string]bool, error)) (rules, chains []string, err error) {
	lines, err := natRules(ctx, tool)
	if err != nil {
		return nil, nil, err
	}
	all, err := held()
	if err != nil {
		return nil, nil, err
	}
	ours := map[string]bool{}
	for _, l := range lines {
		if m := portTarget.FindStringSubmatch(l); m != nil && within(m[2], subnets) {
			ours[m[1]] = true
		}
	}
	for _, l := range lines {
		if m := portRule.FindStringSubmatch(l); m != nil && m[1] == ownName && !all[m[2]] && ours[m[3]] {
			rules, chains = append(rules, l), append(chains, m[3])
		}
	}
	return rules, chains, nil
}

// within: target, "1.2.3.4:80" or "[fd00::1]:80", lies in one of subnets.
func within(target string, subnets []string) bool {
	a, err := netip.ParseAddrPort(target)
	return err == nil && slices.ContainsFunc(subnets, func(s string) bool {
		p, err := netip.ParsePrefix(s)
		return err == nil && p.Contains(a.Addr())
	})
}

// sweepPorts removes the rules of this network's host ports that no sandbox has:
// what is left when an attachment's record was lost.
func (o *ownNetwork) sweepPorts(ctx context.Context, held func() (map[string]bool, error)) error {
	var errs []error
	for _, tool := range families {
		rules, chains, err := strayPorts(ctx, tool, o.inUse(), held)
		if len(rules) > 0 {
			if err = dropRules(ctx, tool, rules, chains); err != nil {
				// All or nothing: a DEL may have removed one of them meanwhile.
				if left, _, e := strayPorts(ctx, tool, o.inUse(), held); e == nil && len(left) == 0 {
					err = nil
				}
			}
		}
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// dropRules deletes nat rules, given as iptables-save shows them, and then chains.
func dropRules(ctx context.Context, tool string, rules, chains []string) error {
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
	return iptables(ctx, tool+"-restore", b.String(), "-w", "10", "--noflush")
}

// dropPortChains removes the portmap plugin's own chains if no sandbox of any
// runtime uses them: the plugin makes them again when it needs them. One that
// begins to use them meanwhile keeps them: the removal is all or nothing.
func dropPortChains(ctx context.Context) error {
	var errs []error
	for _, tool := range families {
		rules, chains, err := idlePortChains(ctx, tool)
		if err == nil && len(chains) > 0 {
			if err = dropRules(ctx, tool, rules, chains); err != nil {
				if _, again, e := idlePortChains(ctx, tool); e == nil && len(again) == 0 {
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
func idlePortChains(ctx context.Context, tool string) (rules, chains []string, err error) {
	all, err := natRules(ctx, tool)
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
func lockHost(ctx context.Context) (unlock func(), err error) {
	ctx, cancel := context.WithTimeout(ctx, ruleTimeout)
	defer cancel()
	for {
		l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "@berth/cni/choice", Net: "unixgram"})
		if err == nil {
			return func() { _ = l.Close() }, nil
		}
		select {
		case <-time.After(20 * time.Millisecond):
		case <-ctx.Done():
			return nil, fmt.Errorf("another agent is setting up its network: %w (%w)", err, ctx.Err())
		}
	}
}

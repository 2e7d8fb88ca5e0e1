package cni

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// alone runs the test that calls it again in a network namespace of its own,
// where it may flush what it likes, beside others; it returns true in there.
func alone(t *testing.T, env ...string) bool {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces and a bridge")
	}
	if os.Getenv("CNI_TEST_ALONE") == t.Name() {
		return true
	}
	t.Parallel()
	cmd := exec.Command("unshare", "--net", os.Args[0], "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=3m")
	cmd.Env = append(append(os.Environ(), env...), "CNI_TEST_ALONE="+t.Name())
	out, err := cmd.CombinedOutput()
	if err != nil || !strings.Contains(string(out), "--- PASS: "+t.Name()) {
		t.Errorf("%v\n%s", err, out)
	}
	return false
}

// ping from sandbox r, or from the host if it is nil.
func ping(r *Request, ip string) error {
	args := []string{"/bin/busybox", "ping", "-c", "1", "-W", "2", ip}
	if r != nil {
		args = append([]string{"ip", "netns", "exec", r.SandboxID}, args...)
	}
	out, err := exec.Command(args[0], args[1:]...).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ping %s: %w: %s", ip, err, out)
	}
	return nil
}

// TestHeals: the default network puts back what others take from it: all rules,
// those of pods' host ports too, the bridge's addresses, forwarding.
func TestHeals(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	n := open(t, func(c *Config) { c.Period = 50 * time.Millisecond })
	pod, other := sandbox(t, "pod"), sandbox(t, "other")
	pod.PortMappings = []PortMapping{{HostPort: 18380, ContainerPort: 80, Protocol: "tcp"}}
	res := add(t, n, pod)
	add(t, n, other)
	serveHTTP(t, pod, "80")
	if err := dial("127.0.0.1:18380"); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx, func() []string { return []string{pod.SandboxID, other.SandboxID} }) }()
	defer func() { cancel(); <-done }()
	bridge := n.own.stored().Bridge
	works := func() bool {
		c := n.own.stored()
		rules, err := allRules(t.Context(), c)
		x, _ := n.records.peek(pod.SandboxID)
		return err == nil && missingLinks(c) == "" && missingRules(c, rules) == "" && published(x, rules)
	}
	eventually(t, "whole", works)
	gateway6 := ""
	if len(res.IPs) > 1 {
		gateway6 = gateway(n.own.inUse()[1]).String()
	}
	for what, damage := range map[string][][]string{
		"all rules of nat":    {{"iptables", "-t", "nat", "-F"}, {"iptables", "-t", "nat", "-X"}},
		"all rules of filter": {{"iptables", "-F"}},
		"IPv6 too":            {{"ip6tables", "-t", "nat", "-F"}, {"ip6tables", "-F"}, {"iptables", "-t", "nat", "-F"}},
		"nftables":            {{"nft", "flush", "ruleset"}},
		"addresses":           {{"ip", "address", "flush", "dev", bridge, "scope", "global"}},
		"forwarding":          {{"sysctl", "-qw", "net.ipv4.ip_forward=0"}},
		"the bridge is down":  {{"ip", "link", "set", bridge, "down"}},
		"the bridge is gone":  {{"ip", "link", "delete", bridge}},
	} {
		for _, d := range damage {
			if _, err := exec.LookPath(d[0]); err != nil {
				t.Logf("%s: no %s here", what, d[0])
				continue
			}
			if out, err := exec.Command(d[0], d[1:]...).CombinedOutput(); err != nil {
				t.Fatalf("%v: %v: %s", d, err, out)
			}
		}
		eventually(t, what+" is put back", works)
		eventually(t, what+": the pod is reached", func() bool { return ping(&other, res.IPs[0]) == nil })
		if err := dial("127.0.0.1:18380"); err != nil {
			t.Errorf("%s: the host port: %v", what, err)
		}
		if err := ping(&other, res.IPs[0]); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if gateway6 != "" {
			if err := dial(net.JoinHostPort(strings.Split(gateway6, "/")[0], "18380")); err != nil {
				t.Errorf("%s: the host port by IPv6: %v", what, err)
			}
		}
	}
	eventually(t, "an idle network lists no rules any more", func() bool {
		n.choosing.Lock()
		defer n.choosing.Unlock()
		return n.own.seen.whole
	})
}

// TestIPv6Disabled: on a host that keeps IPv6 from its interfaces, no such range
// is chosen; one that is assigned works.
func TestIPv6Disabled(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	for _, which := range []string{"all", "default"} {
		put(t, "/proc/sys/net/ipv6/conf/"+which+"/disable_ipv6", "1")
	}
	n := open(t, nil)
	if ips := add(t, n, sandbox(t, "four")).IPs; len(ips) != 1 || strings.Contains(ips[0], ":") {
		t.Errorf("addresses %v", ips)
	}
	if err := n.SetPodRanges(t.Context(), []string{"10.79.1.0/24", "fd00:79::/64"}); err != nil {
		t.Fatal(err)
	}
	a, b := sandbox(t, "a"), sandbox(t, "b")
	add(t, n, a)
	for _, ip := range add(t, n, b).IPs {
		if err := ping(&a, ip); err != nil {
			t.Error(err)
		}
		if err := ping(nil, ip); err != nil {
			t.Error(err)
		}
	}
}

// TestHostPorts: each protocol, host address and family, with both sets of plugins.
func TestHostPorts(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	run(t, "ip", "link", "add", "out0", "type", "veth", "peer", "name", "out1")
	run(t, "ip", "link", "set", "out1", "up")
	run(t, "ip", "link", "set", "out0", "up")
	run(t, "ip", "address", "add", "192.0.2.1/24", "dev", "out0")
	run(t, "ip", "address", "add", "2001:db8::1/64", "dev", "out0", "nodad")
	for set, dir := range sets(t) {
		t.Run(set, func(t *testing.T) {
			n := open(t, func(c *Config) { c.BinDirs, c.Subnets = []string{dir}, []string{"10.80.1.0/24", "fd00:80::/64"} })
			r := sandbox(t, "web")
			for i, ip := range []string{"", "0.0.0.0", "::", "192.0.2.1", "2001:db8::1"} {
				r.PortMappings = append(r.PortMappings, PortMapping{HostPort: int32(18400 + i), ContainerPort: 80, Protocol: "tcp", HostIP: ip})
			}
			r.PortMappings = append(r.PortMappings, PortMapping{HostPort: 18400, ContainerPort: 5353, Protocol: "udp"}, PortMapping{HostPort: 18400, ContainerPort: 36412, Protocol: "sctp"})
			add(t, n, r)
			serveHTTP(t, r, "80")
			for port, answers := range map[int]map[string]bool{
				18400: {"192.0.2.1": true, "2001:db8::1": true, "127.0.0.1": true},
				18401: {"192.0.2.1": true, "2001:db8::1": false, "127.0.0.1": true},
				18402: {"192.0.2.1": false, "2001:db8::1": true},
				18403: {"192.0.2.1": true, "2001:db8::1": false, "127.0.0.1": false},
				18404: {"192.0.2.1": false, "2001:db8::1": true},
			} {
				for ip, want := range answers {
					addr := net.JoinHostPort(ip, fmt.Sprint(port))
					var err error
					if want {
						err = dial(addr)
					} else if c, e := net.DialTimeout("tcp", addr, time.Second); e != nil {
						err = e
					} else {
						c.Close()
					}
					if (err == nil) != want {
						t.Errorf("%s answers %v, want %v", addr, err, want)
					}
				}
			}
			for _, tool := range []string{"iptables-save", "ip6tables-save"} {
				rules := run(t, tool, "-t", "nat")
				for _, want := range []string{"-p udp -m udp --dport 18400 -j DNAT", "-p sctp -m sctp --dport 18400 -j DNAT"} {
					if !strings.Contains(rules, want) {
						t.Errorf("%s is not among the rules of %s:\n%s", want, tool, rules)
					}
				}
			}
			if err := n.Delete(t.Context(), r); err != nil {
				t.Error(err)
			}
			noLeaks(t, n)
		})
	}
}

// TestPodRanges: assigned ranges make the default network anew for new pods, of
// one family or both; pods of before go on, and their bridge goes with them.
func TestPodRanges(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	n := open(t, func(c *Config) { c.BootDir = filepath.Join(t.TempDir(), "boot") })
	old := sandbox(t, "old")
	oldIPs := add(t, n, old).IPs
	oldBridge := n.own.stored().Bridge
	set := func(n *Network, ranges ...string) {
		t.Helper()
		if err := n.SetPodRanges(t.Context(), ranges); err != nil {
			t.Fatal(err)
		}
	}
	set(n, "fd00:77:1::/64", " 10.77.1.0/24")
	if again, err := Open(n.cfg); err != nil || !slices.Equal(again.own.inUse()[:2], []string{"fd00:77:1::/64", "10.77.1.0/24"}) {
		t.Errorf("after a restart: %v, %v", again.own.inUse(), err)
	} else {
		n = again
	}
	dual := sandbox(t, "dual")
	dual.PortMappings = []PortMapping{{HostPort: 18381, ContainerPort: 80, Protocol: "tcp"}}
	dualIPs := add(t, n, dual).IPs
	if len(dualIPs) != 2 || !strings.HasPrefix(dualIPs[0], "fd00:77:1:") || !strings.HasPrefix(dualIPs[1], "10.77.1.") {
		t.Errorf("addresses %v", dualIPs)
	}
	serveHTTP(t, dual, "80")
	for _, target := range []string{"127.0.0.1:18381", "10.77.1.1:18381", "[fd00:77:1::1]:18381", net.JoinHostPort(dualIPs[0], "80")} {
		if err := dial(target); err != nil {
			t.Errorf("%s: %v", target, err)
		}
	}
	for _, ip := range dualIPs {
		if err := ping(&old, ip); err != nil {
			t.Errorf("from a pod of before: %v", err)
		}
	}
	for _, ip := range oldIPs {
		if err := ping(&dual, ip); err != nil {
			t.Errorf("to a pod of before: %v", err)
		}
	}
	unchanged(t, n, func() { set(n, "fd00:77:1::/64", "10.77.1.0/24") })
	// Pods of a range that is no more are released with what they were attached with.
	if err := n.Delete(t.Context(), old); err != nil {
		t.Fatal(err)
	}
	if err := n.GC(t.Context(), func() []string { return []string{dual.SandboxID} }); err != nil {
		t.Fatal(err)
	}
	if rules := run(t, "iptables-save") + run(t, "ip6tables-save"); strings.Contains(rules, chain(oldBridge)) || exec.Command("ip", "link", "show", oldBridge).Run() == nil {
		t.Errorf("what is left of %s:\n%s", oldBridge, rules)
	}
	// The same range, larger: the gateway stays, and so do pods.
	set(n, "10.77.0.0/16", "fd00:77:1::/64")
	grown := sandbox(t, "grown")
	grownIPs := add(t, n, grown).IPs
	if !strings.HasPrefix(grownIPs[0], "10.77.") {
		t.Errorf("addresses %v", grownIPs)
	}
	set(n, "fd00:77:2::/64")
	six := sandbox(t, "six")
	sixIPs := add(t, n, six).IPs
	if len(sixIPs) != 1 || !strings.HasPrefix(sixIPs[0], "fd00:77:2:") {
		t.Errorf("addresses %v", sixIPs)
	}
	if err := ping(nil, sixIPs[0]); err != nil {
		t.Error(err)
	}
	set(n, "10.78.0.0/30")
	four := sandbox(t, "four")
	if fourIPs := add(t, n, four).IPs; !slices.Equal(fourIPs, []string{"10.78.0.2"}) {
		t.Errorf("addresses %v", fourIPs)
	}
	if leaks, err := n.Audit(t.Context(), []string{dual.SandboxID, grown.SandboxID, six.SandboxID, four.SandboxID}); err != nil || len(leaks) > 0 {
		t.Errorf("%v, %v", leaks, err)
	}
}

// unchanged sees that f writes nothing below n's directories.
func unchanged(t *testing.T, n *Network, f func()) {
	t.Helper()
	state := func() (out []string) {
		for _, dir := range []string{n.cfg.Dir, n.cfg.BootDir} {
			filepath.Walk(dir, func(path string, i os.FileInfo, err error) error {
				if err == nil {
					out = append(out, fmt.Sprint(path, i.ModTime(), i.Size()))
				}
				return err
			})
		}
		return out
	}
	before := state()
	f()
	if after := state(); !slices.Equal(before, after) {
		t.Errorf("something was written:\n%v\n%v", before, after)
	}
}

// TestBadPodRanges: each is refused with the reason, and nothing changes.
func TestBadPodRanges(t *testing.T) {
	n := open(t, nil)
	unchanged(t, n, func() {
		for text, want := range map[string]string{
			"10.1.0.0":                  "not a CIDR",
			"10.1.0.0/33":               "not a CIDR",
			"":                          "not a CIDR",
			"10.1.0.0/24,10.2.0.0/24":   "of one family",
			"fd00::/64,fd01::/64":       "of one family",
			"10.1.0.0/31":               "no room",
			"fd00::/127":                "no room",
			"0.0.0.0/0":                 "cannot have such addresses",
			"127.0.0.0/8":               "cannot have such addresses",
			"fe80::/64":                 "cannot have such addresses",
			"ff00::/64":                 "cannot have such addresses",
			"::ffff:10.0.0.0/120":       "cannot have such addresses",
			"10.0.0.0/4":                "larger than",
			"10.1.0.0/24,fd00::/64,x":   "not a CIDR",
			"10.1.0.0/24; rm -rf /,a/b": "not a CIDR",
		} {
			if err := n.SetPodRanges(t.Context(), strings.Split(text, ",")); CodeOf(err) != InvalidConf || !strings.Contains(err.Error(), want) {
				t.Errorf("%q: %v, want %q", text, err, want)
			}
		}
		if err := n.SetPodRanges(t.Context(), nil); CodeOf(err) != InvalidConf {
			t.Errorf("none: %v", err)
		}
	})
}

// TestRangesLeftAlone: a configuration of the node's own, and configured ranges,
// come before assigned ones; the log says so and nothing is written.
func TestRangesLeftAlone(t *testing.T) {
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	mine := withConf(t, "10.conflist", `{"cniVersion":"1.0.0","name":"NAME","plugins":[{"type":"loopback"}]}`, func(c *Config) { c.Log = logger })
	configured := open(t, func(c *Config) { c.Subnets, c.Log = []string{"10.215.3.0/24"}, logger })
	for n, want := range map[*Network]string{mine: "left to its network configuration", configured: "others are configured"} {
		log.Reset()
		unchanged(t, n, func() {
			if err := n.SetPodRanges(t.Context(), []string{"10.99.0.0/24"}); err != nil {
				t.Error(err)
			}
		})
		if !strings.Contains(log.String(), want) || !strings.Contains(log.String(), "10.99.0.0/24") {
			t.Errorf("the log says: %s", &log)
		}
	}
}

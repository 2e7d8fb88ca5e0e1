package cni

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// newest is the directory of the plugins 1.9.1, which speak CNI 1.1, built from
// the Go proxy where they are not there yet.
func newest(t testing.TB) string {
	t.Helper()
	dir := os.Getenv("BERTH_PEER_DIR")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			t.Fatal(err)
		}
		dir = filepath.Join(home, ".cache", "berth-peer")
	}
	if out, err := exec.Command("../test/peer/build.sh", "plugins").CombinedOutput(); err != nil {
		t.Skipf("the plugins 1.9.1 cannot be built: %v: %s", err, out)
	}
	return filepath.Join(dir, "bin")
}

// sets are the directories of both sets of plugins, by version.
func sets(t testing.TB) map[string]string {
	return map[string]string{"1.1.1": "/usr/lib/cni", "1.9.1": newest(t)}
}

// withConf opens a network with one configuration file; NAME, and BRIDGE and LEASES
// for its bridge, in body are replaced. The bridge goes with the test.
func withConf(t *testing.T, file, body string, change func(*Config)) *Network {
	t.Helper()
	var bridge string
	n := open(t, func(c *Config) {
		name := fmt.Sprintf("t%d%s", os.Getpid()%100000, strings.ToLower(fmt.Sprintf("%x", time.Now().UnixNano()%0xfffff)))
		bridge = "cb" + name[1:]
		body = strings.NewReplacer("NAME", name, "BRIDGE", bridge, "LEASES", filepath.Join(filepath.Dir(c.Dir), "leases")).Replace(body)
		if err := os.MkdirAll(c.ConfDirs[0], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(c.ConfDirs[0], file), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		if change != nil {
			change(c)
		}
	})
	t.Cleanup(func() { exec.Command("ip", "link", "delete", bridge).Run() })
	return n
}

// chainConf is a chain of six programs for both families; the first address is of IPv6.
const chainConf = `{"cniVersion":"VERSION","name":"NAME","plugins":[
 {"type":"bridge","bridge":"BRIDGE","isGateway":true,"isDefaultGateway":true,"hairpinMode":true,"ipMasq":true,
  "ipam":{"type":"host-local","dataDir":"LEASES","ranges":[[{"subnet":"fd09:bead:1:THIRD::/64"}],[{"subnet":"10.211.THIRD.0/24"}]]}},
 {"type":"tuning","capabilities":{"mac":true}},
 {"type":"firewall","backend":"iptables"},
 {"type":"portmap","capabilities":{"portMappings":true},"snat":true},
 {"type":"bandwidth","capabilities":{"bandwidth":true}}]}`

// TestChains: chains of real plugins of both sets, for every version of CNI,
// carry both families from pod to pod and from the host to host ports, limit
// bandwidth, are checked, and leave nothing.
func TestChains(t *testing.T) {
	third := os.Getpid() % 200
	for set, dir := range sets(t) {
		for _, v := range []string{"0.3.1", "0.4.0", "1.0.0", "1.1.0"} {
			if third++; set == "1.1.1" && v == "1.1.0" {
				continue // told by TestVersions
			}
			t.Run(set+" "+v, func(t *testing.T) {
				conf := strings.NewReplacer("VERSION", v, "THIRD", fmt.Sprint(third)).Replace(chainConf)
				if v == "0.3.1" { // the firewall plugin speaks 0.4.0 and newer
					conf = strings.Replace(conf, `{"type":"firewall","backend":"iptables"},`, "", 1)
				}
				n := withConf(t, "10.conflist", conf, func(c *Config) { c.BinDirs = []string{dir} })
				// CHECK came with 0.4.0; that of portmap 1.1.1 takes ports of two families for an error.
				aliveChain(t, n, third, v != "0.3.1" && set != "1.1.1")
			})
		}
	}
}

func aliveChain(t *testing.T, n *Network, third int, check bool) {
	port := 20000 + third
	a, b := sandbox(t, "a"), sandbox(t, "b")
	b.PortMappings = []PortMapping{{HostPort: int32(port), ContainerPort: 80, Protocol: "tcp"}, {HostPort: int32(port), ContainerPort: 81, Protocol: "udp"}}
	b.Bandwidth = &Bandwidth{IngressRate: 10e6, IngressBurst: 1 << 32 >> 1, EgressRate: 20e6, EgressBurst: 1 << 32 >> 1}
	add(t, n, a)
	rb := add(t, n, b)
	if len(rb.IPs) != 2 || !strings.Contains(rb.IPs[0], ":") || strings.Contains(rb.IPs[1], ":") {
		t.Fatalf("addresses %v: the configuration's first family is IPv6", rb.IPs)
	}
	for _, ip := range rb.IPs {
		if out, err := in(a, "/bin/busybox", "ping", "-c", "1", "-W", "3", ip); err != nil {
			t.Errorf("ping %s: %v: %s", ip, err, out)
		}
	}
	if out, err := in(b, "/bin/busybox", "ping", "-c", "1", "-W", "3", "::1"); err != nil {
		t.Errorf("loopback: %v: %s", err, out)
	}
	serveHTTP(t, b, "80")
	for _, ip := range append(hostAddresses(t), fmt.Sprintf("10.211.%d.1", third), fmt.Sprintf("fd09:bead:1:%d::1", third)) {
		if err := dial(net.JoinHostPort(ip, fmt.Sprint(port))); err != nil {
			t.Errorf("host port at %s: %v", ip, err)
		}
	}
	if qdiscs := run(t, "tc", "qdisc"); strings.Count(qdiscs, "rate 10Mbit")+strings.Count(qdiscs, "rate 20Mbit") < 2 {
		t.Errorf("bandwidth is not limited:\n%s", qdiscs)
	}
	if check {
		if err := n.Check(t.Context(), b); err != nil {
			t.Errorf("check: %v", err)
		}
	}
	for _, r := range []Request{b, a, b} {
		if err := n.Delete(t.Context(), r); err != nil {
			t.Errorf("delete: %v", err)
		}
	}
	nothingLeft(t, n, rb.IPs)
}

func serveHTTP(t *testing.T, r Request, port string) {
	t.Helper()
	serve := exec.Command("ip", "netns", "exec", r.SandboxID, "/bin/busybox", "httpd", "-f", "-p", port, "-h", t.TempDir())
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { serve.Process.Kill(); serve.Wait() })
}

// hostAddresses are 127.0.0.1 and, of each family, an address of the host beyond
// loopback that is not one of a bridge's.
func hostAddresses(t *testing.T) []string {
	t.Helper()
	out := []string{"127.0.0.1"}
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	have := map[bool]bool{}
	for _, l := range links {
		if l.Flags&net.FlagLoopback != 0 || l.Flags&net.FlagUp == 0 {
			continue
		}
		addrs, _ := l.Addrs()
		for _, a := range addrs {
			p, err := netip.ParsePrefix(a.String())
			if err != nil || p.Addr().IsLinkLocalUnicast() || have[p.Addr().Is4()] {
				continue
			}
			have[p.Addr().Is4()] = true
			out = append(out, p.Addr().String())
		}
	}
	return out
}

// nothingLeft looks for records, cached answers, leases, and rules of addresses.
func nothingLeft(t *testing.T, n *Network, ips []string) {
	t.Helper()
	noLeaks(t, n)
	if left, _ := os.ReadDir(filepath.Join(n.cfg.Dir, "cache", "results")); len(left) > 0 {
		t.Errorf("cached answers are left: %v", left)
	}
	leases, _ := filepath.Glob(filepath.Join(filepath.Dir(n.cfg.Dir), "leases", "*", "*"))
	leases = slices.DeleteFunc(leases, func(p string) bool { _, err := netip.ParseAddr(filepath.Base(p)); return err != nil })
	if len(leases) > 0 {
		t.Errorf("addresses are left: %v", leases)
	}
	rules := run(t, "iptables-save") + run(t, "ip6tables-save")
	for _, ip := range ips {
		if strings.Contains(rules, " "+ip+"/") || strings.Contains(rules, " "+ip+":") || strings.Contains(rules, "["+ip+"]") {
			t.Errorf("rules of %s are left:\n%s", ip, rules)
		}
	}
}

// TestVersions: the newest version that a configuration offers and its plugins
// speak is used, for the attachment's whole life; one that they do not speak is
// told before any pod fails.
func TestVersions(t *testing.T) {
	for set, want := range map[string]string{"1.1.1": "1.0.0", "1.9.1": "1.1.0"} {
		t.Run(set, func(t *testing.T) {
			conf := `{"cniVersions":["0.3.1","1.1.0","9.9.9","1.0.0"],"name":"NAME","disableCheck":"true","plugins":[{"type":"bridge","bridge":"BRIDGE",
			 "ipam":{"type":"host-local","dataDir":"LEASES","ranges":[[{"subnet":"10.212.1.0/24"}]]}}]}`
			n := withConf(t, "10.conflist", conf, func(c *Config) { c.BinDirs = []string{sets(t)[set]} })
			r := sandbox(t, "a")
			res := add(t, n, r)
			x, err := n.records.read(r.SandboxID)
			if err != nil {
				t.Fatal(err)
			}
			var c map[string]any
			if err := json.Unmarshal(x.Conflist, &c); err != nil || c["cniVersion"] != want || c["cniVersions"] != nil || c["disableCheck"] != "true" {
				t.Errorf("the recorded configuration is of %v, want %s: %s", c["cniVersion"], want, x.Conflist)
			}
			if err := n.Delete(t.Context(), r); err != nil {
				t.Error(err)
			}
			nothingLeft(t, n, res.IPs)
		})
	}
	t.Run("too new", func(t *testing.T) {
		n := open(t, nil)
		n.cfg.BinDirs = []string{"/usr/lib/cni"}
		body := `{"cniVersion":"1.1.0","name":"new","plugins":[{"type":"bridge","ipam":{"type":"host-local"}}]}`
		if err := os.MkdirAll(n.cfg.ConfDirs[0], 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(n.cfg.ConfDirs[0], "10.conflist"), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		n.reload(t.Context())
		n.refresh(t.Context())
		if err := n.Status(t.Context()); CodeOf(err) != InvalidConf || !strings.Contains(err.Error(), `network "new"`) || !strings.Contains(err.Error(), "1.0.0 and the configuration") {
			t.Errorf("status: %v", err)
		}
	})
}

// TestPluginDirectory: plugins in files beside the conflist belong to the chain,
// unless the conflist says that only its own do; the record holds them all.
func TestPluginDirectory(t *testing.T) {
	for only, want := range map[bool]int{false: 2, true: 1} {
		dir := t.TempDir()
		body := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"side","loadOnlyInlinedPlugins":%v,"plugins":[{"type":"a"}]}`, only)
		if err := os.WriteFile(filepath.Join(dir, "10.conflist"), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Mkdir(filepath.Join(dir, "side"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "side", "b.conf"), []byte(`{"type":"b"}`), 0o644); err != nil {
			t.Fatal(err)
		}
		n, problems := load([]string{dir})
		if len(problems) > 0 || len(n.list.Plugins) != want || strings.Count(string(n.list.Bytes), `"type"`) != want {
			t.Errorf("only inlined %v: %+v, %v", only, n, problems)
		}
	}
}

// TestOddFiles: what is no regular file, or no network, is passed over with its name.
func TestOddFiles(t *testing.T) {
	dir := t.TempDir()
	run(t, "mkfifo", filepath.Join(dir, "00-fifo.conflist"))
	run(t, "mkdir", filepath.Join(dir, "01-dir.conf"))
	for name, body := range map[string]string{
		"02-name.conflist":     `{"cniVersion":"1.0.0","name":"../up","plugins":[{"type":"a"}]}`,
		"03-versions.conflist": `{"cniVersions":["7.0.0"],"name":"v","plugins":[{"type":"a"}]}`,
		"04-large.conflist":    strings.Repeat(" ", confLimit+1),
		"05-good.conf":         `{"cniVersion":"0.3.1","name":"good","type":"a"}`,
		"06-later.conflist":    `{"cniVersion":"1.0.0","name":"later","plugins":[{"type":"a"}]}`,
		"07-not.a-conf":        `{`,
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n, problems := load([]string{filepath.Join(dir, "missing"), dir})
	if n == nil || n.list.Name != "good" || n.list.CNIVersion != "0.3.1" || len(problems) != 5 {
		t.Errorf("%+v, %v", n, problems)
	}
	for i, p := range problems {
		if !strings.Contains(p.Error(), fmt.Sprintf("/0%d-", i)) {
			t.Errorf("problem %d: %v", i, p)
		}
	}
}

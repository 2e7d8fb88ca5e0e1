package cni

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestLeftovers: what a DEL that was cut off, or the end of the network
// namespace, keeps the bridge plugin from finding is removed by the next DEL; and
// what an iptables adds that outlived its plugin.
func TestLeftovers(t *testing.T) {
	if !alone(t) {
		return
	}
	run(t, "ip", "link", "set", "lo", "up")
	conf := strings.NewReplacer("VERSION", "1.0.0", "THIRD", "7").Replace(chainConf)
	for set, bin := range sets(t) {
		t.Run(set, func(t *testing.T) {
			cutOff(t, withConf(t, "10.conflist", conf, func(c *Config) { c.BinDirs = []string{bin} }))
		})
	}
}

func cutOff(t *testing.T, n *Network) {
	add(t, n, sandbox(t, "first")) // makes what stays: the plugins' own chains
	network, _ := n.Name()
	r, other := sandbox(t, "victim"), sandbox(t, "other")
	add(t, n, other)
	clean := rulesNow(t)
	swept := func(how string) {
		t.Helper()
		if now := rulesNow(t); now != clean {
			t.Errorf("%s: rules:\n%s\ninstead of\n%s", how, now, clean)
		}
		noRecord(t, n, r)
	}

	// Cut off between the removal of the interface and that of the rules.
	add(t, n, r)
	x, err := n.records.peek(r.SandboxID)
	if err != nil || x == nil || x.Undoing {
		t.Fatalf("%+v, %v", x, err)
	}
	n.mark(x)
	run(t, "ip", "-n", r.SandboxID, "link", "delete", "eth0")
	if err := n.Delete(t.Context(), r); err != nil {
		t.Error(err)
	}
	swept("after a DEL that was cut off")

	// An iptables of a killed ADD is still at work.
	x.Undoing, x.IPs = false, nil
	if err := n.records.write(x, false); err != nil {
		t.Fatal(err)
	}
	chain := hashed(28, "CNI-", network+r.SandboxID)
	late := exec.Command("sh", "-c", fmt.Sprintf("sleep 0.3; ip6tables -t nat -N %s && ip6tables -t nat -A POSTROUTING -s fd09::1 -j %s", chain, chain))
	late.Env = append(os.Environ(), "CNI_CONTAINERID="+r.SandboxID)
	if err := late.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- late.Wait() }()
	if err := n.Delete(t.Context(), r); err != nil {
		t.Error(err)
	}
	if err := <-ended; err != nil {
		t.Error(err)
	}
	swept("beside an iptables that outlived its plugin")
}

// noRecord sees that nothing tells of r any more.
func noRecord(t *testing.T, n *Network, r Request) {
	t.Helper()
	if x, err := n.records.peek(r.SandboxID); err != nil || x != nil {
		t.Errorf("the record: %+v, %v", x, err)
	}
}

// TestLeftoversWithoutNamespace: the bridge plugin undoes no masquerading once
// the network namespace is gone.
func TestLeftoversWithoutNamespace(t *testing.T) {
	if !alone(t) {
		return
	}
	n := withConf(t, "10.conflist", strings.NewReplacer("VERSION", "1.0.0", "THIRD", "8").Replace(chainConf), func(c *Config) { c.BinDirs = []string{newest(t)} })
	r := sandbox(t, "victim")
	add(t, n, r)
	network, _ := n.Name()
	chain := hashed(28, "CNI-", network+r.SandboxID)
	if rules := rulesNow(t); strings.Count(rules, "-j "+chain) != 2 {
		t.Fatalf("no rules lead to %s:\n%s", chain, rules)
	}
	run(t, "ip", "netns", "delete", r.SandboxID)
	if err := n.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	if rules := rulesNow(t); strings.Contains(rules, chain) {
		t.Errorf("left behind:\n%s", rules)
	}
	noRecord(t, n, r)
}

// TestStraysForEver: a daemon that a plugin left holds up no DEL, and lives on.
func TestStraysForEver(t *testing.T) {
	n := open(t, nil)
	r := sandbox(t, "daemon")
	daemon := exec.Command("sleep", "1000")
	daemon.Env = []string{"CNI_CONTAINERID=" + r.SandboxID}
	if err := daemon.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { daemon.Process.Kill(); daemon.Wait() }()
	if err := n.records.write(&attachment{Request: r, Owned: true, Conflist: n.current.Load().list.Bytes}, false); err != nil {
		t.Fatal(err)
	}
	began := time.Now()
	if err := n.Delete(t.Context(), r); err != nil {
		t.Error(err)
	}
	if took := time.Since(began); took < strayTime || took > 10*time.Second {
		t.Errorf("it took %s", took)
	}
	if got := strays(r.SandboxID); len(got) != 1 || got[0] != daemon.Process.Pid {
		t.Errorf("strays %v, want %d", got, daemon.Process.Pid)
	}
}

// TestLeftoversOfNftables: only the sandbox's own rules go, by their handles; a
// host without the table has none.
func TestLeftoversOfNftables(t *testing.T) {
	// The plugins' own test names this hash for eth0 of container "two".
	mark := hashed(16, "", "unit-test") + "-" + hashed(16, "", "eth0:two")
	if want := "6fd94d501e58f0aa-d750b2c8f0f25d5f"; mark != want {
		t.Errorf("%s instead of %s", mark, want)
	}
	bin := t.TempDir()
	log := filepath.Join(bin, "log")
	t.Setenv("PATH", bin+":"+os.Getenv("PATH"))
	list := "table inet cni_plugins_masquerade {\n\tchain masq_checks { # handle 1\n" +
		"\t\tip saddr 10.0.0.2 ip daddr != 10.0.0.0/24 masquerade comment \"" + mark + ", net: unit-test, if: eth0, id: two\" # handle 7\n" +
		"\t\tip saddr 10.0.0.3 ip daddr != 10.0.0.0/24 masquerade comment \"6fd94d501e58f0aa-287fc69eff0574a2, net: unit-test, if: eth0, id: one\" # handle 8\n\t}\n}\n"
	put(t, filepath.Join(bin, "list"), list)
	script(t, bin, "nft", "echo \"$*\" >> "+log+"\ncase $1 in -a) cat "+filepath.Join(bin, "list")+";; esac\n")
	if err := dropMasqueradeNft(t.Context(), mark); err != nil {
		t.Error(err)
	}
	body, _ := os.ReadFile(log)
	if want := "-a list chain inet cni_plugins_masquerade masq_checks\ndelete rule inet cni_plugins_masquerade masq_checks handle 7\n"; string(body) != want {
		t.Errorf("nft was called with\n%s", body)
	}
	script(t, bin, "nft", "echo 'Error: No such file or directory' >&2; exit 1")
	if err := dropMasqueradeNft(t.Context(), mark); err != nil {
		t.Error(err)
	}
	script(t, bin, "nft", "echo 'Error: out of order' >&2; exit 1")
	if err := dropMasqueradeNft(t.Context(), mark); err == nil || !strings.Contains(err.Error(), "out of order") {
		t.Errorf("got %v", err)
	}
}

package cni

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func run(t *testing.T, program string, args ...string) string {
	t.Helper()
	out, err := exec.Command(program, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v: %s", program, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestOutside: a machine beyond the host reaches a pod's host port, and sees
// what a pod sends as coming from the host.
func TestOutside(t *testing.T) {
	n := open(t, nil)
	far, veth := fmt.Sprintf("cnif-%d", os.Getpid()), fmt.Sprintf("cf%d", os.Getpid()%100000)
	net := fmt.Sprintf("198.18.%d", os.Getpid()%250)
	run(t, "ip", "netns", "add", far)
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", far).Run() })
	run(t, "ip", "link", "add", veth, "type", "veth", "peer", "name", "eth0", "netns", far)
	run(t, "ip", "address", "add", net+".1/24", "dev", veth)
	run(t, "ip", "link", "set", veth, "up")
	run(t, "ip", "-n", far, "address", "add", net+".2/24", "dev", "eth0")
	run(t, "ip", "-n", far, "link", "set", "eth0", "up")

	pod := sandbox(t, "pod")
	pod.PortMappings = []PortMapping{{HostPort: 18378, ContainerPort: 80, Protocol: "tcp"}}
	res := add(t, n, pod)
	serve := exec.Command("ip", "netns", "exec", pod.SandboxID, "/bin/busybox", "httpd", "-f", "-p", "80", "-h", t.TempDir())
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { serve.Process.Kill(); serve.Wait() }()
	if err := dial("127.0.0.1:18378"); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("ip", "netns", "exec", far, "/bin/busybox", "nc", "-w", "3", net+".1", "18378").CombinedOutput(); err != nil {
		t.Errorf("from outside to the host port: %v: %s", err, out)
	}
	// The far side has no route to the pod: an answer proves the masquerade.
	if out, err := in(pod, "/bin/busybox", "ping", "-c", "1", "-W", "3", net+".2"); err != nil {
		t.Errorf("from the pod to the outside: %v: %s", err, out)
	}
	if len(res.IPs) == 0 || n.Delete(t.Context(), pod) != nil {
		t.Error("not released")
	}
	noLeaks(t, n)
}

// TestLostRecord: the record of an attachment with a host port is torn. Neither
// the rules of the port nor the address are left for ever.
func TestLostRecord(t *testing.T) {
	n := open(t, nil)
	pod := sandbox(t, "torn")
	pod.PortMappings = []PortMapping{{HostPort: 18379, ContainerPort: 80, Protocol: "tcp"}}
	add(t, n, pod)
	if err := os.WriteFile(n.records.path(pod.SandboxID), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Delete(t.Context(), pod); err != nil {
		t.Fatal(err)
	}
	if leaks, _ := n.Audit(t.Context(), nil); len(leaks) == 0 || !strings.Contains(strings.Join(leaks, "\n"), pod.SandboxID) {
		t.Errorf("the audit does not show the rule that is left: %v", leaks)
	}
	if err := n.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, n)
	if rules := run(t, "iptables-save", "-t", "nat"); strings.Contains(rules, "--dports 18379 ") || strings.Contains(rules, "--dport 18379 ") {
		t.Errorf("rules are left:\n%s", rules)
	}
}

// thirdParty writes a plugin that notes how it was called.
func thirdParty(t *testing.T, path, log string) {
	t.Helper()
	script := `#!/bin/sh
in=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID netns=$CNI_NETNS $in" >> ` + log + `
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.0.0","1.1.0"]}' ;;
ADD) echo '{"cniVersion":"1.1.0","interfaces":[{"name":"eth0","sandbox":"'$CNI_NETNS'"}],"ips":[{"address":"10.1.2.3/24","interface":0}]}' ;;
STATUS) [ ! -e ` + log + `.down ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"the daemon is down"}'; exit 1; } ;;
esac
`
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
}

// TestThirdParty: a plugin of CNI 1.1 is asked for its STATUS, and told by GC
// which attachments are valid; its DEL gets what its ADD got, also when the
// conflist is another by then and the namespace is gone.
func TestThirdParty(t *testing.T) {
	bin, log := t.TempDir(), filepath.Join(t.TempDir(), "log")
	thirdParty(t, filepath.Join(bin, "third"), log)
	var conf string
	write := func(mark string) {
		body := fmt.Sprintf(`{"cniVersion":"1.1.0","name":"third","plugins":[{"type":"third","mark":%q,"capabilities":{"portMappings":true}}]}`, mark)
		if err := os.WriteFile(conf, []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	n := open(t, func(c *Config) {
		c.BinDirs = []string{bin}
		if err := os.MkdirAll(c.ConfDirs[0], 0o755); err != nil {
			t.Fatal(err)
		}
		conf = filepath.Join(c.ConfDirs[0], "10.conflist")
		write("first")
	})
	a, b := sandbox(t, "a"), sandbox(t, "b")
	a.PortMappings = []PortMapping{{HostPort: 1, ContainerPort: 2, Protocol: "udp"}}
	if res := add(t, n, a); res.IPs[0] != "10.1.2.3" {
		t.Errorf("%v", res)
	}
	add(t, n, b)
	write("second")
	n.reload(t.Context())
	run(t, "ip", "netns", "delete", a.SandboxID)
	if err := n.GC(t.Context(), func() []string { return []string{b.SandboxID} }); err != nil {
		t.Fatal(err)
	}
	body, err := os.ReadFile(log)
	if err != nil {
		t.Fatal(err)
	}
	var del, gc string
	for _, l := range strings.Split(string(body), "\n") {
		if strings.HasPrefix(l, "DEL "+a.SandboxID+" ") {
			del = l
		}
		if strings.HasPrefix(l, "GC ") {
			gc = l
		}
	}
	if !strings.Contains(del, `"mark":"first"`) || !strings.Contains(del, `"hostPort":1`) || !strings.Contains(del, "netns= ") {
		t.Errorf("DEL is not what ADD was: %s", del)
	}
	valid, _ := json.Marshal(map[string]any{"containerID": b.SandboxID, "ifname": "eth0"})
	if !strings.Contains(gc, string(valid)) || strings.Contains(gc, a.SandboxID) {
		t.Errorf("GC: %s, want %s in it", gc, valid)
	}
	if err := os.WriteFile(log+".down", nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := n.Status(t.Context()); CodeOf(err) != NotReady && !strings.Contains(fmt.Sprint(err), "the daemon is down") {
		t.Errorf("status: %v", err)
	}
}

// TestTwoAgentsChooseAtOnce: their bridges and ranges differ.
func TestTwoAgentsChooseAtOnce(t *testing.T) {
	var mu sync.Mutex
	bridges, ranges := map[string]bool{}, map[string]bool{}
	nets := make([]*Network, 3)
	for i := range nets {
		nets[i] = open(t, nil)
		if i == 0 {
			continue
		}
		if err := nets[i].own.remove(t.Context()); err != nil { // keep the clean-up, choose anew below
			t.Fatal(err)
		}
		if err := os.Remove(filepath.Join(nets[i].own.dir, "default.json")); err != nil {
			t.Fatal(err)
		}
	}
	var wg sync.WaitGroup
	for _, n := range nets {
		wg.Go(func() {
			if _, err := n.own.open(t.Context()); err != nil {
				t.Error(err)
				return
			}
			c, err := n.own.choose()
			mu.Lock()
			defer mu.Unlock()
			if err != nil || bridges[c.Bridge] || ranges[c.Subnets[0]] {
				t.Errorf("%+v, %v: a bridge or range is chosen twice", c, err)
				return
			}
			bridges[c.Bridge], ranges[c.Subnets[0]] = true, true
		})
	}
	wg.Wait()
}

package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// sandbox makes a network namespace that the test's end removes.
func sandbox(t *testing.T, name string) Request {
	t.Helper()
	ns := fmt.Sprintf("cnit-%d-%s", os.Getpid(), name)
	if msg, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
		t.Fatalf("ip netns add: %v: %s", err, msg)
	}
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", ns).Run() })
	return Request{SandboxID: ns, Namespace: "default", Name: name, UID: "u-" + name, NetNS: "/var/run/netns/" + ns}
}

func in(r Request, args ...string) ([]byte, error) {
	return exec.Command("ip", append([]string{"netns", "exec", r.SandboxID}, args...)...).CombinedOutput()
}

func open(t *testing.T, change func(*Config)) *Network {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes network namespaces and a bridge")
	}
	if _, err := os.Stat("/usr/lib/cni/bridge"); err != nil {
		t.Skip("needs the CNI plugins (Debian: containernetworking-plugins)")
	}
	cfg := Config{ConfDirs: []string{filepath.Join(t.TempDir(), "net.d")}, Dir: filepath.Join(t.TempDir(), "cni")}
	if change != nil {
		change(&cfg)
	}
	n, err := Open(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := n.Purge(context.Background()); err != nil {
			t.Errorf("purge: %v", err)
		}
	})
	if err := n.Status(t.Context()); err != nil && cfg.Period != time.Hour {
		t.Fatal(err)
	}
	return n
}

func add(t *testing.T, n *Network, r Request) Result {
	t.Helper()
	res, err := n.Add(t.Context(), r)
	if err != nil {
		t.Fatal(err)
	}
	return res
}

func noLeaks(t *testing.T, n *Network) {
	t.Helper()
	if leaks, err := n.Audit(t.Context(), nil); err != nil || len(leaks) > 0 {
		t.Errorf("leaked: %v, %v", leaks, err)
	}
}

func TestDefaultNetwork(t *testing.T) {
	n := open(t, nil)
	a, b := sandbox(t, "a"), sandbox(t, "b")
	ra := add(t, n, a)
	b.PortMappings = []PortMapping{{HostPort: 18377, ContainerPort: 80, Protocol: "tcp"}}
	rb := add(t, n, b)
	if hasIPv6() && len(ra.IPs) != 2 {
		t.Errorf("want an address of each family, have %v", ra.IPs)
	}
	if again := add(t, n, a); again.IPs[0] != ra.IPs[0] {
		t.Errorf("a second ADD answers %v instead of %v", again, ra)
	}
	serve := exec.Command("ip", "netns", "exec", b.SandboxID, "/bin/busybox", "httpd", "-f", "-p", "80", "-h", t.TempDir())
	if err := serve.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { serve.Process.Kill(); serve.Wait() }()
	targets := []string{rb.IPs[0] + ":80", "127.0.0.1:18377"}
	if len(rb.IPs) > 1 {
		targets = append(targets, "["+rb.IPs[1]+"]:80")
	}
	for _, target := range targets {
		if err := dial(target); err != nil {
			t.Errorf("from the host to %s: %v", target, err)
		}
	}
	for _, ip := range rb.IPs {
		if msg, err := in(a, "/bin/busybox", "nc", "-w", "3", ip, "80"); err != nil {
			t.Errorf("from sandbox to sandbox at %s: %v: %s", ip, err, msg)
		}
	}
	// A pod reaches itself through its own host port.
	host, _, _ := strings.Cut(rb.IPs[0], " ")
	gateway := host[:strings.LastIndex(host, ".")] + ".1"
	if msg, err := in(b, "/bin/busybox", "nc", "-w", "3", gateway, "18377"); err != nil {
		t.Errorf("a pod to itself through the host port: %v: %s", err, msg)
	}
	if err := n.Check(t.Context(), a); err != nil {
		t.Error(err)
	}
	for _, r := range []Request{a, b, a} { // the second DEL of a is success
		if err := n.Delete(t.Context(), r); err != nil {
			t.Error(err)
		}
	}
	noLeaks(t, n)
	if dial("127.0.0.1:18377") == nil {
		t.Error("the host port still answers")
	}
}

func dial(addr string) error {
	var err error
	for range 50 {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", addr, time.Second); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

func TestNoAddressLeft(t *testing.T) {
	n := open(t, func(c *Config) { c.Subnets = []string{"10.213.77.0/30"} })
	add(t, n, sandbox(t, "one"))
	late := sandbox(t, "late")
	_, err := n.Add(t.Context(), late)
	if CodeOf(err) != Exhausted || !strings.Contains(err.Error(), "no address left") {
		t.Errorf("got %v", err)
	}
	if !strings.Contains(err.Error(), "in subnet 10.213.77.0/30: 1 in use, by 1 pods (default/one)") {
		t.Errorf("it does not say who has them: %v", err)
	}
	if err := n.Delete(t.Context(), late); err != nil {
		t.Error(err)
	}
}

func TestHalfMadeAndForgotten(t *testing.T) {
	n := open(t, nil)
	r := sandbox(t, "gone")
	add(t, n, r)
	exec.Command("ip", "netns", "delete", r.SandboxID).Run() // as after a reboot
	// Killed between the plugin's making of a lease and writing into it:
	empty := filepath.Join(n.own.leaseDir(), ownName, "10.85.99.99")
	if err := os.WriteFile(empty, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	// Killed after the record, before ADD:
	half := sandbox(t, "half")
	if err := n.records.write(&attachment{Request: half, Owned: true, Conflist: n.current.Load().list.Bytes}, false); err != nil {
		t.Fatal(err)
	}
	// A torn record:
	if err := os.WriteFile(n.records.path("torn"), []byte(`{"requ`), 0o600); err != nil {
		t.Fatal(err)
	}
	again, err := Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	noLeaks(t, again)
	if c := again.current.Load().list.Name; c != ownName {
		t.Errorf("network %s", c)
	}
}

func TestConflistIsChosenAndFollowed(t *testing.T) {
	n := open(t, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx, nil) }()
	defer func() { cancel(); <-done }()
	if err := os.MkdirAll(n.cfg.ConfDirs[0], 0o755); err != nil {
		t.Fatal(err)
	}
	for name, body := range map[string]string{
		"00-broken.conflist": "{",
		"05-empty.conflist":  `{"cniVersion":"1.0.0","name":"empty","plugins":[]}`,
		"10-mine.conflist":   `{"cniVersion":"1.0.0","name":"mine","plugins":[{"type":"no-such-plugin"}]}`,
		"20-later.conf":      `{"cniVersion":"1.0.0","name":"later","type":"loopback"}`,
	} {
		if err := os.WriteFile(filepath.Join(n.cfg.ConfDirs[0], name), []byte(body), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	wait := func(want string) {
		t.Helper()
		for range 200 {
			if name, _ := n.Name(); name == want {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
		name, _ := n.Name()
		t.Fatalf("the network is %q, want %q", name, want)
	}
	wait("mine")
	if err := n.Status(t.Context()); CodeOf(err) != Missing || !strings.Contains(err.Error(), "no-such-plugin") {
		t.Errorf("status: %v", err)
	}
	os.Remove(filepath.Join(n.cfg.ConfDirs[0], "10-mine.conflist"))
	wait("later")
	os.Remove(filepath.Join(n.cfg.ConfDirs[0], "20-later.conf"))
	wait("") // what is left is broken: that is told, and no other network is taken instead
	if err := n.Status(t.Context()); CodeOf(err) != NotReady || !strings.Contains(err.Error(), "00-broken.conflist") {
		t.Errorf("status: %v", err)
	}
	os.Remove(filepath.Join(n.cfg.ConfDirs[0], "00-broken.conflist"))
	os.Remove(filepath.Join(n.cfg.ConfDirs[0], "05-empty.conflist"))
	wait(ownName)
}

// TestPluginNeverThere: what a plugin has never done needs no plugin to undo it.
func TestPluginNeverThere(t *testing.T) {
	n := open(t, nil)
	dir := n.cfg.ConfDirs[0]
	body := `{"cniVersion":"1.0.0","name":"odd","plugins":[{"type":"loopback"},{"type":"no-such-plugin"}]}`
	if err := errors.Join(os.MkdirAll(dir, 0o755), os.WriteFile(filepath.Join(dir, "10-odd.conflist"), []byte(body), 0o644)); err != nil {
		t.Fatal(err)
	}
	n.reload(t.Context())
	r := sandbox(t, "odd")
	if _, err := n.Add(t.Context(), r); CodeOf(err) != Missing {
		t.Fatalf("add: %v", err)
	}
	if err := n.Delete(t.Context(), r); err != nil {
		t.Errorf("delete: %v", err)
	}
	noLeaks(t, n)
}

func TestPluginThatHangsOrFloods(t *testing.T) {
	bin := t.TempDir()
	write := func(name, script string) {
		if err := os.WriteFile(filepath.Join(bin, name), []byte("#!/bin/sh\n"+script), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	write("hangs", "sleep 100 & wait")
	write("floods", "head -c 2000000 /dev/zero")
	write("lies", `echo '{"cniVersion":"1.0.0","ips":[{"address":"0.0.0.0/0"}]}'`)
	for plugin, want := range map[string]Code{"hangs": Timeout, "floods": BadAnswer, "lies": BadAnswer} {
		n := open(t, func(c *Config) {
			c.BinDirs = []string{bin, "/usr/lib/cni"}
			c.Timeout = 500 * time.Millisecond
			if err := os.MkdirAll(c.ConfDirs[0], 0o755); err != nil {
				t.Fatal(err)
			}
			body := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"x","plugins":[{"type":%q}]}`, plugin)
			if err := os.WriteFile(filepath.Join(c.ConfDirs[0], "10.conflist"), []byte(body), 0o644); err != nil {
				t.Fatal(err)
			}
		})
		r := sandbox(t, plugin)
		if _, err := n.Add(t.Context(), r); CodeOf(err) != want {
			t.Errorf("%s: %v", plugin, err)
		}
		write(plugin, "true")
		if err := n.Delete(t.Context(), r); err != nil {
			t.Errorf("%s: DEL: %v", plugin, err)
		}
	}
}

// BenchmarkAdd measures what attaching costs a pod on the default network.
func BenchmarkAdd(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root")
	}
	n, err := Open(Config{ConfDirs: []string{b.TempDir()}, Dir: filepath.Join(b.TempDir(), "cni")})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Purge(context.Background())
	for i := 0; b.Loop(); i++ {
		b.StopTimer()
		ns := fmt.Sprintf("cnib-%d-%d", os.Getpid(), i)
		exec.Command("ip", "netns", "add", ns).Run()
		r := Request{SandboxID: ns, NetNS: "/var/run/netns/" + ns}
		b.StartTimer()
		if _, err := n.Add(b.Context(), r); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		n.Delete(b.Context(), r)
		exec.Command("ip", "netns", "delete", ns).Run()
		b.StartTimer()
	}
}

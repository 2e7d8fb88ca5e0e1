package cni

import (
	"os"
	"path/filepath"
	"testing"
)

// A reboot takes BootDir along: nothing refers to what it held, and the range is free again.
func TestReboot(t *testing.T) {
	boot := filepath.Join(t.TempDir(), "boot")
	n := open(t, func(c *Config) { c.BootDir = boot })
	a := sandbox(t, "a")
	first := add(t, n, a)
	if ids, err := n.records.list(); err != nil || len(ids) != 1 || !exists(filepath.Join(boot, "attachments", a.SandboxID+".json")) {
		t.Errorf("records of the default network: %v, %v", ids, err)
	}
	for _, d := range []string{"attachments", "cache/results"} {
		if left, _ := os.ReadDir(filepath.Join(n.cfg.Dir, d)); len(left) > 0 {
			t.Errorf("%s is written to the disk: %v", d, left)
		}
	}
	if err := os.RemoveAll(boot); err != nil {
		t.Fatal(err)
	}
	again, err := Open(n.cfg)
	if err != nil {
		t.Fatal(err)
	}
	if err := again.GC(t.Context(), nil); err != nil {
		t.Errorf("collection after a reboot: %v", err)
	}
	noLeaks(t, again)
	if err := again.Delete(t.Context(), a); err != nil {
		t.Errorf("DEL of a sandbox of before: %v", err)
	}
	if b := add(t, again, sandbox(t, "b")); b.IPs[0] != first.IPs[0] {
		t.Errorf("the first address is %s now, and was %s", b.IPs[0], first.IPs[0])
	}
	if err := again.GC(t.Context(), nil); err != nil {
		t.Error(err)
	}
	noLeaks(t, again)
}

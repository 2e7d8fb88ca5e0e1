package cni

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
)

// BenchmarkBurst attaches and detaches 110 sandboxes at once.
func BenchmarkBurst(b *testing.B) {
	if os.Getuid() != 0 {
		b.Skip("needs root: it makes network namespaces and a bridge")
	}
	n, err := Open(Config{ConfDirs: []string{b.TempDir()}, Dir: filepath.Join(b.TempDir(), "cni")})
	if err != nil {
		b.Fatal(err)
	}
	defer n.Purge(context.Background())
	const pods = 110
	all := make([]Request, pods)
	for i := range all {
		ns := fmt.Sprintf("cnir-%d-%d", os.Getpid(), i)
		if out, err := exec.Command("ip", "netns", "add", ns).CombinedOutput(); err != nil {
			b.Fatalf("%v: %s", err, out)
		}
		defer exec.Command("ip", "netns", "delete", ns).Run()
		all[i] = Request{SandboxID: ns, NetNS: "/var/run/netns/" + ns}
	}
	each := func(what func(Request) error) {
		var wg sync.WaitGroup
		for _, r := range all {
			wg.Go(func() {
				if err := what(r); err != nil {
					b.Error(err)
				}
			})
		}
		wg.Wait()
	}
	for b.Loop() {
		each(func(r Request) error { _, err := n.Add(b.Context(), r); return err })
		b.StopTimer()
		each(func(r Request) error { return n.Delete(b.Context(), r) })
		b.StartTimer()
	}
}

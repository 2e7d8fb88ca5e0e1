package cni

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// logging is a plugin of CNI 1.1 that notes its calls in log, and obeys files beside it.
func logging(log string) string {
	return answers + `in=$(cat)
echo "$CNI_COMMAND $CNI_CONTAINERID $in" >> ` + log + `
case $CNI_COMMAND in
GC|STATUS) [ ! -e ` + log + `.slow.$CNI_COMMAND ] || sleep "$(cat ` + log + `.slow.$CNI_COMMAND)" ;;
esac
case $CNI_COMMAND in
ADD) [ ! -e ` + log + `.wait ] || { touch ` + log + `.waiting; while [ -e ` + log + `.wait ]; do sleep 0.05; done; }; ` + okAnswer + ` ;;
STATUS) [ ! -e ` + log + `.down ] || { cat ` + log + `.down; exit 1; } ;;
esac
`
}

func put(t *testing.T, path, body string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
		t.Fatal(err)
	}
}

func calls(t *testing.T, log, verb string) []string {
	t.Helper()
	body, err := os.ReadFile(log)
	if err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	var out []string
	for _, l := range strings.Split(string(body), "\n") {
		if strings.HasPrefix(l, verb+" ") {
			out = append(out, l)
		}
	}
	return out
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("it never came to this: %s", what)
		}
	}
}

func speaking11(t *testing.T, more string, change func(*Config)) (n *Network, log string) {
	bin := t.TempDir()
	log = filepath.Join(t.TempDir(), "log")
	script(t, bin, "eleven", logging(log))
	n = withConf(t, "10.conflist", `{"cniVersion":"1.1.0","name":"NAME"`+more+`,"plugins":[{"type":"eleven"}]}`, func(c *Config) {
		c.BinDirs = []string{bin}
		if change != nil {
			change(c)
		}
	})
	return n, log
}

// TestGCAlone: GC of CNI 1.1 runs beside no ADD: one that takes its time puts it
// off, and one that comes meanwhile waits for it.
func TestGCAlone(t *testing.T) {
	n, log := speaking11(t, "", nil)
	a, b, c := sandbox(t, "a"), sandbox(t, "b"), sandbox(t, "c")
	add(t, n, a)
	if err := n.records.write(&attachment{Request: Request{SandboxID: "elsewhere"}, Network: "other", Conflist: n.current.Load().list.Bytes, IPs: []string{"10.0.0.9"}}, false); err != nil {
		t.Fatal(err)
	}
	put(t, log+".wait", "")
	done := make(chan error, 1)
	go func() { _, err := n.Add(t.Context(), b); done <- err }()
	eventually(t, "the ADD waits", func() bool { return exists(log + ".waiting") })
	all := func() []string { return []string{a.SandboxID, b.SandboxID, "elsewhere"} }
	if err := n.GC(t.Context(), all); CodeOf(err) != NotReady || !strings.Contains(err.Error(), "put off") {
		t.Errorf("GC beside an ADD: %v", err)
	}
	if got := calls(t, log, "GC"); len(got) > 0 {
		t.Errorf("plugins were called beside an ADD: %v", got)
	}
	os.Remove(log + ".wait")
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	put(t, log+".slow.GC", "1")
	go func() { done <- n.GC(t.Context(), all) }()
	eventually(t, "GC runs", func() bool { return len(calls(t, log, "GC")) == 1 })
	add(t, n, c) // after GC, or its address could be collected
	if err := <-done; err != nil {
		t.Error(err)
	}
	var told struct {
		Valid, Old []map[string]string
	}
	var raw map[string]json.RawMessage
	gc := calls(t, log, "GC")[0]
	if err := json.Unmarshal([]byte(gc[strings.Index(gc, "{"):]), &raw); err != nil {
		t.Fatal(err)
	}
	json.Unmarshal(raw["cni.dev/valid-attachments"], &told.Valid)
	json.Unmarshal(raw["cni.dev/attachments"], &told.Old)
	if len(told.Valid) != 2 || len(told.Old) != 2 || strings.Contains(gc, "elsewhere") || strings.Contains(gc, c.SandboxID) || !strings.Contains(gc, a.SandboxID) || !strings.Contains(gc, b.SandboxID) {
		t.Errorf("GC was told %s", gc)
	}
}

// TestDisableGC: plugins are not asked to collect, and records are all the same.
func TestDisableGC(t *testing.T) {
	n, log := speaking11(t, `,"disableGC":true`, nil)
	add(t, n, sandbox(t, "a"))
	if err := n.GC(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if got := calls(t, log, "GC"); len(got) > 0 {
		t.Errorf("called: %v", got)
	}
	noLeaks(t, n)
}

// TestRounds: Run collects at its start and ever after what no sandbox has, asks
// for STATUS in rounds, and leaves those alone that are there.
func TestRounds(t *testing.T) {
	n, log := speaking11(t, "", func(c *Config) { c.Period = 100 * time.Millisecond })
	kept, early := sandbox(t, "kept"), sandbox(t, "early")
	add(t, n, kept)
	add(t, n, early)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx, func() []string { return []string{kept.SandboxID} }) }()
	stop := sync.OnceFunc(func() { cancel(); <-done })
	defer stop()
	attached := func(r Request) bool { x, err := n.records.peek(r.SandboxID); return err != nil || x != nil }
	eventually(t, "what is left of before is collected", func() bool { return !attached(early) && len(calls(t, log, "GC")) > 0 })
	late := sandbox(t, "late")
	add(t, n, late)
	eventually(t, "what is left later is collected", func() bool { return !attached(late) })
	if !attached(kept) {
		t.Error("an attachment that is in use was collected")
	}
	put(t, log+".down", `{"cniVersion":"1.1.0","code":50,"msg":"the daemon is down"}`)
	eventually(t, "not ready", func() bool {
		err := n.Status(t.Context())
		return CodeOf(err) == NotReady && strings.Contains(err.Error(), `plugin eleven says: the daemon is down`)
	})
	put(t, log+".down", `{"cniVersion":"1.1.0","code":4,"msg":"unknown CNI_COMMAND: STATUS"}`)
	eventually(t, "ready: the plugin does not know STATUS", func() bool { return n.Status(t.Context()) == nil })
	asked := len(calls(t, log, "STATUS"))
	for range 100 {
		if err := n.Status(t.Context()); err != nil {
			t.Error(err)
		}
	}
	if more := len(calls(t, log, "STATUS")) - asked; more > 20 {
		t.Errorf("plugins were run %d times for 100 calls of Status", more)
	}
	d, err := json.Marshal(n.Details())
	if err != nil || !strings.Contains(string(d), "10.conflist") || !strings.Contains(string(d), `"cniVersions":["0.4.0","1.0.0","1.1.0"]`) {
		t.Errorf("details %s, %v", d, err)
	}
	stop()
}

// TestStatusHangs: a plugin that hangs in STATUS holds up nobody for long.
func TestStatusHangs(t *testing.T) {
	n, log := speaking11(t, "", func(c *Config) { c.Period = time.Hour })
	put(t, log+".slow.STATUS", "1000")
	n.reload(t.Context())
	var wg sync.WaitGroup
	for range 5 {
		wg.Go(func() {
			began := time.Now()
			err := n.Status(t.Context())
			if took := time.Since(began); took > statusWait+time.Second {
				t.Errorf("Status took %s", took)
			}
			if c := CodeOf(err); c != Timeout && c != NotReady {
				t.Errorf("%v", err)
			}
		})
	}
	wg.Wait()
	os.Remove(log + ".slow.STATUS")
	eventually(t, "ready", func() bool { return n.Status(t.Context()) == nil })
	// A caller that gives up leaves no verdict.
	n.reload(t.Context())
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	_ = n.Status(gone)
	if err := n.Status(t.Context()); err != nil {
		t.Errorf("after a caller that gave up: %v", err)
	}
}

// TestPluginsComeLater: the network is ready as soon as the programs are there.
func TestPluginsComeLater(t *testing.T) {
	n, bin := one(t, "", func(c *Config) { c.Period = time.Hour })
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- n.Run(ctx, nil) }()
	defer func() { cancel(); <-done }()
	eventually(t, "not ready", func() bool { return CodeOf(n.Status(t.Context())) == Missing })
	script(t, bin, "odd", answers+okAnswer)
	began := time.Now()
	eventually(t, "ready", func() bool { return n.Status(t.Context()) == nil })
	if took := time.Since(began); took > 4*time.Second {
		t.Errorf("it took %s", took)
	}
}

// TestCollectBesideAddAndDelete: addresses and records of pods that come and go
// are never taken from them by a collection beside.
func TestCollectBesideAddAndDelete(t *testing.T) {
	n := open(t, func(c *Config) { c.Subnets = []string{"10.214.7.0/24"} })
	var mu sync.Mutex
	there := map[string]bool{}
	list := func() []string {
		mu.Lock()
		defer mu.Unlock()
		var ids []string
		for id := range there {
			ids = append(ids, id)
		}
		return ids
	}
	know := func(id string, yes bool) {
		mu.Lock()
		defer mu.Unlock()
		if yes {
			there[id] = true
		} else {
			delete(there, id)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	var collector, pods sync.WaitGroup
	rounds := 0
	collector.Go(func() {
		for ; ctx.Err() == nil; rounds++ {
			if err := n.collect(context.WithoutCancel(ctx), list); err != nil {
				t.Error(err)
			}
		}
	})
	for i := range 4 {
		r := sandbox(t, fmt.Sprint("p", i))
		netns := r.NetNS
		pods.Go(func() {
			for j := range 6 {
				r := r
				r.SandboxID, r.NetNS = fmt.Sprintf("%s-%d", r.SandboxID, j), netns
				know(r.SandboxID, true)
				res, err := n.Add(t.Context(), r)
				if err != nil {
					t.Error(err)
					return
				}
				lease, err := os.ReadFile(filepath.Join(n.own.leaseDir(), ownName, res.IPs[0]))
				if err != nil || !strings.HasPrefix(string(lease), r.SandboxID) {
					t.Errorf("the lease of %s at %s: %q, %v", r.SandboxID, res.IPs[0], lease, err)
				}
				if err := n.Delete(t.Context(), r); err != nil {
					t.Error(err)
				}
				know(r.SandboxID, false)
			}
		})
	}
	pods.Wait()
	cancel()
	collector.Wait()
	t.Logf("%d collections", rounds)
	noLeaks(t, n)
}

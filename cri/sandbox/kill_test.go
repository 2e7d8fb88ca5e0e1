package sandbox

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/record"
)

// fileNet is a network that keeps its attachments in files, as plugins do.
type fileNet struct{ dir string }

func (f fileNet) Add(_ context.Context, r Request) (Result, error) {
	if _, err := os.Stat(r.NetNS); err != nil {
		return Result{}, err
	}
	return Result{IPs: []string{"10.9.8.7"}}, os.WriteFile(filepath.Join(f.dir, r.SandboxID), nil, 0o600)
}

func (f fileNet) Delete(_ context.Context, r Request) error {
	if err := os.Remove(filepath.Join(f.dir, r.SandboxID)); err != nil && !os.IsNotExist(err) {
		return err
	}
	return nil
}

func (f fileNet) Status(context.Context) error { return nil }

// agent is one that makes a sandbox and removes it, in a process of its own.
func agent(dir, parent string) error {
	s, closeAll, err := openAgent(dir)
	if err != nil {
		return err
	}
	defer closeAll()
	ctx := context.Background()
	c := withUsers((&host{parent: parent}).config("web", podNS, podNS, podNS))
	c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
	id, err := s.Run(ctx, c, "")
	if err == nil {
		err = s.Stop(ctx, id)
	}
	if err == nil {
		err = s.Remove(ctx, id)
	}
	return err
}

func openAgent(dir string) (*Store, func(), error) {
	log := slog.New(slog.DiscardHandler)
	pins, err := mountns.Open(filepath.Join(dir, "ns"), log)
	if err != nil {
		return nil, nil, err
	}
	s, err := Open(Config{Dir: filepath.Join(dir, "sandboxes"), BootID: "boot-1", Pins: pins, Network: fileNet{filepath.Join(dir, "net")}, Log: log})
	if err == nil {
		err = s.Restore(context.Background())
	}
	if err != nil {
		pins.Close()
		return nil, nil, err
	}
	return s, func() { s.Close(); pins.Close() }, nil
}

// failpointBuild builds this test with failpoints in it.
func failpointBuild(t *testing.T) string {
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	out := filepath.Join(t.TempDir(), "agent")
	if b, err := exec.Command("go", "test", "-c", "-tags", "failpoints", "-o", out, ".").CombinedOutput(); err != nil {
		t.Fatalf("building with failpoints: %v\n%s", err, b)
	}
	return out
}

// runAgent runs an agent and kills it where it stops; env says where.
func runAgent(t *testing.T, binary string, h *host, env ...string) {
	t.Helper()
	signal := filepath.Join(t.TempDir(), "signal")
	cmd := exec.Command(binary)
	cmd.Env = append(os.Environ(), append(env, "SANDBOX_TEST_HOST=", "SANDBOX_TEST_AGENT="+h.dir, "SANDBOX_TEST_PARENT="+h.parent,
		"BERTH_FAILPOINT_SIGNAL="+signal)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(time.Millisecond) {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("the agent failed: %v\n%s", err, &out)
			}
			return
		default:
		}
		if _, err := os.Stat(signal); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Error("the agent hangs")
			break
		}
	}
	cmd.Process.Kill()
	<-ended
}

// TestKilledAnywhere kills an agent at each of its failpoints on the way through
// a sandbox's life, starts another one, and sees that the sandbox is whole, or
// can be removed without a trace, and that a new one can be made.
func TestKilledAnywhere(t *testing.T) {
	binary := failpointBuild(t)
	trace := filepath.Join(t.TempDir(), "trace")
	first := newBareHost(t)
	runAgent(t, binary, first, "BERTH_FAILPOINT_TRACE="+trace)
	b, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	places := strings.Fields(string(b))
	if len(places) < 40 {
		t.Fatalf("only %d places were passed: %v", len(places), places)
	}
	t.Logf("%d places", len(places))
	completed, stopping := -1, len(places)
	for i, p := range places { // the record is written last in Run
		if strings.HasPrefix(p, "cri/sandbox/network-delete#") {
			stopping = i
		}
		if strings.HasPrefix(p, "cri/sandbox/podinit-go#") {
			completed = i
		}
	}
	for i, place := range places {
		t.Run(place, func(t *testing.T) {
			h := newBareHost(t)
			runAgent(t, binary, h, "BERTH_FAILPOINT_STOP="+place)
			h.checkAfterKill(t, i > completed+8 && i < stopping-8)
		})
	}
}

// newBareHost is newHost without open pins, for agents in other processes.
func newBareHost(t *testing.T) *host {
	h := &host{t: t, dir: t.TempDir(), net: &fakeNet{}, parent: fmt.Sprintf("/berth-test-%d-%s", os.Getpid(), record.NewID()[:8])}
	if err := os.Mkdir(filepath.Join(h.dir, "net"), 0o700); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := mountns.Purge(filepath.Join(h.dir, "ns")); err != nil {
			t.Error(err)
		}
		removeCgroups(h.parent)
	})
	return h
}

func (h *host) checkAfterKill(t *testing.T, mustLive bool) {
	s, closeAll, err := openAgent(h.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer closeAll()
	h.t = t
	h.pins = s.cfg.Pins.(*mountns.Namespaces)
	var pids []int
	ready := false
	for _, st := range s.List() {
		ready = ready || st.Ready
		if st.InitPID != 0 {
			pids = append(pids, st.InitPID)
		}
		if st.Ready {
			inside(t, s, st.ID, "test $(cat /proc/sys/net/ipv4/ip_forward) = 1")
		}
		if err := s.Remove(t.Context(), st.ID); err != nil {
			t.Error(err)
		}
	}
	if mustLive && !ready {
		t.Error("a sandbox that was complete is not ready after the restart")
	}
	eventually(t, "strays are removed", func() bool { return len(s.all()) == 0 })
	for _, pid := range pids {
		eventually(t, "the init has ended", func() bool {
			b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
			return err != nil || strings.Contains(string(b), "(berth-init) Z") // whoever adopted it collects it
		})
	}
	h.clean()
	if left, _ := os.ReadDir(filepath.Join(h.dir, "net")); len(left) != 0 {
		t.Errorf("network attachments left: %v", left)
	}
	id := run(t, s, h.config("web", podNS, podNS, podNS))
	remove(t, s, id)
	h.clean()
}

// TestCorruptRecords starts over records that somebody has scribbled on.
func TestCorruptRecords(t *testing.T) {
	h := newHost(t)
	s := h.open()
	id := run(t, s, h.config("web", podNS, contNS, podNS))
	dir := filepath.Join(h.dir, "sandboxes", string(id))
	if err := os.WriteFile(filepath.Join(dir, "record.json"), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	s = h.open()
	if !status(t, s, id).Ready || s.Quarantined() != 1 {
		t.Fatalf("not rebuilt: %+v, %d set aside", status(t, s, id), s.Quarantined())
	}
	for _, name := range []string{"record.json", "record.json.copy"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = h.open()
	eventually(t, "remains without any record are removed", func() bool { return len(s.all()) == 0 })
	h.clean()
}

// TestReboot starts over records of an earlier boot.
func TestReboot(t *testing.T) {
	h := newHost(t)
	s := h.open()
	id := run(t, s, h.config("web", podNS, contNS, podNS))
	if err := h.pins.Unpin(string(id)); err != nil {
		t.Fatal(err)
	}
	h.boot = "boot-2"
	s = h.open()
	if st := status(t, s, id); st.Ready || st.Why != "the machine was rebooted" {
		t.Fatalf("status %+v", st)
	}
	remove(t, s, id)
	if last := h.net.deletes[len(h.net.deletes)-1]; last.NetNS != "" || last.SandboxID != string(id) {
		t.Errorf("detached with %+v", last)
	}
	h.clean()
}

func removeCgroups(parent string) {
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + parent)
	for _, d := range append(dirs, "/sys/fs/cgroup"+parent) {
		os.Remove(d)
	}
}

package checkpoint

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

func open(t *testing.T, root, boot string) (*Store, map[pod.UID]pod.Record) {
	t.Helper()
	s, err := Open(Config{DurableDir: filepath.Join(root, "records"), BootDir: filepath.Join(root, "pods"), BootID: boot, Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	records, err := s.Load()
	if err != nil {
		t.Fatal(err)
	}
	return s, records
}

func record(uid pod.UID) pod.Record {
	p := &v1.Pod{}
	p.Name, p.UID = "p", types.UID(uid)
	attempt := uint32(3)
	return pod.Record{
		Durable: pod.Durable{Pod: p, Source: pod.SourceFile, Restarts: map[pod.ContainerName]uint32{"app": 2}, Accepted: time.Unix(1, 0).UTC()},
		Boot: pod.Boot{
			Initialized: &attempt, Hooked: map[pod.ContainerID]bool{"c": true},
			Verdicts: map[pod.ContainerID]map[pod.ProbeKind]pod.ProbeVerdict{"c": {pod.Liveness: {Container: "c", Kind: pod.Liveness, Verdict: pod.Failed, Message: "m"}}},
			Stopping: map[pod.ContainerID]pod.Stopping{"c": {Deadline: time.Unix(9, 0).UTC(), Reason: pod.Evicted}},
		},
	}
}

func save(t *testing.T, s *Store, uid pod.UID, r pod.Record) {
	t.Helper()
	if err := s.Save(uid, r); err != nil {
		t.Fatal(err)
	}
}

func names(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out
}

func TestRoundTrip(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "boot1")
	want := record("u1")
	save(t, s, "u1", want)
	s.Close()
	s, got := open(t, root, "boot1")
	if !reflect.DeepEqual(got["u1"], want) {
		t.Errorf("got %+v\nwant %+v", got["u1"], want)
	}
	st, err := os.Stat(filepath.Join(root, "records", "u1.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v %v", st, err)
	}
	// The same again writes nothing.
	if err := os.Remove(filepath.Join(root, "records", "u1.json")); err != nil {
		t.Fatal(err)
	}
	save(t, s, "u1", got["u1"])
	s.Close()
	if left := names(t, filepath.Join(root, "records")); len(left) > 0 {
		t.Errorf("an unchanged record was written: %v", left)
	}
}

// TestReboot: the boot-scoped part is void, the durable one is not.
func TestReboot(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "boot1")
	save(t, s, "u1", record("u1"))
	s.Close()
	_, got := open(t, root, "boot2")
	if r := got["u1"]; !reflect.DeepEqual(r.Boot, pod.Boot{}) || r.Durable.Restarts["app"] != 2 {
		t.Errorf("%+v", r)
	}
}

// TestKilled: a store that was killed has lost nothing that Save returned for.
func TestKilled(t *testing.T) {
	root := t.TempDir()
	records := filepath.Join(root, "records")
	s, _ := open(t, root, "b")
	save(t, s, "u1", record("u1"))
	s.Close()
	newer := strings.Replace(read(t, filepath.Join(records, "u1.json")), `"app":2`, `"app":7`, 1)
	write(t, filepath.Join(records, "u1.next"), newer)
	write(t, filepath.Join(records, "u2.next"), newer[:20]) // torn by a power cut
	write(t, filepath.Join(records, "u3.next.tmp"), newer)
	s, got := open(t, root, "b")
	if got["u1"].Durable.Restarts["app"] != 7 || len(got) != 1 {
		t.Errorf("%+v", got)
	}
	if s.Corrupt() != 1 {
		t.Errorf("%d set aside", s.Corrupt())
	}
	for _, n := range names(t, records) {
		if n != "u1.json" && !strings.Contains(n, ".corrupt-") {
			t.Errorf("left: %s", n)
		}
	}
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestCorrupt: a bad file costs its own pod's memory, nothing else.
func TestCorrupt(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "b")
	for _, uid := range []pod.UID{"good", "empty", "torn", "other", "boot"} {
		save(t, s, uid, record(uid))
	}
	s.Close()
	records := filepath.Join(root, "records")
	write(t, filepath.Join(records, "empty.json"), "")
	write(t, filepath.Join(records, "torn.json"), `{"Pod":{"metadata`)
	write(t, filepath.Join(records, "other.json"), read(t, filepath.Join(records, "good.json")))
	write(t, filepath.Join(root, "pods", "boot.json"), "\x00\x00\x00")
	if err := os.Symlink("/etc/passwd", filepath.Join(records, "link.json")); err != nil {
		t.Fatal(err)
	}
	s, got := open(t, root, "b")
	if len(got) != 2 || got["good"].Boot.Initialized == nil || got["boot"].Boot.Initialized != nil || got["boot"].Durable.Pod == nil {
		t.Errorf("%+v", got)
	}
	if s.Corrupt() != 5 {
		t.Errorf("%d set aside, want 5", s.Corrupt())
	}
	if s, got := open(t, root, "b"); s.Corrupt() != 0 || len(got) != 2 {
		t.Errorf("met again: %d, %d records", s.Corrupt(), len(got))
	}
}

func TestErase(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "b")
	save(t, s, "u1", record("u1"))
	for range 2 {
		if err := s.Erase("u1"); err != nil {
			t.Fatal(err)
		}
	}
	s.Close()
	if left := append(names(t, filepath.Join(root, "records")), names(t, filepath.Join(root, "pods"))...); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	if err := s.Save("u1", record("u1")); err == nil {
		t.Error("a closed store accepts records")
	}
}

func TestHostileUID(t *testing.T) {
	s, _ := open(t, t.TempDir(), "b")
	for _, uid := range []pod.UID{"", "../x", ".hidden", "a/b", "a\x00b", pod.UID(strings.Repeat("x", 300))} {
		if err := s.Save(uid, record(uid)); pod.KindOf(err) != pod.Invalid {
			t.Errorf("UID %q: %v", uid, err)
		}
		if err := s.Erase(uid); pod.KindOf(err) != pod.Invalid {
			t.Errorf("UID %q: %v", uid, err)
		}
	}
}

// TestGroupCommit: many pods at once, each outcome safe when Save returns, and
// the last state of each is what is found.
func TestGroupCommit(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "b")
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			uid := pod.UID(fmt.Sprintf("u%d", i))
			r := record(uid)
			for n := range uint32(10) {
				r.Durable.Restarts = map[pod.ContainerName]uint32{"app": n}
				if n == 9 {
					r.Durable.Outcome = &v1.PodStatus{Phase: v1.PodFailed}
				}
				if err := s.Save(uid, r); err != nil {
					t.Error(err)
				}
			}
			if _, err := os.Stat(s.durablePath(uid)); err != nil {
				t.Errorf("an outcome is not safe: %v", err)
			}
			if _, err := os.Stat(s.nextPath(uid)); err == nil {
				t.Errorf("an outcome is still on its way")
			}
		})
	}
	wg.Wait()
	s.Close()
	_, got := open(t, root, "b")
	if len(got) != 40 {
		t.Fatalf("%d records", len(got))
	}
	for uid, r := range got {
		if r.Durable.Outcome == nil || r.Durable.Restarts["app"] != 9 {
			t.Errorf("%s: %+v", uid, r.Durable)
		}
	}
}

// TestFullDisk: an error is returned, and a later Save of the same record works.
func TestFullDisk(t *testing.T) {
	root := t.TempDir()
	s, _ := open(t, root, "b")
	blocker := filepath.Join(root, "records", "u1.next.tmp")
	if err := os.Mkdir(blocker, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := s.Save("u1", record("u1")); err == nil {
		t.Fatal("no error although the file cannot be written")
	}
	if err := os.Remove(blocker); err != nil {
		t.Fatal(err)
	}
	save(t, s, "u1", record("u1"))
	s.Close()
	if _, got := open(t, root, "b"); got["u1"].Durable.Pod == nil {
		t.Error("the record was not written")
	}
}

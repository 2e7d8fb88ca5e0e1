package userns

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
)

func open(t *testing.T, dir string) *Allocator {
	t.Helper()
	a, err := Open(t.Context(), Config{Dir: dir, MaxPods: 110, SubIDs: "/nonexistent", Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func allot(t *testing.T, a *Allocator, uid pod.UID) pod.IDMapping {
	t.Helper()
	m, err := a.Allot(uid)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestAllotIsKeptAndReleased(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	m := allot(t, a, "u1")
	if m != (pod.IDMapping{HostID: 65536, Length: 65536}) || allot(t, a, "u1") != m {
		t.Fatalf("first range %+v", m)
	}
	path := filepath.Join(dir, "u1", "userns")
	body, err := os.ReadFile(path)
	want := `{"uidMappings":[{"hostId":65536,"containerId":0,"length":65536}],"gidMappings":[{"hostId":65536,"containerId":0,"length":65536}]}`
	if err != nil || string(body) != want {
		t.Errorf("record %s, %v", body, err)
	}
	if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode of the record: %v, %v", st, err)
	}
	b := open(t, dir) // the agent was restarted
	if got, ok := b.Mapping("u1"); !ok || got != m {
		t.Errorf("after a restart: %+v, %v", got, ok)
	}
	if other := allot(t, b, "u2"); other.HostID == m.HostID {
		t.Errorf("both have %+v", other)
	}
	for range 2 {
		if err := b.Release("u1"); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(path); !os.IsNotExist(err) {
		t.Errorf("the record is still there: %v", err)
	}
	if _, ok := b.Mapping("u1"); ok {
		t.Error("a released range is still held")
	}
	if next := allot(t, b, "u3"); next == m {
		t.Error("a released range is used again at once, before the others")
	}
}

// TestEveryPrefix stops a creation after each of its steps: the next start
// finds a record or none, and allots without conflict.
func TestEveryPrefix(t *testing.T) {
	for what, setUp := range map[string]func(string) error{
		"directory": func(d string) error { return nil },
		"empty temporary file": func(d string) error {
			return os.WriteFile(filepath.Join(d, "userns.tmp"), nil, 0o600)
		},
		"half a temporary file": func(d string) error {
			return os.WriteFile(filepath.Join(d, "userns.tmp"), []byte(`{"uidMapp`), 0o600)
		},
		"record": func(d string) error { return writeRecord(d, pod.IDMapping{HostID: 65536, Length: 65536}) },
	} {
		dir := t.TempDir()
		if err := os.Mkdir(filepath.Join(dir, "u1"), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := setUp(filepath.Join(dir, "u1")); err != nil {
			t.Fatal(err)
		}
		a := open(t, dir)
		if one, two := allot(t, a, "u1"), allot(t, a, "u2"); one == two || one.HostID != 65536 {
			t.Errorf("%s: %+v and %+v", what, one, two)
		}
		if err := a.Release("u1"); err != nil {
			t.Errorf("%s: %v", what, err)
		}
		if left, err := os.ReadDir(filepath.Join(dir, "u1")); err != nil || len(left) != 0 {
			t.Errorf("%s: left %v, %v", what, left, err)
		}
	}
}

func TestBadRecords(t *testing.T) {
	dir := t.TempDir()
	good := func(uid string, m pod.IDMapping, age time.Duration) {
		t.Helper()
		d := filepath.Join(dir, uid)
		if err := writeRecord(d, m); err != nil {
			t.Fatal(err)
		}
		at := time.Now().Add(-age)
		if err := os.Chtimes(filepath.Join(d, "userns"), at, at); err != nil {
			t.Fatal(err)
		}
	}
	m := pod.IDMapping{HostID: 3 * unit, Length: unit}
	good("old", m, time.Hour)
	good("new", m, time.Minute)
	for uid, text := range map[string]string{"garbage": "x", "two": `{"uidMappings":[],"gidMappings":[]}`, "root": `{"uidMappings":[{"length":5}],"gidMappings":[{"length":5}]}`,
		"above": `{"uidMappings":[{"hostId":4294901760,"length":65537}],"gidMappings":[{"hostId":4294901760,"length":65537}]}`} {
		if err := os.MkdirAll(filepath.Join(dir, uid), 0o750); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, uid, "userns"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	a := open(t, dir)
	if len(a.pods) != 1 || a.pods["new"] != m {
		t.Errorf("held: %v", a.pods)
	}
	for _, uid := range []string{"old", "garbage", "two", "root", "above"} {
		aside, err := filepath.Glob(filepath.Join(dir, uid, "userns.corrupt-*"))
		if err != nil || len(aside) != 1 {
			t.Errorf("%s: put aside %v, %v", uid, aside, err)
		}
	}
	running := pod.IDMapping{HostID: unit, Length: unit} // what the runtime says that "garbage" has
	if err := a.Adopt("garbage", running); err != nil {
		t.Fatal(err)
	}
	if got := allot(t, a, "fresh"); got == running || got == m {
		t.Errorf("a used range was given away: %+v", got)
	}
	if err := a.Adopt("two", m); err == nil || !strings.Contains(err.Error(), "belong to pod new too") {
		t.Errorf("a conflict: %v", err)
	}
	for _, bad := range []pod.IDMapping{{}, {HostID: 5, Length: 5}, {HostID: unit, ContainerID: 1, Length: unit}} {
		if a.Adopt("odd", bad) == nil {
			t.Errorf("adopted %+v", bad)
		}
	}
	if _, err := a.Allot("../x"); err == nil {
		t.Error("a UID that leads out of the directory was taken")
	}
}

func TestNeverTwice(t *testing.T) {
	a := open(t, t.TempDir())
	a.span.count = 40
	var mu sync.Mutex
	seen, failed := map[uint32]pod.UID{}, 0
	var wg sync.WaitGroup
	for i := range 60 {
		wg.Go(func() {
			uid := pod.UID(fmt.Sprintf("u%d", i))
			m, err := a.Allot(uid)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				if failed++; pod.KindOf(err) != pod.Exhausted {
					t.Errorf("kind %v: %v", pod.KindOf(err), err)
				}
				return
			}
			if other := seen[m.HostID]; other != "" {
				t.Errorf("%s and %s both have %+v", uid, other, m)
			}
			seen[m.HostID] = uid
		})
	}
	wg.Wait()
	if len(seen) != 40 || failed != 20 {
		t.Errorf("%d allotted, %d refused", len(seen), failed)
	}
	for _, uid := range seen {
		if err := a.Release(uid); err != nil {
			t.Fatal(err)
		}
		break
	}
	allot(t, a, "late")
}

func TestRetain(t *testing.T) {
	dir := t.TempDir()
	a := open(t, dir)
	kept := allot(t, a, "kept")
	allot(t, a, "orphan")
	if err := a.Retain(func(uid pod.UID) bool { return uid == "kept" }); err != nil {
		t.Fatal(err)
	}
	b := open(t, dir)
	if m, ok := b.Mapping("kept"); !ok || m != kept || len(b.pods) != 1 || len(a.pods) != 1 {
		t.Errorf("retained %v, on disk %v", a.pods, b.pods)
	}
}

func TestSubIDs(t *testing.T) {
	for text, want := range map[string]string{
		"0: kubelet 65536 6553600":                      "{1 100}",
		"0: kubelet 65537 6553600":                      "must be multiples",
		"0: kubelet 0 6553600":                          "among the host's own",
		"0: kubelet 65536 4294967296":                   "end above",
		"0: kubelet 65536":                              "not of the form",
		"0: kubelet a b":                                "no numbers",
		"0: kubelet 65536 65536\n1: kubelet 1310720 65": "2 ranges",
	} {
		s, err := parseSubIDs(text, unit)
		if got := fmt.Sprint(s); err == nil && got != want || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %s, %v; want %s", text, got, err, want)
		}
	}
	if _, err := Open(t.Context(), Config{Dir: t.TempDir(), IDsPerPod: 100}); err == nil {
		t.Error("100 IDs for each pod were taken")
	}
	if _, err := Open(t.Context(), Config{Dir: t.TempDir(), MaxPods: 1 << 17}); err == nil || !strings.Contains(err.Error(), "max-pods") {
		t.Errorf("too many pods: %v", err)
	}
	wide, err := Open(t.Context(), Config{Dir: t.TempDir(), IDsPerPod: 2 * unit})
	if err != nil {
		t.Fatal(err)
	}
	if m := allot(t, wide, "u"); m.HostID != 2*unit || m.Length != 2*unit {
		t.Errorf("wide range %+v", m)
	}
}

func TestHost(t *testing.T) {
	m := pod.IDMapping{HostID: 65536, Length: 65536}
	if h, ok := m.Host(1000); !ok || h != 66536 {
		t.Errorf("1000 is %d, %v", h, ok)
	}
	if _, ok := m.Host(65536); ok {
		t.Error("an ID outside of the range was mapped")
	}
}

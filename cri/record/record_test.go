package record

import (
	"bytes"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

type thing struct {
	Name  string
	Ports []int
}

func openThings(t *testing.T, root, boot string) (*Dir[thing], *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	d, err := Open[thing](root, boot, slog.New(slog.NewTextHandler(&out, nil)))
	if err != nil {
		t.Fatal(err)
	}
	return d, &out
}

func TestWriteReadListRemove(t *testing.T) {
	root := filepath.Join(t.TempDir(), "things")
	d, _ := openThings(t, root, "boot-1")
	if _, err := d.Read("a1"); !errdefs.IsNotFound(err) {
		t.Fatalf("reading nothing: %v, want not found", err)
	}
	for range 2 {
		if err := d.Write("a1", thing{"web", []int{80}}); err != nil {
			t.Fatal(err)
		}
	}
	st, err := os.Stat(filepath.Join(d.Path("a1"), "record.json"))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("record file: %v, %v; want mode 0600", st, err)
	}
	got, err := d.Read("a1")
	if err != nil || got.Name != "web" || len(got.Ports) != 1 {
		t.Fatalf("read %+v, %v", got, err)
	}
	if err := os.Mkdir(filepath.Join(root, "b2"), 0o700); err != nil {
		t.Fatal(err)
	}
	again, _ := openThings(t, root, "boot-1")
	list, err := again.List()
	if err != nil || len(list) != 2 || list[0].ID != "a1" || list[0].Stray || list[0].Stale || !list[1].Stray {
		t.Fatalf("list %+v, %v", list, err)
	}
	for range 2 {
		for _, id := range []string{"a1", "b2"} {
			if err := again.Remove(id); err != nil {
				t.Fatal(err)
			}
		}
	}
	if left, _ := os.ReadDir(root); len(left) != 0 {
		t.Fatalf("left behind: %v", left)
	}
}

func TestStaleAfterReboot(t *testing.T) {
	root := t.TempDir()
	d, _ := openThings(t, root, "boot-1")
	if err := d.Write("a1", thing{Name: "web"}); err != nil {
		t.Fatal(err)
	}
	d, _ = openThings(t, root, "boot-2")
	list, err := d.List()
	if err != nil || len(list) != 1 || !list[0].Stale || list[0].Value.Name != "web" {
		t.Fatalf("list %+v, %v; want one stale entry", list, err)
	}
}

func TestCorruptIsSetAsideOnce(t *testing.T) {
	for name, content := range map[string]string{
		"torn": `{"boot":"b","record":{"Na`, "empty": "", "zeroes": "\x00\x00\x00", "null": "null",
		"no boot": `{"record":{"Name":"x"}}`, "no record": `{"boot":"b"}`, "wrong type": `{"boot":"b","record":{"Name":7}}`,
		"trailing": `{"boot":"b","record":{}} {}`,
	} {
		t.Run(name, func(t *testing.T) {
			d, out := openThings(t, t.TempDir(), "b")
			if err := d.Write("a1", thing{Name: "web"}); err != nil {
				t.Fatal(err)
			}
			scribble(t, d, "record.json", content)
			list, err := d.List()
			if err != nil || len(list) != 1 || list[0].Stray || list[0].Value.Name != "web" {
				t.Fatalf("list %+v, %v; want the copy", list, err)
			}
			if got := d.Quarantined(); got != 1 {
				t.Errorf("quarantined %d, want 1", got)
			}
			scribble(t, d, "record.json", content)
			scribble(t, d, "record.json.copy", content)
			for range 2 {
				list, err := d.List()
				if err != nil || len(list) != 1 || !list[0].Stray {
					t.Fatalf("list %+v, %v; want one stray", list, err)
				}
			}
			if n := d.Quarantined(); n != 3 {
				t.Errorf("quarantined %d times, want three", n)
			}
			if n := strings.Count(out.String(), "set aside"); n != 3 {
				t.Errorf("logged %d times, want each once:\n%s", n, out)
			}
			aside, _ := filepath.Glob(filepath.Join(d.Path("a1"), "record.json*.corrupt-*"))
			if len(aside) != 3 {
				t.Errorf("set aside: %v, want three files", aside)
			}
		})
	}
}

func scribble(t *testing.T, d *Dir[thing], name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(d.Path("a1"), name), []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestHostileIDs(t *testing.T) {
	d, _ := openThings(t, t.TempDir(), "b")
	for _, id := range []string{"", ".", "..", "../x", "a/b", "A", strings.Repeat("a", 129), "a\x00"} {
		if err := d.Write(id, thing{}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Write(%q) = %v, want invalid argument", id, err)
		}
		if err := d.Remove(id); !errdefs.IsInvalidArgument(err) {
			t.Errorf("Remove(%q) = %v, want invalid argument", id, err)
		}
	}
}

func TestNames(t *testing.T) {
	var n Names
	if err := errors.Join(n.Reserve("web", "a"), n.Reserve("web", "a")); err != nil {
		t.Fatal(err)
	}
	err := n.Reserve("web", "b")
	var taken *TakenError
	if !errdefs.IsAlreadyExists(err) || !errors.As(err, &taken) || taken.Holder != "a" {
		t.Fatalf("second holder: %v, want taken by a", err)
	}
	if err := n.Reserve("other", "a"); !errdefs.IsFailedPrecondition(err) {
		t.Fatalf("second name of a: %v", err)
	}
	n.Release("a")
	n.Release("a")
	if _, ok := n.Holder("web"); ok {
		t.Fatal("web is still held")
	}
	if err := n.Reserve("web", "b"); err != nil {
		t.Fatal(err)
	}
}

func TestNewIDAndBootID(t *testing.T) {
	if a, b := NewID(), NewID(); a == b || len(a) != 64 || checkID(a) != nil {
		t.Fatalf("IDs %q and %q", a, b)
	}
	if id, err := BootID(); err != nil || len(id) != 36 {
		t.Fatalf("boot ID %q, %v", id, err)
	}
}

package source

import (
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestWriterNobodyTellsOf: the kernel's event of a close comes before it has
// forgotten the writer, so that a file may be found open at its last event. Here
// the writer has the file by a link outside, whose close is no event at all.
func TestWriterNobodyTellsOf(t *testing.T) {
	t.Parallel()
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "x")
	early, err := os.Create(outside)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(outside, filepath.Join(dir, "early.yaml")); err != nil {
		t.Fatal(err)
	}
	h := start(t, t.TempDir(), func(c *Config) { c.Paths = []string{dir} })
	h.until("told that it is being written", func() bool { return len(h.Problems()) == 1 })
	finish := func(f *os.File, name string) {
		if _, err := f.WriteString(manifest(name, "i")); err != nil {
			t.Fatal(err)
		}
		if err := f.Close(); err != nil {
			t.Fatal(err)
		}
		h.until(name, func() bool { return h.get(name) != nil && len(h.Problems()) == 0 })
	}
	finish(early, "early")

	late, err := os.Create(outside + "2")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Link(outside+"2", filepath.Join(dir, "late.yaml")); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // let the event of the link be seen
	finish(late, "late")
}

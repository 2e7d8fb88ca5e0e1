package local

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/csi/volume"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

func TestWriterLayout(t *testing.T) {
	group := int64(4242)
	for _, tc := range []struct {
		name  string
		group *int64
		want  string
	}{
		{name: "plain", want: `
./ 755 0
..TIME/ 755 0
..TIME/a 644 0 1
..TIME/d/ 755 0
..TIME/d/e/ 755 0
..TIME/d/e/f 400 0 2
..data -> ..TIME
a -> ..data/a
d -> ..data/d`},
		{name: "fsGroup", group: &group, want: `
./ 755 0
..TIME/ 2755 4242
..TIME/a 644 4242 1
..TIME/d/ 2755 4242
..TIME/d/e/ 2755 4242
..TIME/d/e/f 440 4242 2
..data -> ..TIME
a -> ..data/a
d -> ..data/d`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := scratch(t)
			must(t, os.Chmod(dir, 0o755))
			p := payload("a", "1")
			p["d/e/f"] = volume.File{Data: []byte("2"), Mode: 0o400}
			old := unix.Umask(0o077) // the writer's modes do not depend on it
			_, err := writer{pod: podIn(dir, tc.group), now: time.Now()}.write(dir, p)
			unix.Umask(old)
			must(t, err)
			if got := list(t, dir); got != strings.TrimSpace(tc.want) {
				t.Errorf("got\n%s\nwant%s", got, tc.want)
			}
		})
	}
}

func TestWriterWritesOnlyChanges(t *testing.T) {
	dir := scratch(t)
	w := writer{pod: podIn(dir, nil), now: time.Now()}
	steps := []struct {
		payload volume.Payload
		changed bool
		top     string
	}{
		{payload("a", "1", "b/c", "2"), true, "a b"},
		{payload("a", "1", "b/c", "2"), false, "a b"},
		{payload("a", "9", "b/c", "2"), true, "a b"}, // same length
		{payload("a", "9"), true, "a"},
		{payload("a", "9", "n", ""), true, "a n"},
		{payload("a", "9", "n", ""), false, "a n"},
		{payload(), true, ""},
		{payload(), false, ""},
		{payload("a/b", "x"), true, "a"},
		{payload("a", "x"), true, "a"},
	}
	for i, s := range steps {
		before := stamps(t, dir)
		changed, err := w.write(dir, s.payload)
		must(t, err)
		if changed != s.changed {
			t.Errorf("step %d: changed %v, want %v", i, changed, s.changed)
		}
		if after := stamps(t, dir); !s.changed && after != before {
			t.Errorf("step %d: an idle write touched something:\n%s\n%s", i, before, after)
		}
		checkShown(t, dir, s.payload)
		if got := strings.Join(s.payload.Top(), " "); got != s.top {
			t.Errorf("step %d: top %q, want %q", i, got, s.top)
		}
	}
}

// stamps changes with every write below dir, also of mode, owner and directory entries.
func stamps(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		fmt.Fprintln(&b, p, st.Ino, st.Ctim)
		return nil
	}))
	return b.String()
}

// checkShown checks that a reader sees exactly the payload, and that the
// directory holds nothing but it.
func checkShown(t failer, dir string, want volume.Payload) {
	t.Helper()
	for name, f := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if string(got) != string(f.Data) {
			t.Fatal(fmt.Sprintf("%s holds %q, want %q", name, got, f.Data))
		}
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != len(want.Top())+2 {
		t.Fatal(fmt.Sprintf("left-overs in the volume:\n%s", list(t, dir)))
	}
}

// TestWriterRecoversFromAnything cuts an earlier writer short by breaking what it
// left at random, and expects the next one to make the volume right.
func TestWriterRecoversFromAnything(t *testing.T) {
	base := scratch(t)
	n := 0
	keys := []string{"a", "b", "c/d", "c/e", "f"}
	draw := func(t *rapid.T, label string) volume.Payload {
		p := volume.Payload{}
		for _, k := range rapid.SliceOfDistinct(rapid.SampledFrom(keys), rapid.ID).Draw(t, label) {
			p[k] = volume.File{Data: []byte(rapid.SampledFrom([]string{"", "x", "yy"}).Draw(t, k)), Mode: 0o644}
		}
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		must(t, os.Mkdir(dir, 0o755))
		w := writer{pod: podIn(dir, nil), now: time.Now()}
		_, err := w.write(dir, draw(t, "old"))
		must(t, err)
		current, err := os.Readlink(filepath.Join(dir, dataLink))
		must(t, err)
		for _, damage := range rapid.SliceOfN(rapid.IntRange(0, 6), 0, 3).Draw(t, "damage") {
			switch damage {
			case 0:
				os.Remove(filepath.Join(dir, dataLink))
			case 1:
				os.Symlink("..nowhere", filepath.Join(dir, dataLinkTmp))
			case 2:
				must(t, os.MkdirAll(filepath.Join(dir, "..2020_01_01_00_00_00.1", "half"), 0o700))
			case 3:
				os.Remove(filepath.Join(dir, "a"))
			case 4:
				os.WriteFile(filepath.Join(dir, current, "torn"), nil, 0o644)
			case 5:
				os.Truncate(filepath.Join(dir, current, "b"), 0)
			case 6:
				if os.Remove(filepath.Join(dir, "f")) == nil {
					must(t, os.Mkdir(filepath.Join(dir, "f"), 0o755)) // made for a subPath
				}
			}
		}
		next := draw(t, "new")
		_, keptDir := next["f"]
		_, err = w.write(dir, next)
		must(t, err)
		if st, err := os.Lstat(filepath.Join(dir, "f")); err == nil && st.IsDir() && !keptDir {
			must(t, os.Remove(filepath.Join(dir, "f"))) // a subPath's directory stays: it was not the writer's
		}
		checkShown(t, dir, next)
	})
}

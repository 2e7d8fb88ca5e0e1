package mount

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// look renders mode and group of everything below dir.
func look(t failer, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		rel, _ := filepath.Rel(dir, p)
		fmt.Fprintf(&b, "%s %o %d\n", rel, st.Mode&0o7777, st.Gid)
		return nil
	}))
	return b.String()
}

func TestOwn(t *testing.T) {
	for _, tc := range []struct {
		name     string
		readOnly bool
		want     string
	}{
		{"writable", false, ". 2770 77\nd 3771 77\nd/f 664 77\nlink 777 77\nsuid 4771 77\n"},
		{"read-only", true, ". 2750 77\nd 3751 77\nd/f 644 77\nlink 777 77\nsuid 4751 77\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := tree(t)
			vol, outside := filepath.Join(dir, "vol"), filepath.Join(dir, "outside")
			must(t, os.MkdirAll(filepath.Join(vol, "d"), 0o755))
			must(t, os.WriteFile(filepath.Join(vol, "d", "f"), nil, 0o600))
			must(t, os.WriteFile(filepath.Join(vol, "suid"), nil, 0o600))
			must(t, os.WriteFile(outside, nil, 0o600))
			must(t, os.Symlink("../outside", filepath.Join(vol, "link")))
			for name, mode := range map[string]uint32{".": 0o700, "d": 0o1701, "d/f": 0o604, "suid": 0o4711} {
				must(t, unix.Chmod(filepath.Join(vol, name), mode))
			}
			to := Ownership{Group: 77, ReadOnly: tc.readOnly}
			must(t, Own(t.Context(), vol, to))
			if got := look(t, vol); got != tc.want {
				t.Errorf("became\n%swant\n%s", got, tc.want)
			}
			if got := look(t, outside); got != ". 600 0\n" {
				t.Errorf("what a link points to became %s", got)
			}
			before := changes(t, vol)
			must(t, Own(t.Context(), vol, to))
			if changes(t, vol) != before {
				t.Error("what was right was touched again")
			}
		})
	}
}

// changes tells every change of an inode below dir.
func changes(t *testing.T, dir string) string {
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		fmt.Fprintln(&b, p, st.Ctim)
		return nil
	}))
	return b.String()
}

func TestOwnOnRootMismatch(t *testing.T) {
	vol := tree(t)
	f := filepath.Join(vol, "f")
	for _, tc := range []struct {
		name   string
		mode   uint32
		gid    int
		change bool
	}{
		{"as it should be", 0o2770, 77, false},
		{"more than it should be", 0o3777, 77, false},
		{"another group", 0o2770, 78, true},
		{"no setgid", 0o770, 77, true},
		{"group may not write", 0o2750, 77, true},
		{"group may not search", 0o2760, 77, true},
	} {
		must(t, os.RemoveAll(f))
		must(t, os.WriteFile(f, nil, 0o600))
		must(t, os.Chown(vol, 0, tc.gid))
		must(t, unix.Chmod(vol, tc.mode))
		must(t, Own(t.Context(), vol, Ownership{Group: 77, OnRootMismatch: true}))
		if changed := look(t, f) == ". 660 77\n"; changed != tc.change {
			t.Errorf("%s: changed %v, want %v", tc.name, changed, tc.change)
		}
		must(t, Own(t.Context(), vol, Ownership{Group: 77}))
		if got := look(t, f); got != ". 660 77\n" {
			t.Errorf("%s: policy Always left the file %s", tc.name, got)
		}
	}
}

// TestOwnIsCutShort: a change that was interrupted is one that OnRootMismatch
// goes on with.
func TestOwnIsCutShort(t *testing.T) {
	vol := tree(t)
	for i := range 20 {
		must(t, os.WriteFile(filepath.Join(vol, fmt.Sprint(i)), nil, 0o600))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	to := Ownership{Group: 77, OnRootMismatch: true}
	if err := Own(ctx, vol, to); !errors.Is(err, context.Canceled) {
		t.Fatalf("cut short: %v", err)
	}
	must(t, Own(t.Context(), vol, to))
	if got := look(t, vol); strings.Count(got, " 660 77\n") != 20 || !strings.HasPrefix(got, ". 2") {
		t.Errorf("became %s", got)
	}
}

func TestOwnLeavesMountsAlone(t *testing.T) {
	dir := tree(t)
	vol, live := filepath.Join(dir, "vol"), filepath.Join(dir, "live")
	must(t, os.MkdirAll(filepath.Join(vol, "m"), 0o700))
	must(t, os.MkdirAll(filepath.Join(live, "sub"), 0o700))
	must(t, unix.Mount(live, filepath.Join(vol, "m"), "", unix.MS_BIND, ""))
	before := changes(t, live)
	must(t, Own(t.Context(), vol, Ownership{Group: 77}))
	if changes(t, live) != before {
		t.Error("what is mounted in the volume was changed")
	}
}

func TestOwnOfDeepDirectories(t *testing.T) {
	vol := tree(t)
	fd, err := unix.Open(vol, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	must(t, err)
	for range maxNesting + 2 {
		must(t, unix.Mkdirat(fd, "d", 0o700))
		next, err := unix.Openat(fd, "d", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	if err := Own(t.Context(), vol, Ownership{Group: 77}); err == nil || !strings.Contains(err.Error(), "directories inside each other") {
		t.Errorf("too deep a volume: %v", err)
	}
	if got := look(t, filepath.Join(vol, "d", "d", "d")); !strings.HasPrefix(got, ". 2770 77\n") {
		t.Errorf("the rest was not changed: %.20s", got)
	}
	must(t, RemoveTree(t.Context(), filepath.Join(vol, "d")))
}

func TestOwnReportsWhatTakesLong(t *testing.T) {
	vol := tree(t)
	for i := range 3000 {
		must(t, os.WriteFile(filepath.Join(vol, fmt.Sprint(i)), nil, 0o600))
	}
	var reports, last atomic.Int64
	report := func(files int64) { reports.Add(1); last.Store(files) }
	must(t, Own(t.Context(), vol, Ownership{Group: 77, Report: report, First: time.Microsecond, Every: 100 * time.Microsecond}))
	if reports.Load() < 2 || last.Load() == 0 || last.Load() > 3001 {
		t.Errorf("%d reports, the last of %d files", reports.Load(), last.Load())
	}
	reports.Store(0)
	must(t, Own(t.Context(), vol, Ownership{Group: 77, Report: report, First: time.Hour, Every: time.Hour}))
	if n := reports.Load(); n > 0 {
		t.Errorf("%d reports of a short change", n)
	}
}

// TestOwnNeverLeavesTheVolume changes random trees while somebody swaps parts of
// them for links to what is outside.
func TestOwnNeverLeavesTheVolume(t *testing.T) {
	dir := tree(t)
	outside := filepath.Join(dir, "outside")
	must(t, os.MkdirAll(filepath.Join(outside, "d"), 0o700))
	must(t, os.WriteFile(filepath.Join(outside, "f"), nil, 0o600))
	must(t, os.WriteFile(filepath.Join(outside, "d", "f"), nil, 0o600))
	before, n := changes(t, outside), 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		vol := filepath.Join(dir, fmt.Sprint(n))
		names := rapid.SliceOfNDistinct(rapid.StringMatching(`[df](/[df]){0,3}`), 1, 8, rapid.ID[string]).Draw(rt, "names")
		for _, name := range names {
			must(rt, os.MkdirAll(filepath.Join(vol, filepath.Dir(name)), 0o700))
			if st, err := os.Lstat(filepath.Join(vol, name)); err == nil && st.IsDir() {
				continue
			}
			must(rt, os.WriteFile(filepath.Join(vol, name+".x"), nil, 0o600))
		}
		link := filepath.Join(vol, "link")
		must(rt, os.Symlink(outside, link))
		victim := filepath.Join(vol, strings.Split(names[0], "/")[0])
		if _, err := os.Lstat(victim); err != nil {
			must(rt, os.Mkdir(victim, 0o700))
		}
		stop, ended := make(chan struct{}), make(chan struct{})
		go func() {
			defer close(ended)
			for {
				select {
				case <-stop:
					return
				default:
					_ = unix.Renameat2(unix.AT_FDCWD, victim, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE)
				}
			}
		}()
		for range 3 {
			_ = Own(t.Context(), vol, Ownership{Group: 77}) // may be caught in the middle of a swap
		}
		close(stop)
		<-ended
		must(rt, Own(t.Context(), vol, Ownership{Group: 77}))
		for _, line := range strings.Split(strings.TrimSpace(look(rt, vol)), "\n") {
			if !strings.HasSuffix(line, " 77") {
				rt.Fatal("not given to the group: ", line)
			}
		}
		if changes(t, outside) != before {
			rt.Fatal("what is outside the volume was changed")
		}
	})
}

package local

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/csi/mount"
	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// TestSubPathNeverLeavesTheVolume resolves random subPaths through a volume in
// which a container swaps directories and files for links out of it, at whatever
// depth, as fast as it can. What gets bound is the volume's own, what gets made
// is made inside.
func TestSubPathNeverLeavesTheVolume(t *testing.T) {
	dir := scratch(t)
	outside := filepath.Join(dir, "outside")
	must(t, os.MkdirAll(filepath.Join(outside, "a", "b"), 0o755))
	for _, at := range []string{"secret", "a/secret", "a/b/secret"} {
		must(t, os.WriteFile(filepath.Join(outside, at), []byte("host"), 0o600))
	}
	before := list(t, outside)
	n, bound, swaps := 0, 0, 0
	rapid.Check(t, func(rt *rapid.T) {
		n++
		vol := filepath.Join(dir, fmt.Sprint("vol", n))
		must(rt, os.MkdirAll(filepath.Join(vol, "a", "b", "c"), 0o755))
		must(rt, os.WriteFile(filepath.Join(vol, "a", "f"), []byte("pod"), 0o600))
		victim := rapid.SampledFrom([]string{"a", "a/b", "a/b/c", "a/f"}).Draw(rt, "victim")
		to := rapid.SampledFrom([]string{outside, "../outside", "../../outside", "../../../outside", outside + "/a", "/proc/self/root" + outside, outside + "/secret"}).Draw(rt, "to")
		link := filepath.Join(filepath.Dir(filepath.Join(vol, victim)), "link")
		must(rt, os.Symlink(to, link))
		end := swap(filepath.Join(vol, victim), link)
		for i := range 6 {
			sub := rapid.SampledFrom([]string{"a", "a/b", "a/b/c", "a/b/c/new", "a/new/er", "a/f", "a/secret", "link", "a/link", "a/link/b", "link/x"}).Draw(rt, "sub")
			target := filepath.Join(dir, fmt.Sprint("t", n), fmt.Sprint(i))
			if err := SubPath(mount.Kernel{}, vol, sub, target); err != nil {
				continue // caught in the act, or a link that leads out
			}
			bound++
			checkOwn(rt, target)
			must(rt, mount.Kernel{}.Unmount(target))
		}
		swaps += end()
	})
	if swaps == 0 || bound == 0 {
		t.Errorf("%d swaps, %d binds: nothing was tested", swaps, bound)
	}
	if after := list(t, outside); after != before {
		t.Errorf("what is outside the volume became\n%s", after)
	}
}

// checkOwn fails if target shows anything of what is outside the volume.
func checkOwn(t failer, target string) {
	t.Helper()
	for _, path := range []string{target, filepath.Join(target, "secret")} {
		if content, err := os.ReadFile(path); err == nil && string(content) == "host" {
			t.Fatal("the bind shows a file of the host")
		}
	}
	var st unix.Stat_t
	must(t, unix.Lstat(target, &st))
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		t.Fatal("a link was bound")
	}
}

// swap exchanges a and b until the function it returns is called, which says how often.
func swap(a, b string) (end func() int) {
	stop, swapped := make(chan struct{}), make(chan int)
	go func() {
		n := 0
		for {
			select {
			case <-stop:
				swapped <- n
				return
			default:
				if unix.Renameat2(unix.AT_FDCWD, a, unix.AT_FDCWD, b, unix.RENAME_EXCHANGE) == nil {
					n++
				}
			}
		}
	}()
	return func() int { close(stop); return <-swapped }
}

// TestReserved: a volume of huge pages that nobody could write to is refused.
func TestReserved(t *testing.T) {
	have := []mount.HugePages{{Size: 2 << 20}, {Size: 1 << 30, Pages: 1}}
	for _, tc := range []struct {
		size int64
		have []mount.HugePages
		want string
	}{
		{1 << 30, have, ""},
		{2 << 20, have, "Exhausted: no huge pages of 2Mi are reserved on this node; write a number to /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages"},
		{64 << 10, have, "Invalid: the kernel of this node has no huge pages of 64Ki, only of 2Mi, 1Gi"},
		{2 << 20, nil, "Invalid: the kernel of this node has no huge pages; use an emptyDir of medium Memory"},
	} {
		got := ""
		if err := reserved(tc.size, tc.have); err != nil {
			e := Classify("", "", err)
			got = e.Code.String() + ": " + e.Error()
		}
		if !strings.HasPrefix(got, tc.want) || (tc.want == "") != (got == "") {
			t.Errorf("%q, want %q", got, tc.want)
		}
	}
}

func TestSlowChangesAreToldInOrder(t *testing.T) {
	var told []string
	p := Pod{SlowAfter: SlowAfter, SlowEvery: SlowEvery, Slow: func(name string, files int64, first bool) {
		told = append(told, fmt.Sprintf("%s %d %v", name, files, first))
	}}
	o := p.ownership("v", 5)
	o.Report(1)
	o.Report(2)
	if got := strings.Join(told, " "); got != "v 1 true v 2 false" || o.First != SlowAfter || o.Every != SlowEvery || o.Group != 5 {
		t.Errorf("told %q by %+v", got, o)
	}
	if o := (Pod{}).ownership("v", 5); o.Report != nil {
		t.Error("reports that nobody wants")
	}
}

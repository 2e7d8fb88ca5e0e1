package stats

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// tree makes files below a fresh directory: path → content.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

func show(s Sample) string {
	var b strings.Builder
	if s.CPU != nil {
		fmt.Fprintf(&b, "cpu %v ", s.CPU.Usage)
	}
	if m := s.Memory; m != nil {
		available, ok := m.Available()
		fmt.Fprintf(&b, "memory %d/%d set %d rss %d faults %d/%d available %d %v ", m.Usage, m.Limit, m.WorkingSet, m.RSS, m.PageFaults, m.MajorPageFaults, available, ok)
		if m.Swap != nil {
			fmt.Fprintf(&b, "swap %d ", *m.Swap)
		}
	}
	if s.Pids != nil {
		fmt.Fprintf(&b, "pids %d/%d", s.Pids.Current, s.Pids.Limit)
	}
	return strings.TrimSpace(b.String())
}

func TestRead(t *testing.T) {
	for _, tc := range []struct {
		name  string
		files map[string]string
		want  string
		err   string
	}{
		{name: "v2", files: map[string]string{
			"cgroup.controllers": "cpuset cpu io memory pids\n",
			"p/c/cpu.stat":       "usage_usec 1500000\nuser_usec 1\n", "p/c/memory.current": "1000\n", "p/c/memory.max": "4000\n",
			"p/c/memory.stat": "anon 300\ninactive_file 400\npgfault 7\npgmajfault 2\n", "p/c/memory.swap.current": "50\n",
			"p/c/pids.current": "3\n", "p/c/pids.max": "max\n",
		}, want: "cpu 1.5s memory 1000/4000 set 600 rss 300 faults 7/2 available 3400 true swap 50 pids 3/0"},
		{name: "v2 without limits and swap", files: map[string]string{
			"cgroup.controllers": "cpu memory pids\n",
			"p/c/cpu.stat":       "usage_usec 0\n", "p/c/memory.current": "100\n", "p/c/memory.max": "max\n",
			"p/c/memory.stat": "anon 1\ninactive_file 400\n", "p/c/pids.current": "1\n", "p/c/pids.max": "9\n",
		}, want: "cpu 0s memory 100/0 set 0 rss 1 faults 0/0 available 0 false pids 1/9"},
		{name: "v1", files: map[string]string{
			"cpu,cpuacct/p/c/cpuacct.usage": "2000000001\n", "memory/p/c/memory.usage_in_bytes": "1000\n",
			"memory/p/c/memory.limit_in_bytes": "9223372036854771712\n", "memory/p/c/memory.memsw.usage_in_bytes": "1200\n",
			"memory/p/c/memory.stat": "rss 1\ntotal_rss 300\ninactive_file 2\ntotal_inactive_file 250\ntotal_pgfault 7\ntotal_pgmajfault 2\n",
			"pids/p/c/pids.current":  "3\n", "pids/p/c/pids.max": "100\n",
		}, want: "cpu 2.000000001s memory 1000/0 set 750 rss 300 faults 7/2 available 0 false swap 200 pids 3/100"},
		{name: "hybrid with memory on v2", files: map[string]string{
			"unified/cgroup.controllers": "memory\n", "cpuacct/p/c/cpuacct.usage": "1000\n",
			"unified/p/c/memory.current": "10\n", "unified/p/c/memory.stat": "anon 1\ninactive_file 4\n", "unified/p/c/memory.max": "20\n",
		}, want: "cpu 1µs memory 10/20 set 6 rss 1 faults 0/0 available 14 true"},
		{name: "one controller only", files: map[string]string{
			"memory/other/x": "", "cpuacct/p/c/cpuacct.usage": "1000\n",
		}, want: "cpu 1µs"},
		{name: "gone", files: map[string]string{"memory/other/x": ""}, err: "cgroup /p/c: file does not exist"},
		{name: "nonsense", files: map[string]string{"cpuacct/p/c/cpuacct.usage": "many\n"}, err: `invalid syntax`},
		{name: "huge file", files: map[string]string{"cpuacct/p/c/cpuacct.usage": strings.Repeat("1", 200<<10)}, err: "larger than 65536 bytes"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := Open(tree(t, tc.files))
			if err != nil {
				t.Fatal(err)
			}
			s, err := r.Read("/p/c")
			if tc.err != "" {
				if err == nil || !strings.Contains(err.Error(), tc.err) {
					t.Errorf("error %v, want %s", err, tc.err)
				}
				return
			}
			if err != nil || show(s) != tc.want {
				t.Errorf("%s (%v)\nwant %s", show(s), err, tc.want)
			}
		})
	}
}

func TestRefusedPaths(t *testing.T) {
	r, err := Open(tree(t, map[string]string{"memory/x": ""}))
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{"", "a", "/../etc", "/a/../../b", "/a/"} {
		if _, err := r.Read(path); err == nil || errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q: %v", path, err)
		}
	}
	if _, err := Open(t.TempDir()); err == nil {
		t.Error("opened a host without cgroups")
	}
}

func TestNanoCores(t *testing.T) {
	at := time.Now()
	a := Sample{At: at, CPU: &CPU{Usage: time.Second}}
	for _, tc := range []struct {
		b    Sample
		want uint64
		ok   bool
	}{
		{Sample{At: at.Add(2 * time.Second), CPU: &CPU{Usage: 2 * time.Second}}, 5e8, true},
		{Sample{At: at.Add(time.Second), CPU: &CPU{Usage: 3 * time.Second}}, 2e9, true},
		{Sample{At: at, CPU: &CPU{Usage: 3 * time.Second}}, 0, false},
		{Sample{At: at.Add(time.Second), CPU: &CPU{}}, 0, false},
		{Sample{At: at.Add(time.Second)}, 0, false},
	} {
		if got, ok := NanoCores(a, tc.b); got != tc.want || ok != tc.ok {
			t.Errorf("%d %v, want %d %v", got, ok, tc.want, tc.ok)
		}
	}
}

// TestReadOfThisHost reads the cgroup of a child of the root that this process
// can see, on whatever layout the host has.
func TestReadOfThisHost(t *testing.T) {
	const root = "/sys/fs/cgroup"
	r, err := Open(root)
	if err != nil {
		t.Skipf("no cgroups on this host: %v", err)
	}
	name := fmt.Sprintf("/berth-stats-test-%d", os.Getpid())
	made := false
	for _, p := range []place{r.cpu, r.memory, r.pids} {
		if p.dir == "" {
			continue
		}
		if err := os.Mkdir(p.dir+name, 0o755); err == nil {
			made = true
			t.Cleanup(func() {
				if err := os.Remove(p.dir + name); err != nil {
					t.Error(err)
				}
			})
		} else if !errors.Is(err, fs.ErrExist) {
			t.Logf("cannot make a cgroup: %v", err)
		}
	}
	if !made {
		t.Skip("no cgroup can be made on this host")
	}
	s, err := r.Read(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Log(show(s))
	if s.CPU == nil && s.Memory == nil && s.Pids == nil {
		t.Error("nothing was read")
	}
	if s.CPU != nil && s.CPU.Usage != 0 {
		t.Errorf("an empty cgroup used %v", s.CPU.Usage)
	}
}

func BenchmarkRead(b *testing.B) {
	r, err := Open("/sys/fs/cgroup")
	if err != nil {
		b.Skip(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := r.Read("/"); err != nil {
			b.Skip(err)
		}
	}
}

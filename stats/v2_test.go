package stats

import (
	"os"
	"reflect"
	"testing"
	"time"
)

const stalls = "some avg10=1.50 avg60=0.25 avg300=0.05 total=1234\nfull avg10=0.50 avg60=0.00 avg300=0.00 total=7\n"

var pressed = &Pressure{Some: Stall{1234 * time.Microsecond, 1.5, 0.25, 0.05}, Full: Stall{7 * time.Microsecond, 0.5, 0, 0}}

func ptr(v uint64) *uint64 { return &v }

// TestAllOfACgroup reads everything there is, on both versions.
func TestAllOfACgroup(t *testing.T) {
	for name, tc := range map[string]struct {
		files map[string]string
		want  Sample
	}{
		"v2": {map[string]string{
			"cgroup.controllers": "cpu io memory pids\n",
			"c/cpu.stat":         "usage_usec 30\nuser_usec 20\nsystem_usec 10\nnr_periods 5\nnr_throttled 4\nthrottled_usec 3\n", "c/cpu.pressure": stalls,
			"c/memory.current": "1000\n", "c/memory.max": "2000\n", "c/memory.peak": "1500\n", "c/memory.events": "low 0\noom 3\noom_kill 2\noom_group_kill 0\n",
			"c/memory.stat":         "anon 1\nfile 2\nkernel 3\nfile_mapped 4\ninactive_file 5\nactive_file 6\npgfault 7\npgmajfault 8\n",
			"c/memory.swap.current": "9\n", "c/memory.swap.max": "0\n", "c/memory.pressure": stalls,
			"c/io.stat": "8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n259:1 \n", "c/io.pressure": stalls,
		}, Sample{
			CPU:    &CPU{Usage: 30 * time.Microsecond, User: 20 * time.Microsecond, System: 10 * time.Microsecond, Periods: 5, ThrottledPeriods: 4, Throttled: 3 * time.Microsecond, Pressure: pressed},
			Memory: &Memory{Usage: 1000, Limit: 2000, Peak: 1500, OOMKills: 2, RSS: 1, Cache: 2, Kernel: 3, Mapped: 4, InactiveFile: 5, WorkingSet: 995, ActiveFile: 6, PageFaults: 7, MajorPageFaults: 8, Swap: ptr(9), SwapLimit: ptr(0), Pressure: pressed},
			IO:     &IO{Devices: []Device{{8, 0, 1, 2, 3, 4}, {Major: 259, Minor: 1}}, Pressure: pressed},
		}},
		"v1": {map[string]string{
			"cpuacct/c/cpuacct.usage": "30\n", "cpuacct/c/cpuacct.stat": "user 2\nsystem 1\n", "cpu/c/cpu.stat": "nr_periods 5\nnr_throttled 4\nthrottled_time 3\n",
			"memory/c/memory.usage_in_bytes": "1000\n", "memory/c/memory.limit_in_bytes": "2000\n", "memory/c/memory.max_usage_in_bytes": "1500\n", "memory/c/memory.failcnt": "11\n",
			"memory/c/memory.kmem.usage_in_bytes": "3\n", "memory/c/memory.oom_control": "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n",
			"memory/c/memory.stat":                 "total_rss 1\ntotal_cache 2\ntotal_mapped_file 4\ntotal_inactive_file 5\ntotal_active_file 6\ntotal_pgfault 7\ntotal_pgmajfault 8\n",
			"memory/c/memory.memsw.usage_in_bytes": "1009\n", "memory/c/memory.memsw.limit_in_bytes": "2000\n",
			"blkio/c/blkio.throttle.io_service_bytes_recursive": "8:0 Read 1\n8:0 Write 2\n8:0 Sync 3\n8:0 Total 3\nTotal 3\n", "blkio/c/blkio.throttle.io_serviced_recursive": "8:0 Read 3\n8:0 Write 4\nTotal 7\n",
		}, Sample{
			CPU:    &CPU{Usage: 30, User: 20 * time.Millisecond, System: 10 * time.Millisecond, Periods: 5, ThrottledPeriods: 4, Throttled: 3},
			Memory: &Memory{Usage: 1000, Limit: 2000, Peak: 1500, Failures: 11, OOMKills: 2, RSS: 1, Cache: 2, Kernel: 3, Mapped: 4, InactiveFile: 5, WorkingSet: 995, ActiveFile: 6, PageFaults: 7, MajorPageFaults: 8, Swap: ptr(9), SwapLimit: ptr(0)},
			IO:     &IO{Devices: []Device{{8, 0, 1, 2, 3, 4}}},
		}},
	} {
		r, err := Open(tree(t, tc.files))
		if err != nil {
			t.Fatal(err)
		}
		s, err := r.Read("/c")
		s.At = time.Time{}
		if err != nil || !reflect.DeepEqual(s, tc.want) {
			t.Errorf("%s: %v\ncpu %+v\nmemory %+v\nio %+v\nwant\n%+v\n%+v\n%+v", name, err, s.CPU, s.Memory, s.IO, tc.want.CPU, tc.want.Memory, tc.want.IO)
		}
	}
}

func TestProcesses(t *testing.T) {
	r, err := Open(tree(t, map[string]string{
		"cgroup.controllers": "pids\n", "c/cgroup.procs": "1\n2\n", "c/below/cgroup.procs": "3\n", "c/below/deep/cgroup.procs": "4\n", "c/pids.current": "9\n",
	}))
	if err != nil {
		t.Fatal(err)
	}
	ids, n, err := r.Processes("/c", 3)
	if err != nil || n != 4 || !reflect.DeepEqual(ids, []int{1, 2, 3}) {
		t.Errorf("%v, %d, %v", ids, n, err)
	}
	if _, _, err := r.Processes("/none", 3); !gone(err) {
		t.Error(err)
	}
	if _, _, err := r.Processes("/c/../c", 3); err == nil || gone(err) {
		t.Error(err)
	}
}

func TestInterfaces(t *testing.T) {
	all, err := parseInterfaces([]byte("Inter-|   Receive    |  Transmit\n face |bytes    packets errs drop fifo frame compressed multicast|bytes\n" +
		"    lo:       1      2    3    4    0     0          0         0      5      6    7    8    0     0       0          0\n" +
		"eth0:1: 9 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"))
	want := []Interface{{"lo", 1, 2, 3, 4, 5, 6, 7, 8}, {Name: "eth0:1", RxBytes: 9}}
	if err != nil || !reflect.DeepEqual(all, want) {
		t.Errorf("%+v, %v", all, err)
	}
	for _, bad := range []string{"eth0: 1 2 3\n", "eth0: x 0 0 0 0 0 0 0 0 0 0 0 0 0 0 0\n"} {
		if _, err := parseInterfaces([]byte(bad)); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
	if os.Getuid() != 0 {
		t.Skip("entering a network namespace needs root")
	}
	own, err := os.Open("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	for range 50 { // threads that came back are used again
		if all, err := Interfaces(own); err != nil || len(all) == 0 {
			t.Fatalf("%v, %v", all, err)
		}
	}
}

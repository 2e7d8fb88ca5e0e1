package report

import (
	"strconv"
	"time"

	"github.com/berthd/berth/stats"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// CRI's metrics have whole numbers: what cAdvisor tells in seconds and fractions
// of them is told in whole seconds.
func seconds(d time.Duration) uint64 { return uint64(max(0, d) / time.Second) }

func one(v uint64) []point { return []point{{value: v}} }

// ofCPU, ofMemory, ofSpec and ofFS leave a metric out where its source is missing.
func ofCPU(f func(*stats.CPU) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if r.CPU == nil {
			return nil
		}
		return one(f(r.CPU))
	}
}

func ofMemory(f func(*stats.Memory) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if r.Memory == nil {
			return nil
		}
		return one(f(r.Memory))
	}
}

func ofSpec(f func(*runtimeapi.LinuxContainerResources) int64) func(*reading) []point {
	return func(r *reading) []point { return one(uint64(max(0, f(r.Resources)))) }
}

// device is how cAdvisor's labels name the file system that all writable layers share.
const device = "device"

func ofFS(f func(*unix.Statfs_t) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if r.disk.Bsize == 0 {
			return nil
		}
		return []point{{f(&r.disk), []string{""}}}
	}
}

// ofIO gives one point for each device.
func ofIO(f func(stats.Device) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if r.IO == nil {
			return nil
		}
		var out []point
		for _, d := range r.IO.Devices {
			out = append(out, point{f(d), []string{deviceName(d)}})
		}
		return out
	}
}

func deviceName(d stats.Device) string {
	return strconv.FormatUint(d.Major, 10) + ":" + strconv.FormatUint(d.Minor, 10)
}

func failures(r *reading) []point {
	if r.Memory == nil {
		return nil
	}
	// The counters are of the whole tree of cgroups, which for a container without
	// cgroups of its own below is the same.
	var out []point
	for _, scope := range []string{"container", "hierarchy"} {
		out = append(out, point{r.Memory.PageFaults, []string{"pgfault", scope}}, point{r.Memory.MajorPageFaults, []string{"pgmajfault", scope}})
	}
	return out
}

func blkio(r *reading) []point {
	if r.IO == nil {
		return nil
	}
	var out []point
	for _, d := range r.IO.Devices {
		major, minor := strconv.FormatUint(d.Major, 10), strconv.FormatUint(d.Minor, 10)
		out = append(out, point{d.ReadBytes, []string{deviceName(d), major, minor, "Read"}}, point{d.WrittenBytes, []string{deviceName(d), major, minor, "Write"}})
	}
	return out
}

func ofOpen(f func(open) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if !r.open.known {
			return nil
		}
		return one(f(r.open))
	}
}

func threads(f func(*stats.Pids) uint64) func(*reading) []point {
	return func(r *reading) []point {
		if r.Pids == nil {
			return nil
		}
		return one(f(r.Pids))
	}
}

// ulimits tells those of the first process that are finite.
func ulimits(r *reading) []point {
	var l unix.Rlimit
	if r.PID == 0 || unix.Prlimit(r.PID, unix.RLIMIT_NOFILE, nil, &l) != nil || l.Cur == unix.RLIM_INFINITY {
		return nil
	}
	return []point{{l.Cur, []string{"max_open_files"}}}
}

func written(r *reading) []point {
	if !r.measure {
		return nil
	}
	return []point{{uint64(max(0, r.written.Bytes)), []string{""}}}
}

// containerMetrics are those of cAdvisor that a runtime can tell.
var containerMetrics = []metric{
	{name: "container_cpu_user_seconds_total", help: "CPU time spent by the container's own code, in seconds", of: ofCPU(func(c *stats.CPU) uint64 { return seconds(c.User) })},
	{name: "container_cpu_system_seconds_total", help: "CPU time spent by the kernel for the container, in seconds", of: ofCPU(func(c *stats.CPU) uint64 { return seconds(c.System) })},
	{name: "container_cpu_usage_seconds_total", help: "CPU time of the container, in seconds", of: ofCPU(func(c *stats.CPU) uint64 { return seconds(c.Usage) })},
	{name: "container_cpu_cfs_periods_total", help: "Periods of the CPU quota that have passed", of: ofCPU(func(c *stats.CPU) uint64 { return c.Periods })},
	{name: "container_cpu_cfs_throttled_periods_total", help: "Periods in which the CPU quota stopped the container", of: ofCPU(func(c *stats.CPU) uint64 { return c.ThrottledPeriods })},
	{name: "container_cpu_cfs_throttled_seconds_total", help: "Time for which the CPU quota stopped the container, in seconds", of: ofCPU(func(c *stats.CPU) uint64 { return seconds(c.Throttled) })},

	{name: "container_memory_cache", gauge: true, help: "Page cache of the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.Cache })},
	{name: "container_memory_rss", gauge: true, help: "Anonymous memory of the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.RSS })},
	{name: "container_memory_kernel_usage", gauge: true, help: "Memory that the kernel took for the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.Kernel })},
	{name: "container_memory_mapped_file", gauge: true, help: "Files that the container has mapped into memory, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.Mapped })},
	{name: "container_memory_swap", gauge: true, help: "Swap space that the container uses, in bytes", of: ofMemory(func(m *stats.Memory) uint64 {
		if m.Swap == nil {
			return 0
		}
		return *m.Swap
	})},
	{name: "container_memory_failcnt", help: "How often the container met its memory limit; 0 on cgroup v2, which does not count it", of: ofMemory(func(m *stats.Memory) uint64 { return m.Failures })},
	{name: "container_memory_usage_bytes", gauge: true, help: "All memory charged to the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.Usage })},
	{name: "container_memory_max_usage_bytes", gauge: true, help: "The most memory that was ever charged to the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.Peak })},
	{name: "container_memory_working_set_bytes", gauge: true, help: "Memory of the container without the inactive page cache, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.WorkingSet })},
	{name: "container_memory_total_active_file_bytes", gauge: true, help: "Active page cache of the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.ActiveFile })},
	{name: "container_memory_total_inactive_file_bytes", gauge: true, help: "Inactive page cache of the container, in bytes", of: ofMemory(func(m *stats.Memory) uint64 { return m.InactiveFile })},
	{name: "container_memory_failures_total", labels: []string{"failure_type", "scope"}, help: "Page faults of the container, by kind", of: failures},
	{name: "container_oom_events_total", help: "Processes of the container that the kernel killed for want of memory", of: ofMemory(func(m *stats.Memory) uint64 { return m.OOMKills })},

	{name: "container_fs_inodes_free", gauge: true, labels: []string{device}, help: "Free inodes of the file system of writable layers", of: ofFS(func(f *unix.Statfs_t) uint64 { return f.Ffree })},
	{name: "container_fs_inodes_total", gauge: true, labels: []string{device}, help: "Inodes of the file system of writable layers", of: ofFS(func(f *unix.Statfs_t) uint64 { return f.Files })},
	{name: "container_fs_limit_bytes", gauge: true, labels: []string{device}, help: "Size of the file system of writable layers, in bytes", of: ofFS(func(f *unix.Statfs_t) uint64 { return f.Blocks * uint64(f.Bsize) })},
	{name: "container_fs_usage_bytes", gauge: true, labels: []string{device}, help: "What the container wrote to its root file system, in bytes", of: written},
	{name: "container_fs_reads_bytes_total", labels: []string{device}, help: "Bytes that the container has read from the device", of: ofIO(func(d stats.Device) uint64 { return d.ReadBytes })},
	{name: "container_fs_reads_total", labels: []string{device}, help: "Reads of the container from the device", of: ofIO(func(d stats.Device) uint64 { return d.Reads })},
	{name: "container_fs_writes_bytes_total", labels: []string{device}, help: "Bytes that the container has written to the device", of: ofIO(func(d stats.Device) uint64 { return d.WrittenBytes })},
	{name: "container_fs_writes_total", labels: []string{device}, help: "Writes of the container to the device", of: ofIO(func(d stats.Device) uint64 { return d.Writes })},
	{name: "container_blkio_device_usage_total", labels: []string{device, "major", "minor", "operation"}, help: "Bytes between the container and the device, by operation", of: blkio},

	{name: "container_processes", gauge: true, help: "Processes of the container", of: func(r *reading) []point { return one(r.open.processes) }},
	{name: "container_file_descriptors", gauge: true, help: "Files that the container's processes have open; not told beyond some thousands", of: ofOpen(func(o open) uint64 { return o.files })},
	{name: "container_sockets", gauge: true, help: "Sockets that the container's processes have open; not told beyond some thousands of files", of: ofOpen(func(o open) uint64 { return o.sockets })},
	{name: "container_threads_max", gauge: true, help: "How many threads the container may have; 0 is no limit", of: threads(func(p *stats.Pids) uint64 { return p.Limit })},
	{name: "container_threads", gauge: true, help: "Threads of the container", of: threads(func(p *stats.Pids) uint64 { return p.Current })},
	{name: "container_ulimits_soft", gauge: true, labels: []string{"ulimit"}, help: "Soft limits of the container's first process; not told where there is none", of: ulimits},

	{name: "container_last_seen", gauge: true, help: "When the container was last looked at, in seconds since 1970", of: func(r *reading) []point { return one(uint64(r.now.Unix())) }},
	{name: "container_start_time_seconds", gauge: true, help: "When the container was started, in seconds since 1970", of: func(r *reading) []point { return one(uint64(max(0, r.StartedAt/int64(time.Second)))) }},
	{name: "container_spec_cpu_period", gauge: true, help: "Period of the container's CPU quota, in microseconds", of: ofSpec((*runtimeapi.LinuxContainerResources).GetCpuPeriod)},
	{name: "container_spec_cpu_shares", gauge: true, help: "Weight of the container when CPU time is scarce", of: ofSpec((*runtimeapi.LinuxContainerResources).GetCpuShares)},
	{name: "container_spec_memory_limit_bytes", gauge: true, help: "Memory limit of the container, in bytes; 0 is none", of: ofSpec((*runtimeapi.LinuxContainerResources).GetMemoryLimitInBytes)},
	{name: "container_spec_memory_reservation_limit_bytes", gauge: true, help: "Soft memory limit of the container, in bytes; CRI has none", of: ofSpec(func(*runtimeapi.LinuxContainerResources) int64 { return 0 })},
	{name: "container_spec_memory_swap_limit_bytes", gauge: true, help: "Limit on memory and swap space together, in bytes; 0 is none", of: ofSpec((*runtimeapi.LinuxContainerResources).GetMemorySwapLimitInBytes)},
}

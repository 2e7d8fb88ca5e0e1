package stats

import (
	"bytes"
	"math"
	"strconv"
	"time"
)

// userHZ is the unit of cpuacct.stat: a hundredth of a second on every
// architecture that Linux still runs on.
const userHZ = 100

func micros(n uint64) time.Duration {
	return time.Duration(min(n, math.MaxInt64/1000)) * time.Microsecond
}

func cpuV1(f files) (*CPU, error) {
	n, err := f.number("cpuacct.usage")
	if err != nil {
		return nil, err
	}
	c := &CPU{Usage: time.Duration(min(n, math.MaxInt64))}
	var user, system uint64
	err = f.fields("cpuacct.stat", map[string]*uint64{"user": &user, "system": &system})
	if gone(err) {
		err = nil
	}
	const tick = uint64(time.Second) / userHZ
	c.User, c.System = time.Duration(min(user, math.MaxInt64/tick)*tick), time.Duration(min(system, math.MaxInt64/tick)*tick)
	return c, err
}

func quotaV1(f files) (*CPU, error) {
	var c CPU
	var nanos uint64
	err := f.fields("cpu.stat", map[string]*uint64{"nr_periods": &c.Periods, "nr_throttled": &c.ThrottledPeriods, "throttled_time": &nanos})
	c.Throttled = time.Duration(min(nanos, math.MaxInt64))
	return &c, err
}

func cpuV2(f files) (*CPU, error) {
	var c CPU
	var usage, user, system, throttled uint64
	err := f.fields("cpu.stat", map[string]*uint64{
		"usage_usec": &usage, "user_usec": &user, "system_usec": &system,
		"nr_periods": &c.Periods, "nr_throttled": &c.ThrottledPeriods, "throttled_usec": &throttled,
	})
	if err != nil {
		return nil, err
	}
	c.Usage, c.User, c.System, c.Throttled = micros(usage), micros(user), micros(system), micros(throttled)
	c.Pressure, err = f.pressure("cpu.pressure")
	return &c, err
}

func memoryV1(f files) (*Memory, error) {
	var m Memory
	err := f.memory(&m, "memory.usage_in_bytes", "memory.limit_in_bytes", map[string]*uint64{
		"total_inactive_file": &m.InactiveFile, "total_active_file": &m.ActiveFile, "total_rss": &m.RSS, "total_cache": &m.Cache,
		"total_mapped_file": &m.Mapped, "total_pgfault": &m.PageFaults, "total_pgmajfault": &m.MajorPageFaults,
	})
	if err != nil {
		return nil, err
	}
	for name, to := range map[string]*uint64{
		"memory.max_usage_in_bytes": &m.Peak, "memory.failcnt": &m.Failures, "memory.kmem.usage_in_bytes": &m.Kernel,
	} {
		if *to, err = f.number(name); err != nil && !gone(err) {
			return nil, err
		}
	}
	if err := f.fields("memory.oom_control", map[string]*uint64{"oom_kill": &m.OOMKills}); err != nil && !gone(err) {
		return nil, err
	}
	both, err := f.number("memory.memsw.usage_in_bytes")
	if gone(err) {
		return &m, nil
	}
	if err != nil {
		return nil, err
	}
	swap := both - min(m.Usage, both)
	m.Swap = &swap
	most, err := f.number("memory.memsw.limit_in_bytes")
	if err == nil && most < unlimited && m.Limit > 0 {
		limit := most - min(m.Limit, most)
		m.SwapLimit = &limit
	}
	if gone(err) {
		err = nil
	}
	return &m, err
}

func memoryV2(f files) (*Memory, error) {
	var m Memory
	err := f.memory(&m, "memory.current", "memory.max", map[string]*uint64{
		"inactive_file": &m.InactiveFile, "active_file": &m.ActiveFile, "anon": &m.RSS, "file": &m.Cache, "file_mapped": &m.Mapped,
		"kernel": &m.Kernel, "pgfault": &m.PageFaults, "pgmajfault": &m.MajorPageFaults,
	})
	if err != nil {
		return nil, err
	}
	if m.Peak, err = f.number("memory.peak"); err != nil && !gone(err) {
		return nil, err
	}
	if err := f.fields("memory.events", map[string]*uint64{"oom_kill": &m.OOMKills}); err != nil && !gone(err) {
		return nil, err
	}
	if m.Pressure, err = f.pressure("memory.pressure"); err != nil {
		return nil, err
	}
	swap, err := f.number("memory.swap.current")
	if gone(err) {
		return &m, nil
	}
	if err != nil {
		return nil, err
	}
	m.Swap = &swap
	b, err := f.content("memory.swap.max")
	if gone(err) {
		return &m, nil
	}
	if text := string(bytes.TrimSpace(b)); err == nil && text != "max" {
		var limit uint64
		limit, err = strconv.ParseUint(text, 10, 64)
		m.SwapLimit = &limit
	}
	return &m, err
}

// memory reads what both versions have, by the names of each.
func (f files) memory(m *Memory, usage, limit string, stat map[string]*uint64) error {
	var err error
	if m.Usage, err = f.number(usage); err != nil {
		return err
	}
	// The root cgroup of v2 has no limit file, and no usage either.
	if m.Limit, err = f.number(limit); err != nil && !gone(err) {
		return err
	}
	if m.Limit >= unlimited {
		m.Limit = 0
	}
	err = f.fields("memory.stat", stat)
	m.WorkingSet = m.Usage - min(m.InactiveFile, m.Usage)
	return err
}

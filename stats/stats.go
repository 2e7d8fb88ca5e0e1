// Package stats owns the reading of counters: CPU time, memory, swap, block I/O,
// pressure and processes of one cgroup, on cgroup v1, v2 and the hybrid of both,
// and of the interfaces of one network namespace. Nothing is forked for it.
package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Sample is what the counters of one cgroup said at one time. A part is nil if
// its controller does not know the cgroup.
type Sample struct {
	At     time.Time
	CPU    *CPU
	Memory *Memory
	Pids   *Pids
	IO     *IO
}

// CPU is the time used by all processes of the cgroup since it was made.
type CPU struct {
	Usage, User, System time.Duration
	// Periods of the CPU quota, in how many of them the cgroup was stopped by it,
	// and for how long in all. Zero without a quota.
	Periods, ThrottledPeriods uint64
	Throttled                 time.Duration
	// Pressure is nil where the kernel does not tell: always on cgroup v1.
	Pressure *Pressure
}

// Memory is in bytes; the faults are counts since the cgroup was made.
type Memory struct {
	// Usage is all that is charged to the cgroup, page cache included.
	Usage uint64
	// WorkingSet is Usage without the inactive page cache: what cannot be taken
	// back without pain, and what Kubernetes evicts by.
	WorkingSet uint64
	// RSS is anonymous memory.
	RSS uint64
	// Limit is 0 if there is none.
	Limit                       uint64
	PageFaults, MajorPageFaults uint64
	// Swap is nil if the kernel does not count it.
	Swap *uint64
	// SwapLimit bounds Swap alone; nil if there is no limit.
	SwapLimit *uint64
	// Cache is the page cache, of which Mapped is mapped into processes, and
	// ActiveFile and InactiveFile are on the lists of those names. Kernel is what
	// the kernel itself took for the cgroup.
	Cache, Mapped, ActiveFile, InactiveFile, Kernel uint64
	// Peak is the highest Usage there has been, 0 where the kernel (before 5.19 on
	// v2) does not tell. Failures counts how often the limit was hit, on v1 only.
	Peak, Failures uint64
	// OOMKills counts the processes that the kernel killed for want of memory.
	OOMKills uint64
	// Pressure is nil where the kernel does not tell: always on cgroup v1.
	Pressure *Pressure
}

// Available is how much of the limit the working set leaves; ok is false without a limit.
func (m Memory) Available() (bytes uint64, ok bool) {
	if m.Limit == 0 {
		return 0, false
	}
	return m.Limit - min(m.WorkingSet, m.Limit), true
}

// SwapAvailable is how much of the limit on swap is left; ok is false without a
// limit, or where swap is not counted.
func (m Memory) SwapAvailable() (bytes uint64, ok bool) {
	if m.Swap == nil || m.SwapLimit == nil {
		return 0, false
	}
	return *m.SwapLimit - min(*m.Swap, *m.SwapLimit), true
}

// Pids counts processes and threads. Limit is 0 if there is none.
type Pids struct {
	Current, Limit uint64
}

// NanoCores is the use of CPU between two samples of one cgroup, in billionths
// of a core; ok is false if they do not tell.
func NanoCores(earlier, later Sample) (nano uint64, ok bool) {
	if earlier.CPU == nil || later.CPU == nil {
		return 0, false
	}
	wall, used := later.At.Sub(earlier.At), later.CPU.Usage-earlier.CPU.Usage
	if wall <= 0 || used < 0 {
		return 0, false
	}
	return uint64(float64(used) / float64(wall) * 1e9), true
}

// place is where one controller's files are.
type place struct {
	dir string // empty: the host has no such controller
	v2  bool
}

// Reader reads cgroups of one host. It is safe for concurrent use.
type Reader struct {
	cpu, memory, pids, io place
	quota                 place // of the CPU: on v1 not where its use is counted
}

// Open finds out where the host keeps its controllers below root, normally
// /sys/fs/cgroup. A host without any is an error.
func Open(root string) (*Reader, error) {
	r := &Reader{
		cpu:    find(root, "cpu", "cpuacct", "cpu,cpuacct", "cpuacct,cpu"),
		memory: find(root, "memory", "memory"),
		pids:   find(root, "pids", "pids"),
		io:     find(root, "io", "blkio"),
		quota:  find(root, "cpu", "cpu", "cpu,cpuacct", "cpuacct,cpu"),
	}
	if r.cpu.dir == "" && r.memory.dir == "" && r.pids.dir == "" {
		return nil, fmt.Errorf("no cgroup controllers below %s: mount cgroup2 there", root)
	}
	return r, nil
}

// find looks for a controller of v2 by name, and for the hierarchies of v1 that
// hold the same counters.
func find(root, controller string, v1 ...string) place {
	for _, dir := range []string{root, filepath.Join(root, "unified")} {
		list, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
		if err == nil && slices.Contains(strings.Fields(string(list)), controller) {
			return place{dir, true}
		}
	}
	for _, name := range v1 {
		dir := filepath.Join(root, name)
		if st, err := os.Stat(dir); err == nil && st.IsDir() {
			return place{dir: dir}
		}
	}
	return place{}
}

// Read returns the counters of the cgroup at path, which is as in
// /proc/PID/cgroup: absolute, below the root of each hierarchy. A cgroup that no
// controller knows is fs.ErrNotExist.
func (r *Reader) Read(path string) (Sample, error) {
	if !filepath.IsAbs(path) || filepath.Clean(path) != path {
		return Sample{}, fmt.Errorf("cgroup %q: must be an absolute path without dots", path)
	}
	b := buffers.Get().(*[]byte)
	defer buffers.Put(b)
	s := Sample{At: time.Now()}
	var errs [5]error
	s.CPU, errs[0] = read(r.cpu, path, b, cpuV1, cpuV2)
	s.Memory, errs[1] = read(r.memory, path, b, memoryV1, memoryV2)
	s.Pids, errs[2] = read(r.pids, path, b, pids, pids)
	s.IO, errs[3] = read(r.io, path, b, ioV1, ioV2)
	if s.CPU != nil && !r.quota.v2 {
		var q *CPU
		if q, errs[4] = read(r.quota, path, b, quotaV1, nil); q != nil {
			s.CPU.Periods, s.CPU.ThrottledPeriods, s.CPU.Throttled = q.Periods, q.ThrottledPeriods, q.Throttled
		}
	}
	if err := errors.Join(errs[:]...); err != nil {
		return Sample{}, fmt.Errorf("cgroup %s: %w", path, err)
	}
	if s.CPU == nil && s.Memory == nil && s.Pids == nil {
		return Sample{}, fmt.Errorf("cgroup %s: %w", path, fs.ErrNotExist)
	}
	return s, nil
}

// read is nil, nil for a controller that does not know the cgroup, or whose
// cgroup was removed while it was read.
func read[T any](p place, path string, b *[]byte, v1, v2 func(files) (*T, error)) (*T, error) {
	if p.dir == "" {
		return nil, nil
	}
	of, from := v1, files{filepath.Join(p.dir, path), b}
	if p.v2 {
		of = v2
	}
	part, err := of(from)
	if gone(err) {
		return nil, nil
	}
	return part, err
}

// gone covers ENODEV, the kernel's answer for an open file of a removed cgroup.
func gone(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENODEV)
}

func pids(f files) (*Pids, error) {
	current, err := f.number("pids.current")
	if err != nil {
		return nil, err
	}
	limit, err := f.number("pids.max")
	if gone(err) {
		err = nil
	}
	return &Pids{Current: current, Limit: limit}, err
}

// unlimited is where limits of v1 count as none: the kernel rounds the largest
// number down to a page, whose size varies.
const unlimited = math.MaxInt64 &^ (1<<20 - 1)

// maxFile bounds one file; memory.stat has some two kilobytes.
const maxFile = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, 0, 8<<10); return &b }}

// files reads the files of one cgroup into one buffer, which the next file overwrites.
type files struct {
	dir    string
	buffer *[]byte
}

func (f files) content(name string) ([]byte, error) {
	file, err := os.Open(filepath.Join(f.dir, name))
	if err != nil {
		return nil, err
	}
	defer file.Close()
	b := (*f.buffer)[:0]
	for len(b) < maxFile {
		b = slices.Grow(b, 4<<10)
		n, err := file.Read(b[len(b):cap(b)])
		b = b[:len(b)+n]
		*f.buffer = b
		if errors.Is(err, io.EOF) {
			return b, nil
		}
		if err != nil {
			return nil, err
		}
	}
	return nil, fmt.Errorf("%s is larger than %d bytes", file.Name(), maxFile)
}

// number reads a file of one number; "max" is 0.
func (f files) number(name string) (uint64, error) {
	b, err := f.content(name)
	if err != nil {
		return 0, err
	}
	text := string(bytes.TrimSpace(b))
	if text == "max" {
		return 0, nil
	}
	n, err := strconv.ParseUint(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", filepath.Join(f.dir, name), err)
	}
	return n, nil
}

// fields reads the wanted lines of a file of "name number" lines.
func (f files) fields(name string, want map[string]*uint64) error {
	b, err := f.content(name)
	if err != nil {
		return err
	}
	for line := range bytes.Lines(b) {
		key, value, _ := bytes.Cut(bytes.TrimSpace(line), []byte(" "))
		to := want[string(key)]
		if to == nil {
			continue
		}
		if *to, err = strconv.ParseUint(string(value), 10, 64); err != nil {
			return fmt.Errorf("%s: %s: %w", filepath.Join(f.dir, name), key, err)
		}
	}
	return nil
}

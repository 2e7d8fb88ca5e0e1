package stats

import (
	"bytes"
	"fmt"
	"path/filepath"
	"strconv"
	"time"
)

// IO is what a cgroup has read and written since it was made, by device.
type IO struct {
	Devices []Device
	// Pressure is nil where the kernel does not tell: always on cgroup v1.
	Pressure *Pressure
}

// Device is one block device's part.
type Device struct {
	Major, Minor            uint64
	ReadBytes, WrittenBytes uint64
	Reads, Writes           uint64 // operations
}

// maxDevices bounds what is remembered of one cgroup.
const maxDevices = 256

func (io *IO) device(name []byte) *Device {
	major, minor, ok := bytes.Cut(name, []byte(":"))
	a, err1 := strconv.ParseUint(string(major), 10, 32)
	b, err2 := strconv.ParseUint(string(minor), 10, 32)
	if !ok || err1 != nil || err2 != nil || len(io.Devices) >= maxDevices {
		return nil // v1 ends with a line "Total"
	}
	for i := range io.Devices {
		if d := &io.Devices[i]; d.Major == a && d.Minor == b {
			return d
		}
	}
	io.Devices = append(io.Devices, Device{Major: a, Minor: b})
	return &io.Devices[len(io.Devices)-1]
}

func ioV1(f files) (*IO, error) {
	var io IO
	for _, file := range []struct {
		name        string
		read, write func(*Device) *uint64
	}{
		{"blkio.throttle.io_service_bytes_recursive", func(d *Device) *uint64 { return &d.ReadBytes }, func(d *Device) *uint64 { return &d.WrittenBytes }},
		{"blkio.throttle.io_serviced_recursive", func(d *Device) *uint64 { return &d.Reads }, func(d *Device) *uint64 { return &d.Writes }},
	} {
		b, err := f.content(file.name)
		if err != nil {
			return nil, err
		}
		for line := range bytes.Lines(b) { // 8:0 Read 4096
			words := bytes.Fields(line)
			if len(words) != 3 {
				continue
			}
			var to *uint64
			if d := io.device(words[0]); d != nil && string(words[1]) == "Read" {
				to = file.read(d)
			} else if d != nil && string(words[1]) == "Write" {
				to = file.write(d)
			} else {
				continue
			}
			if *to, err = strconv.ParseUint(string(words[2]), 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(f.dir, file.name), err)
			}
		}
	}
	return &io, nil
}

func ioV2(f files) (*IO, error) {
	var io IO
	b, err := f.content("io.stat")
	if err != nil && !gone(err) {
		return nil, err
	}
	for line := range bytes.Lines(b) { // 8:0 rbytes=4096 wbytes=0 rios=1 wios=0 dbytes=0 dios=0
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		d := io.device(words[0])
		if d == nil {
			continue
		}
		for _, w := range words[1:] {
			key, value, _ := bytes.Cut(w, []byte("="))
			to := map[string]*uint64{"rbytes": &d.ReadBytes, "wbytes": &d.WrittenBytes, "rios": &d.Reads, "wios": &d.Writes}[string(key)]
			if to == nil {
				continue
			}
			if *to, err = strconv.ParseUint(string(value), 10, 64); err != nil {
				return nil, fmt.Errorf("%s: %s: %w", filepath.Join(f.dir, "io.stat"), key, err)
			}
		}
	}
	io.Pressure, err = f.pressure("io.pressure")
	return &io, err
}

// Pressure is how much time tasks lost waiting for a resource (PSI).
type Pressure struct {
	// Some: at least one task waited. Full: all did.
	Some, Full Stall
}

// Stall is one line of a pressure file; the averages are percentages over so
// many seconds.
type Stall struct {
	Total                time.Duration
	Avg10, Avg60, Avg300 float64
}

// pressure reads a pressure file; nil where the kernel keeps none, or has PSI
// switched off.
func (f files) pressure(name string) (*Pressure, error) {
	b, err := f.content(name)
	if gone(err) || notSupported(err) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var p Pressure
	for line := range bytes.Lines(b) { // some avg10=0.00 avg60=0.00 avg300=0.00 total=0
		words := bytes.Fields(line)
		if len(words) == 0 {
			continue
		}
		to := map[string]*Stall{"some": &p.Some, "full": &p.Full}[string(words[0])]
		if to == nil {
			continue
		}
		for _, w := range words[1:] {
			key, value, _ := bytes.Cut(w, []byte("="))
			if err := to.set(string(key), string(value)); err != nil {
				return nil, fmt.Errorf("%s: %w", filepath.Join(f.dir, name), err)
			}
		}
	}
	return &p, nil
}

func (s *Stall) set(key, value string) (err error) {
	switch key {
	case "avg10":
		s.Avg10, err = strconv.ParseFloat(value, 64)
	case "avg60":
		s.Avg60, err = strconv.ParseFloat(value, 64)
	case "avg300":
		s.Avg300, err = strconv.ParseFloat(value, 64)
	case "total":
		var us uint64
		us, err = strconv.ParseUint(value, 10, 64)
		s.Total = micros(us)
	}
	return err
}

package logfile

import (
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// stampForm names rotated files: names sort by age.
const stampForm = "20060102-150405"

// rotated lists the rotated files of the log at path, oldest first.
func rotated(path string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("listing rotated logs: %w", err)
	}
	prefix := filepath.Base(path) + "."
	var out []string
	for _, e := range entries {
		stamp, ok := strings.CutPrefix(e.Name(), prefix)
		if !ok || !e.Type().IsRegular() {
			continue
		}
		stamp = strings.TrimSuffix(stamp, ".gz")
		if len(stamp) < len(stampForm) {
			continue
		}
		if _, err := time.Parse(stampForm, stamp[:len(stampForm)]); err == nil && !strings.HasSuffix(stamp, ".tmp") {
			out = append(out, filepath.Join(filepath.Dir(path), e.Name()))
		}
	}
	sort.Slice(out, func(i, j int) bool { return strings.TrimSuffix(out[i], ".gz") < strings.TrimSuffix(out[j], ".gz") })
	return out, nil
}

// openLog opens a log without following a link and without waiting on a FIFO
// that somebody has put there.
func openLog(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening log: %w", err)
	}
	if st, err := f.Stat(); err != nil || !st.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("log %s is not a regular file", path)
	}
	return f, nil
}

// source is one file's content, decompressed.
type source struct {
	io.Reader
	file *os.File
}

func openSource(path string) (*source, error) {
	f, err := openLog(path)
	if err != nil {
		return nil, err
	}
	if !strings.HasSuffix(path, ".gz") {
		return &source{f, f}, nil
	}
	z, err := gzip.NewReader(f)
	if err != nil {
		f.Close()
		return nil, fmt.Errorf("log %s: %w", path, err)
	}
	return &source{z, f}, nil
}

func (s *source) Close() error { return s.file.Close() }

const block = 64 << 10

// tailOffset returns where the last n lines of f begin, and how many there are
// if fewer. A line that has no end yet counts.
func tailOffset(f *os.File, n int64) (off, lines int64, err error) {
	st, err := f.Stat()
	if err != nil {
		return 0, 0, err
	}
	if n == 0 {
		return st.Size(), 0, nil
	}
	buf := make([]byte, block)
	end := st.Size()
	first := true
	for end > 0 {
		begin := max(0, end-block)
		b := buf[:end-begin]
		if _, err := f.ReadAt(b, begin); err != nil && !errors.Is(err, io.EOF) {
			return 0, 0, fmt.Errorf("reading log: %w", err)
		}
		for i := len(b) - 1; i >= 0; i-- {
			if b[i] != '\n' || first && i == len(b)-1 {
				continue
			}
			if lines++; lines == n {
				return begin + int64(i) + 1, n, nil
			}
		}
		first = false
		end = begin
	}
	if st.Size() > 0 {
		lines++
	}
	return 0, lines, nil
}

// countLines counts the lines of a compressed file.
func countLines(path string) (int64, error) {
	s, err := openSource(path)
	if err != nil {
		return 0, err
	}
	defer s.Close()
	var lines int64
	buf := make([]byte, block)
	last := byte('\n')
	for {
		n, err := s.Read(buf)
		lines += int64(bytes.Count(buf[:n], []byte{'\n'}))
		if n > 0 {
			last = buf[n-1]
		}
		if errors.Is(err, io.EOF) {
			if last != '\n' {
				lines++
			}
			return lines, nil
		}
		if err != nil {
			return 0, fmt.Errorf("log %s: %w", path, err)
		}
	}
}

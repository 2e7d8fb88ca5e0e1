package source

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// inotify is one inotify instance. It is used directly, because fsnotify does
// not tell when a file is closed after writing, and to act on less would mean
// to read half-written files.
type inotify struct {
	f   *os.File
	buf [64 << 10]byte
}

type event struct {
	mask uint32
	name string
}

func newInotify() (*inotify, error) {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("no inotify instance to be had: raise fs.inotify.max_user_instances: %w", err)
	}
	return &inotify{f: os.NewFile(uintptr(fd), "inotify")}, nil
}

func (in *inotify) watch(dir string) error {
	raw, err := in.f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	if err := raw.Control(func(fd uintptr) { _, failed = unix.InotifyAddWatch(int(fd), dir, inDir) }); err != nil {
		return err
	}
	if failed != nil {
		return &os.PathError{Op: "watch", Path: dir, Err: failed}
	}
	return nil
}

// read waits for events and returns all that are there; none if patience, which
// is not 0, ended first.
func (in *inotify) read(patience time.Duration) ([]event, error) {
	var end time.Time
	if patience > 0 {
		end = time.Now().Add(patience)
	}
	if err := in.f.SetReadDeadline(end); err != nil {
		return nil, fmt.Errorf("wait for inotify events: %w", err)
	}
	n, err := in.f.Read(in.buf[:])
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read inotify events: %w", err)
	}
	var events []event
	for b := in.buf[:n]; len(b) >= unix.SizeofInotifyEvent; {
		size := unix.SizeofInotifyEvent + int(binary.NativeEndian.Uint32(b[12:]))
		if size > len(b) {
			break
		}
		name, _, _ := bytes.Cut(b[unix.SizeofInotifyEvent:size], []byte{0})
		events = append(events, event{mask: binary.NativeEndian.Uint32(b[4:]), name: string(name)})
		b = b[size:]
	}
	return events, nil
}

// close ends a read under way. It may be called twice.
func (in *inotify) close() { _ = in.f.Close() }

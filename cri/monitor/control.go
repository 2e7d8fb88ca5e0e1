package monitor

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

type inotifyEvent struct {
	mask   uint32
	length int
	name   string
}

// parseInotify reads the event that b begins with.
func parseInotify(b []byte) inotifyEvent {
	e := inotifyEvent{mask: binary.NativeEndian.Uint32(b[4:]), length: int(binary.NativeEndian.Uint32(b[12:]))}
	b = b[unix.SizeofInotifyEvent:]
	e.length = min(e.length, len(b))
	e.name = strings.TrimRight(string(b[:e.length]), "\x00")
	return e
}

// Streams of the attach socket: the first byte of each packet from conmon.
const (
	Stdout = 2
	Stderr = 3
)

// MaxPacket is the largest packet conmon sends: 32 KiB of output, the stream's byte before it.
const MaxPacket = 32<<10 + 1

// Attach connects to a container's streams: each packet read is a stream's byte
// and output; each written is input. The reader must be quick: conmon, and with
// it the container, waits for a slow one.
func Attach(bundle string) (*net.UnixConn, error) {
	dir, err := unix.Open(bundle, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("opening bundle %s: %w", bundle, err)
	}
	defer unix.Close(dir)
	// A socket's address holds 107 bytes; by way of the descriptor any bundle fits.
	addr := &net.UnixAddr{Net: "unixpacket", Name: fmt.Sprintf("/proc/self/fd/%d/attach", dir)}
	c, err := net.DialUnix("unixpacket", nil, addr)
	if err != nil {
		return nil, fmt.Errorf("attaching to the monitor of %s (has it ended?): %w", filepath.Base(filepath.Dir(bundle)), err)
	}
	return c, nil
}

// Resize sets the size of a container's terminal. conmon takes up to 1000 rows
// and columns.
func Resize(bundle string, rows, cols uint16) error {
	return control(bundle, fmt.Sprintf("1 %d %d\n", min(rows, 1000), min(cols, 1000)))
}

// ReopenLog makes conmon open its log path anew, after the file was renamed.
func ReopenLog(bundle string) error {
	failpoint.Hit("cri/monitor/reopen-log")
	return control(bundle, "2 0 0\n")
}

func control(bundle, line string) error {
	path := filepath.Join(bundle, "ctl")
	// Without a reader, a non-blocking open fails at once: conmon is gone.
	f, err := os.OpenFile(path, os.O_WRONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.ENXIO) || errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("the monitor (conmon) behind %s: %w", path, ErrGone)
	}
	if err != nil {
		return fmt.Errorf("opening a monitor's control pipe: %w", err)
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		return fmt.Errorf("writing to a monitor's control pipe: %w", err)
	}
	return nil
}

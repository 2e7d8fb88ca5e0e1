package stats

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Interface is what one network interface has carried since it was made.
type Interface struct {
	Name                                    string
	RxBytes, RxPackets, RxErrors, RxDropped uint64
	TxBytes, TxPackets, TxErrors, TxDropped uint64
}

func notSupported(err error) bool {
	return errors.Is(err, syscall.EOPNOTSUPP) || errors.Is(err, syscall.EINVAL)
}

// Interfaces returns the interfaces of a network namespace, as the kernel orders
// them. For a moment one thread of ours is in it.
func Interfaces(netns *os.File) ([]Interface, error) {
	type answer struct {
		content []byte
		err     error
	}
	answers := make(chan answer, 1)
	go func() {
		runtime.LockOSThread()
		b, back, err := within(netns)
		if back {
			runtime.UnlockOSThread() // else the thread ends with this goroutine
		}
		answers <- answer{b, err}
	}()
	a := <-answers
	if a.err != nil {
		return nil, fmt.Errorf("reading the interfaces of %s: %w", netns.Name(), a.err)
	}
	return parseInterfaces(a.content)
}

// within reads /proc/net/dev inside netns; back tells whether the thread is in
// its own namespace again.
func within(netns *os.File) (_ []byte, back bool, err error) {
	own, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		return nil, true, err
	}
	defer own.Close()
	if err := unix.Setns(int(netns.Fd()), unix.CLONE_NEWNET); err != nil {
		return nil, true, err
	}
	defer func() { back = unix.Setns(int(own.Fd()), unix.CLONE_NEWNET) == nil }()
	f, err := os.Open("/proc/thread-self/net/dev")
	if err != nil {
		return nil, false, err
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, 1<<20))
	return b, false, err
}

// parseInterfaces reads the format of /proc/net/dev: two lines of headings, then
// name: 8 numbers received, 8 sent.
func parseInterfaces(b []byte) ([]Interface, error) {
	var out []Interface
	for line := range bytes.Lines(b) {
		i := bytes.LastIndexByte(line, ':') // a name may hold a colon
		if i < 0 {
			continue
		}
		words := bytes.Fields(line[i+1:])
		if len(words) < 12 {
			return nil, fmt.Errorf("/proc/net/dev has a line of %d numbers: %.80q", len(words), line)
		}
		n := Interface{Name: string(bytes.TrimSpace(line[:i]))}
		for at, to := range map[int]*uint64{
			0: &n.RxBytes, 1: &n.RxPackets, 2: &n.RxErrors, 3: &n.RxDropped, 8: &n.TxBytes, 9: &n.TxPackets, 10: &n.TxErrors, 11: &n.TxDropped,
		} {
			var err error
			if *to, err = strconv.ParseUint(string(words[at]), 10, 64); err != nil {
				return nil, fmt.Errorf("/proc/net/dev: %s: %w", n.Name, err)
			}
		}
		out = append(out, n)
	}
	return out, nil
}

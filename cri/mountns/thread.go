package mountns

import (
	"errors"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// errClosed is the answer of a thread that has been closed.
var errClosed = errors.New("the mount namespace's thread has been closed")

// thread runs functions one after the other on an OS thread of its own that has
// entered another mount namespace.
type thread struct {
	calls chan func()
	quit  chan struct{}
	done  chan struct{}
}

// newThread starts a thread and lets enter move it; enter runs after the thread
// has stopped sharing its root and working directory with the others.
func newThread(enter func() error) (*thread, error) {
	t := &thread{calls: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	ready := make(chan error, 1)
	go t.run(enter, ready)
	if err := <-ready; err != nil {
		return nil, err
	}
	return t, nil
}

func (t *thread) run(enter func() error, ready chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == unix.Getpid() {
		// Hold the first thread until another goroutine sits on one that is not it.
		placed := make(chan error, 1)
		go t.run(enter, placed)
		err := <-placed
		runtime.UnlockOSThread()
		ready <- err
		return
	}
	// Never unlocked: the thread dies with this goroutine.
	defer close(t.done)
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		ready <- fmt.Errorf("giving a thread its own root directory: %w", err)
		return
	}
	if err := enter(); err != nil {
		ready <- err
		return
	}
	ready <- nil
	for {
		select {
		case f := <-t.calls:
			f()
		case <-t.quit:
			return
		}
	}
}

// do runs f on the thread and returns its error.
func (t *thread) do(f func() error) error {
	answer := make(chan error, 1)
	select {
	case t.calls <- func() { answer <- f() }:
		return <-answer
	case <-t.done:
		return errClosed
	}
}

// close ends the thread and waits for it. It may be called once.
func (t *thread) close() {
	close(t.quit)
	<-t.done
}

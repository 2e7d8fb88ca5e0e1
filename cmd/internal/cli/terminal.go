package cli

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"
	"k8s.io/client-go/tools/remotecommand"
)

// sizes tells the terminal's size, and tells it anew whenever it changes.
type sizes struct {
	ctx     context.Context
	fd      int
	changed chan os.Signal
}

// Next blocks until there is a size to tell; nil at the end.
func (s *sizes) Next() *remotecommand.TerminalSize {
	select {
	case <-s.ctx.Done():
		return nil
	case <-s.changed:
	}
	w, h, err := term.GetSize(s.fd)
	if err != nil {
		return nil
	}
	return &remotecommand.TerminalSize{Width: uint16(w), Height: uint16(h)}
}

// raw puts the terminal into raw mode and follows its size until restore is called.
func raw(ctx context.Context, fd int) (q remotecommand.TerminalSizeQueue, restore func(), err error) {
	before, err := term.MakeRaw(fd)
	if err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	s := &sizes{ctx: ctx, fd: fd, changed: make(chan os.Signal, 1)}
	s.changed <- syscall.SIGWINCH // the size at the beginning
	signal.Notify(s.changed, syscall.SIGWINCH)
	return s, func() {
		signal.Stop(s.changed)
		cancel()
		_ = term.Restore(fd, before) // nothing better can be done with a terminal that refuses
	}, nil
}

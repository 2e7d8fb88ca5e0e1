package security

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/container"
)

// blocked is a client that sends nothing and never leaves by itself.
type blocked struct{ until context.Context }

func (b blocked) Read([]byte) (int, error) {
	<-b.until.Done()
	return 0, io.EOF
}

// TestStreamsLeaveNothing executes commands and attaches terminals that fail, or
// whose clients leave: neither goroutines nor descriptors, processes or files stay
// (CVE-2022-23471, CVE-2025-64329).
func TestStreamsLeaveNothing(t *testing.T) {
	// Not parallel to others: goroutines and descriptors of the whole process are counted.
	if shared == nil {
		t.Skip(absent)
	}
	for _, handler := range handlers {
		t.Run(handler, func(t *testing.T) {
			n := shared
			p := n.pod(t, handler, nil)
			cfg := p.container(n.image(t, nil), "while :; do echo x; sleep 0.05; done")
			cfg.Tty, cfg.Stdin = true, true
			id := p.mustRun(cfg)
			bundle := filepath.Join(n.state("containers"), id, "bundle")
			files := len(entries(t, bundle))
			round := func() {
				for _, tty := range []bool{true, false} {
					ctx, cancel := context.WithCancel(t.Context())
					st := container.Streams{Stdin: blocked{ctx}, Stdout: io.Discard, Stderr: io.Discard, Tty: tty, Resize: make(chan container.Size)}
					if _, err := n.conts.Exec(ctx, id, []string{"/no/such/command"}, st); err == nil {
						t.Error("a command that is not there was executed")
					}
					time.AfterFunc(50*time.Millisecond, cancel)
					if _, err := n.conts.Exec(ctx, id, []string{"sleep", "1000"}, st); !errors.Is(err, context.Canceled) {
						t.Errorf("a command whose client has left: %v", err)
					}
					cancel()
				}
				ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
				defer cancel()
				if err := n.conts.Attach(ctx, id, container.Streams{Stdin: blocked{ctx}, Stdout: io.Discard, Tty: true, Resize: make(chan container.Size)}); err == nil {
					t.Error("a client that was cut off has not noticed")
				}
			}
			round() // what is made once and stays
			goroutines, fds := settled(), len(entries(t, "/proc/self/fd"))
			for range 8 {
				round()
			}
			var left string
			for end := time.Now().Add(10 * time.Second); time.Now().Before(end); time.Sleep(50 * time.Millisecond) {
				left = ""
				if now := runtime.NumGoroutine(); now > goroutines+2 {
					left += fmt.Sprintf("%d goroutines, %d before; ", now, goroutines)
				}
				if now := len(entries(t, "/proc/self/fd")); now > fds+2 {
					left += fmt.Sprintf("%d descriptors, %d before; ", now, fds)
				}
				if now := len(entries(t, bundle)); now > files {
					left += fmt.Sprintf("%d files in the bundle, %d before; ", now, files)
				}
				if left == "" {
					break
				}
			}
			if out := p.sh(id, "ps -o args | grep -c '^[s]leep 1000' || true"); out != "0" {
				left += out + " processes"
			}
			if left != "" {
				stacks := make([]byte, 1<<16)
				t.Errorf("left behind: %s\n%s", left, stacks[:runtime.Stack(stacks, true)])
			}
		})
	}
}

// settled is the number of goroutines once it has stopped falling.
func settled() int {
	last := runtime.NumGoroutine()
	for range 40 {
		time.Sleep(50 * time.Millisecond)
		now := runtime.NumGoroutine()
		if now >= last {
			return now
		}
		last = now
	}
	return last
}

func entries(t testing.TB, dir string) []string {
	t.Helper()
	all, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, e := range all {
		if !strings.HasPrefix(e.Name(), ".") {
			names = append(names, e.Name())
		}
	}
	return names
}

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/containerd/errdefs"
)

func TestExecSync(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sleep", "1000")
		cfg.Linux.SecurityContext.RunAsUsername = "web"
		cfg.WorkingDir = "/tmp"
		id := n.start(cfg)
		out, errOut, code, err := n.store.ExecSync(t.Context(), id, []string{"sh", "-c", "id -u; pwd; echo no >&2; exit 3"}, time.Minute)
		if err != nil || code != 3 || string(out) != "101\n/tmp\n" || string(errOut) != "no\n" {
			t.Errorf("%q %q %d %v", out, errOut, code, err)
		}
		// What the process says on stderr is its own, and no failure of the runtime.
		if _, errOut, code, err = n.store.ExecSync(t.Context(), id, []string{"ls", "/nonesuch"}, time.Minute); err != nil || code != 1 || len(errOut) == 0 {
			t.Errorf("failing command: %q %d %v", errOut, code, err)
		}
		var rt *ociruntime.Error
		if _, _, _, err = n.store.ExecSync(t.Context(), id, []string{"nonesuch"}, time.Minute); !errors.As(err, &rt) || rt.Kind != ociruntime.CommandNotFound {
			t.Errorf("missing command: %v", err)
		}
		// A child that keeps the streams open holds nobody up.
		began := time.Now()
		out, _, code, err = n.store.ExecSync(t.Context(), id, []string{"sh", "-c", "sleep 60 & echo started"}, time.Minute)
		if err != nil || code != 0 || string(out) != "started\n" || time.Since(began) > 10*time.Second {
			t.Errorf("background child: %q %d %v after %v", out, code, err, time.Since(began))
		}
		if left, _ := os.ReadDir(n.store.bundle(id)); len(left) > 8 {
			t.Errorf("files of execs are left: %v", left)
		}
	})
}

func TestExecTimeoutKillsAll(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sleep", "1000"))
		began := time.Now()
		out, _, _, err := n.store.ExecSync(t.Context(), id, []string{"sh", "-c", "echo begun; sleep 777 & sleep 777"}, 400*time.Millisecond)
		if !errors.Is(err, context.DeadlineExceeded) || string(out) != "begun\n" || time.Since(began) > 5*time.Second {
			t.Errorf("%q %v after %v", out, err, time.Since(began))
		}
		n.eventually("everything of the exec gone", func() bool {
			pids, err := members(cgroupDirs(n.store.cfg.Host, mustGet(n, id).rec.CgroupsPath)[0])
			return err == nil && len(pids) == 1
		})
		if st := n.status(id); st.FinishedAt != 0 {
			t.Errorf("the container went with it: %+v", st)
		}
	})
}

func TestExecOutputIsBounded(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	out, _, code, err := n.store.ExecSync(t.Context(), id, []string{"head", "-c", "40000000", "/dev/zero"}, time.Minute)
	if err != nil || code != 0 || len(out) != maxOutput {
		t.Errorf("%d bytes, %d, %v; want %d", len(out), code, err, maxOutput)
	}
}

func TestExecStdin(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sleep", "1000"))
		var out bytes.Buffer
		code, err := n.store.Exec(t.Context(), id, []string{"cat"}, Streams{Stdin: strings.NewReader("through\n"), Stdout: &out})
		if err != nil || code != 0 || out.String() != "through\n" {
			t.Errorf("%q %d %v", out.String(), code, err)
		}
	})
}

// TestExecStreamsAreItsOwn sees that no stream of an exec is the host's
// /dev/null, also where its client gives none: crun makes the user its owner.
func TestExecStreamsAreItsOwn(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sleep", "1000")
		cfg.Linux.SecurityContext.RunAsUsername = "web"
		id := n.start(cfg)
		mark := strconv.Itoa(10_000_000 + os.Getpid()) // seconds to sleep, by which it is found
		ctx, end := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() {
			defer close(done)
			_, _ = n.store.Exec(ctx, id, []string{"sleep", mark}, Streams{}) // is ended
		}()
		defer func() { end(); <-done }()
		var links []string
		for end := time.Now().Add(20 * time.Second); len(links) == 0 && time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
			all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
			for _, f := range all {
				if line, _ := os.ReadFile(f); string(line) == "sleep\x00"+mark+"\x00" {
					for _, fd := range []string{"0", "1", "2"} {
						l, _ := os.Readlink(filepath.Join(filepath.Dir(f), "fd", fd))
						links = append(links, l)
					}
				}
			}
		}
		if len(links) != 3 {
			t.Fatalf("the process has the streams %q", links)
		}
		for fd, l := range links {
			if !strings.HasPrefix(l, "pipe:") {
				t.Errorf("stream %d is %q", fd, l)
			}
		}
	})
}

func TestExecTerminal(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sleep", "1000"))
		in, w := io.Pipe()
		defer w.Close()
		sizes := make(chan Size, 1)
		sizes <- Size{Rows: 33, Cols: 77}
		out := &syncBuffer{}
		done := make(chan error, 1)
		var code int32
		go func() {
			var err error
			code, err = n.store.Exec(t.Context(), id, []string{"sh"}, Streams{Stdin: in, Stdout: out, Tty: true, Resize: sizes})
			done <- err
		}()
		io.WriteString(w, "stty size; tty\n")
		n.eventually("size and name of the terminal", func() bool {
			return strings.Contains(out.String(), "33 77") && strings.Contains(out.String(), "/dev/pts/")
		})
		sizes <- Size{Rows: 20, Cols: 50}
		time.Sleep(100 * time.Millisecond)
		io.WriteString(w, "stty size; exit 6\n")
		select {
		case err := <-done:
			if err != nil || code != 6 || !strings.Contains(out.String(), "20 50") {
				t.Errorf("%q %d %v", out.String(), code, err)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("the shell does not end: %q", out.String())
		}
	})
}

// A process that ends at once has said what it has said: the runtime is not to
// be faster than its words.
func TestExecTerminalLosesNothing(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sleep", "1000"))
		var wg sync.WaitGroup
		for range 8 {
			wg.Go(func() {
				for range 8 {
					var out bytes.Buffer
					code, err := n.store.Exec(t.Context(), id, []string{"echo", "-n", "hello"}, Streams{Stdout: &out, Tty: true})
					if out.String() != "hello" || err != nil || code != 0 {
						t.Errorf("%q %d %v", out.String(), code, err)
					}
				}
			})
		}
		wg.Wait()
	})
}

func TestExecEndsWithClient(t *testing.T) {
	for _, tty := range []bool{false, true} {
		t.Run(fmt.Sprint("terminal ", tty), func(t *testing.T) {
			n := newNode(t, "crun")
			id := n.start(n.config("sleep", "1000"))
			ctx, cancel := context.WithCancel(t.Context())
			done := make(chan error, 1)
			go func() {
				_, err := n.store.Exec(ctx, id, []string{"sleep", "888"}, Streams{Tty: tty})
				done <- err
			}()
			dir := cgroupDirs(n.store.cfg.Host, mustGet(n, id).rec.CgroupsPath)[0]
			n.eventually("exec running", func() bool { p, _ := members(dir); return len(p) > 1 })
			cancel()
			if err := <-done; !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			n.eventually("exec gone", func() bool { p, _ := members(dir); return len(p) == 1 })
		})
	}
}

func TestExecOnNothing(t *testing.T) {
	n := newNode(t, "crun")
	if _, _, _, err := n.store.ExecSync(t.Context(), "nonesuch", []string{"true"}, 0); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v", err)
	}
	id := n.start(n.config("true"))
	n.exited(id)
	if _, _, _, err := n.store.ExecSync(t.Context(), id, []string{"true"}, 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exited: %v", err)
	}
	if err := n.store.Attach(t.Context(), id, Streams{}); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("attach: %v", err)
	}
}

func TestAttach(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh", "-c", "read line; echo got $line; echo e >&2; read line; exit 2")
		cfg.Stdin = true
		id := n.start(cfg)
		in, w := io.Pipe()
		defer w.Close()
		var out, errOut syncBuffer
		done := make(chan error, 1)
		go func() { done <- n.store.Attach(t.Context(), id, Streams{Stdin: in, Stdout: &out, Stderr: &errOut}) }()
		io.WriteString(w, "hello\n")
		n.eventually("answer", func() bool { return out.String() == "got hello\n" && errOut.String() == "e\n" })
		io.WriteString(w, "bye\n")
		if err := <-done; err != nil {
			t.Error(err)
		}
		if st := n.exited(id); st.ExitCode != 2 {
			t.Errorf("exit code %d", st.ExitCode)
		}
	})
}

func TestAttachStdinOnce(t *testing.T) {
	n := newNode(t, "crun")
	cfg := n.config("cat")
	cfg.Stdin, cfg.StdinOnce = true, true
	id := n.start(cfg)
	var out syncBuffer
	if err := n.store.Attach(t.Context(), id, Streams{Stdin: strings.NewReader("all\n"), Stdout: &out}); err != nil {
		t.Error(err)
	}
	if st := n.exited(id); st.ExitCode != 0 || out.String() != "all\n" {
		t.Errorf("%d %q", st.ExitCode, out.String())
	}
}

func TestAttachTerminalAndResize(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh")
		cfg.Stdin, cfg.Tty = true, true
		id := n.start(cfg)
		in, w := io.Pipe()
		defer w.Close()
		sizes := make(chan Size, 1)
		sizes <- Size{Rows: 31, Cols: 71}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var out syncBuffer
		done := make(chan error, 1)
		go func() { done <- n.store.Attach(ctx, id, Streams{Stdin: in, Stdout: &out, Tty: true, Resize: sizes}) }()
		n.eventually("size of the terminal", func() bool {
			io.WriteString(w, "stty size\n")
			time.Sleep(20 * time.Millisecond)
			return strings.Contains(out.String(), "31 71")
		})
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		if st := n.status(id); st.FinishedAt != 0 {
			t.Error("the container ended with its client")
		}
	})
}

// A client that takes nothing is dropped; the container goes on.
func TestAttachSlowClient(t *testing.T) {
	n := newNode(t, "crun")
	// As fast as it can, for some seconds: a log without end would be a burden for the machine.
	id := n.start(n.config("sh", "-c", "yes "+strings.Repeat("x", 1000)+" | head -c 100000000; echo all; sleep 1000"))
	stuck, release := io.Pipe()
	defer release.Close()
	defer stuck.Close()
	err := n.store.Attach(t.Context(), id, Streams{Stdout: release})
	if !errors.Is(err, errSlow) {
		t.Errorf("%v, want %v", err, errSlow)
	}
	n.eventually("the container writes on", func() bool {
		f, err := os.Open(n.status(id).LogPath)
		if err != nil {
			return false
		}
		defer f.Close()
		end := make([]byte, 4)
		_, err = f.Seek(-4, io.SeekEnd)
		if err == nil {
			_, err = io.ReadFull(f, end)
		}
		return err == nil && string(end) == "all\n"
	})
}

func TestFilterIsReusedAndHolds(t *testing.T) {
	n := newNode(t, "crun")
	for range 2 { // the second gets what the first compiled
		id := n.start(n.config("sleep", "1000"))
		out, _, code, err := n.store.ExecSync(t.Context(), id, []string{"grep", "^Seccomp:", "/proc/1/status"}, time.Minute)
		if err != nil || code != 0 || string(out) != "Seccomp:\t2\n" {
			t.Errorf("container: %q %d %v", out, code, err)
		}
		if out, _, _, err = n.store.ExecSync(t.Context(), id, []string{"grep", "^Seccomp:", "/proc/self/status"}, time.Minute); err != nil || string(out) != "Seccomp:\t2\n" {
			t.Errorf("exec: %q %v", out, err)
		}
	}
	if len(n.store.filters.known) != 1 {
		t.Errorf("%d filters kept, want 1", len(n.store.filters.known))
	}
}

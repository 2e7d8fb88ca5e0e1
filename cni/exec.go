package cni

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/containernetworking/cni/pkg/version"
	"golang.org/x/sys/unix"

	"github.com/berthd/berth/test/failpoint"
)

// outputLimit bounds what a plugin may write to each of its outputs.
const outputLimit = 1 << 20

// stdinTime is how long a plugin's children may keep its input open, unread,
// once it has ended.
const stdinTime = time.Second

// runner runs plugins (libcni's invoke.Exec): each in a process group of its
// own that is killed whole when the context ends.
type runner struct{ version.PluginDecoder }

// ExecPlugin runs the plugin at path and returns its standard output.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	c := called{plugin: filepath.Base(path), verb: verbOf(environ), network: networkOf(stdin)}
	if err := ctx.Err(); err != nil {
		return nil, c.late(err)
	}
	stdout, stderr, err := launch(ctx, path, stdin, environ)
	switch {
	case ctx.Err() != nil:
		return nil, c.late(ctx.Err())
	case err != nil:
		return nil, c.failed(err, stdout.Bytes(), stderr.Bytes())
	case stdout.overrun:
		return nil, c.bad(fmt.Sprintf("answered with more than %d bytes", outputLimit))
	}
	return stdout.Bytes(), c.checkAnswer(stdout.Bytes())
}

// launch runs a program to its end, and not to that of its children: what it has
// written itself is in the pipes by then. Where it fails, its process group dies.
func launch(ctx context.Context, path string, stdin []byte, environ []string) (stdout, stderr *bounded, err error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin = bytes.NewReader(stdin)
	// A plugin that outlived the agent would go on adding while the next agent
	// deletes. The signal comes when the starting thread ends, so that is held.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel, cmd.WaitDelay = func() error { return killGroup(cmd) }, stdinTime
	out, err := newOutlet()
	if err != nil {
		return nil, nil, err
	}
	defer out.close()
	errs, err := newOutlet()
	if err != nil {
		return nil, nil, err
	}
	defer errs.close()
	cmd.Stdout, cmd.Stderr = out.w, errs.w
	failpoint.Hit("cni/plugin")
	if err := cmd.Start(); err != nil {
		return &bounded{}, &bounded{}, err
	}
	out.follow()
	errs.follow()
	err = cmd.Wait()
	failpoint.Hit("cni/plugin-done")
	if errors.Is(err, exec.ErrWaitDelay) {
		err = nil // it ended well, and left children that have its input open
	}
	if err != nil {
		_ = killGroup(cmd) // mostly gone already; a child that is left belongs to nobody any more
	}
	return out.rest(), errs.rest(), err
}

// killGroup kills a plugin and its children.
func killGroup(cmd *exec.Cmd) error {
	failpoint.Hit("cni/plugin-kill")
	return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
}

// outlet is one output of a plugin.
type outlet struct {
	r, w *os.File
	read bounded
	done chan struct{}
}

func newOutlet() (*outlet, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("make a pipe for a plugin's output: %w", err)
	}
	return &outlet{r: r, w: w}, nil
}

// follow reads until the end of the pipe, or rest.
func (o *outlet) follow() {
	o.done = make(chan struct{})
	_ = o.w.Close() // the plugin has its own
	go func() {
		defer close(o.done)
		_, _ = io.Copy(&o.read, o.r) // ends by the deadline or with the writers
	}()
}

// rest returns what was written until now, without waiting for those who could
// still write.
func (o *outlet) rest() *bounded {
	_ = o.r.SetReadDeadline(time.Now())
	<-o.done
	_ = o.r.SetReadDeadline(time.Time{})
	raw, err := o.r.SyscallConn()
	if err != nil {
		return &o.read
	}
	buf := make([]byte, 64<<10)
	_ = raw.Read(func(fd uintptr) bool { // ends with what is there, or with the limit
		for !o.read.overrun {
			n, err := unix.Read(int(fd), buf)
			if n <= 0 && !errors.Is(err, unix.EINTR) {
				break
			}
			_, _ = o.read.Write(buf[:max(n, 0)])
		}
		return true
	})
	return &o.read
}

func (o *outlet) close() {
	_ = o.w.Close()
	_ = o.r.Close()
}

// bounded keeps the first outputLimit bytes written to it, and notes an overrun.
type bounded struct {
	bytes.Buffer
	overrun bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if room := outputLimit - b.Len(); len(p) > room {
		b.overrun = true
		b.Buffer.Write(p[:max(room, 0)])
		return len(p), nil
	}
	return b.Buffer.Write(p)
}

// ReadFrom keeps io.Copy from filling the buffer past its limit.
func (b *bounded) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{b}, struct{ io.Reader }{r})
}

// FindInPath finds a plugin's program in dirs.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) || plugin == "." || plugin == ".." {
		return "", &Error{InvalidConf, "find", fmt.Errorf("%q is not a plugin's name", plugin)}
	}
	var unusable string
	for _, d := range dirs {
		path := filepath.Join(d, plugin)
		i, err := os.Stat(path)
		if err != nil {
			continue
		}
		if i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return path, nil
		}
		unusable = path
	}
	if unusable != "" {
		return "", &Error{Missing, "find", fmt.Errorf("plugin %q: %s is not an executable file: make it one (chmod 755), or install the plugin anew", plugin, unusable)}
	}
	return "", &Error{Missing, "find", fmt.Errorf("plugin %q is in none of %s: install it (Debian: apt-get install containernetworking-plugins)", plugin, strings.Join(dirs, ", "))}
}

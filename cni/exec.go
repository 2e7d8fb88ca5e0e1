package cni

import (
	"bytes"
	"context"
	"encoding/json"
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

	"github.com/containernetworking/cni/pkg/types"
	"github.com/containernetworking/cni/pkg/version"

	"github.com/berthd/berth/test/failpoint"
)

// outputLimit bounds what a plugin may write to each of its outputs.
const outputLimit = 1 << 20

// runner runs plugins (libcni's invoke.Exec): each in a process group of its
// own that is killed whole when the context ends.
type runner struct{ version.PluginDecoder }

// bounded keeps the first limit bytes written to it and counts the rest as overrun.
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

// drainTime is how long the rest of an ended plugin's output is waited for: on a
// machine that is short of processors the agent itself may not run for seconds.
const drainTime = 10 * time.Second

// ExecPlugin runs the plugin at path and returns its standard output.
func (r *runner) ExecPlugin(ctx context.Context, path string, stdin []byte, environ []string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, path)
	cmd.Env = environ
	cmd.Stdin = bytes.NewReader(stdin)
	var stdout, stderr bounded
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	// A plugin that outlived the agent would go on adding while the next agent
	// deletes. The signal comes when the starting thread ends, so that is held.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	cmd.WaitDelay = drainTime
	failpoint.Hit("cni/plugin")
	err := cmd.Run()
	failpoint.Hit("cni/plugin-done")
	name := filepath.Base(path)
	switch {
	case ctx.Err() != nil:
		return nil, &Error{Timeout, command(environ), fmt.Errorf("plugin %s was killed: it did not answer in time (%w)", name, ctx.Err())}
	case stdout.overrun:
		return nil, &Error{BadAnswer, command(environ), fmt.Errorf("plugin %s answered with more than %d bytes", name, outputLimit)}
	case err == nil && !json.Valid(stdout.Bytes()) && len(bytes.TrimSpace(stdout.Bytes())) > 0:
		return nil, &Error{BadAnswer, command(environ), fmt.Errorf("plugin %s answered something that is not JSON", name)}
	case err != nil:
		return nil, pluginError(name, command(environ), err, stdout.Bytes(), stderr.Bytes())
	}
	return stdout.Bytes(), nil
}

func command(environ []string) string {
	for _, e := range environ {
		if c, ok := strings.CutPrefix(e, "CNI_COMMAND="); ok {
			return c
		}
	}
	return "?"
}

// pluginError makes a sentence of a plugin's failure: the error object on its
// standard output if it is one, else the end of its standard error.
func pluginError(name, op string, err error, stdout, stderr []byte) error {
	var told types.Error
	code := Internal
	if json.Unmarshal(stdout, &told) == nil && told.Msg != "" {
		msg := told.Msg
		if told.Details != "" {
			msg += "; " + told.Details
		}
		if strings.Contains(msg, "no IP addresses available") {
			code = Exhausted
			msg = "no address left: " + msg + "; end pods that are no longer needed, or give the network a larger range"
		}
		if told.Code == types.ErrTryAgainLater {
			code = NotReady
		}
		return &Error{code, op, fmt.Errorf("plugin %s: %s", name, msg)}
	}
	last := strings.TrimSpace(string(stderr[max(0, len(stderr)-500):]))
	if last == "" {
		last = strings.TrimSpace(string(stdout[:min(len(stdout), 500)]))
	}
	return &Error{code, op, fmt.Errorf("plugin %s failed: %w: %s", name, err, last)}
}

// FindInPath finds a plugin's program in dirs.
func (r *runner) FindInPath(plugin string, dirs []string) (string, error) {
	if plugin == "" || plugin != filepath.Base(plugin) || plugin == "." || plugin == ".." {
		return "", &Error{InvalidConf, "find", fmt.Errorf("%q is not a plugin's name", plugin)}
	}
	for _, d := range dirs {
		path := filepath.Join(d, plugin)
		if i, err := os.Stat(path); err == nil && i.Mode().IsRegular() && i.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", &Error{Missing, "find", fmt.Errorf("plugin %q is in none of %s: install it (Debian: apt-get install containernetworking-plugins)", plugin, strings.Join(dirs, ", "))}
}

// asError wraps what libcni returns, keeping the code of our own errors.
func asError(op string, err error) error {
	if err == nil {
		return nil
	}
	var e *Error
	if errors.As(err, &e) {
		return err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return &Error{Timeout, op, err}
	}
	if errors.Is(err, io.EOF) {
		return &Error{BadAnswer, op, fmt.Errorf("the plugin answered nothing: %w", err)}
	}
	return &Error{Internal, op, err}
}

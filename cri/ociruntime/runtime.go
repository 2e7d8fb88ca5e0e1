package ociruntime

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
	"strconv"
	"syscall"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Starter starts a program where OCI runtimes and monitors are to run; on a
// hybrid cgroup host that is a mount namespace of its own.
type Starter interface {
	// Start is cmd.Start; the caller waits for cmd.
	Start(cmd *exec.Cmd) error
}

// Direct starts programs in our own namespaces.
type Direct struct{}

// Start is cmd.Start.
func (Direct) Start(cmd *exec.Cmd) error { return cmd.Start() }

const (
	// callTimeout bounds one call of the runtime; only a stuck kernel or disk needs more.
	callTimeout = 30 * time.Second
	maxOutput   = 1 << 20
	maxStderr   = 16 << 10
)

// environ is all that a runtime sees of our environment: it hands what it has to nobody.
var environ = []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}

// Runtime calls one OCI runtime. Its methods may be called at once.
type Runtime struct {
	bin     Binary
	root    string
	systemd bool
	starter Starter
	handler Handler // zero for crun and runc as they were found
}

// New returns a Runtime that keeps its state below root (STATE/oci). systemd
// chooses the cgroup driver.
func New(bin Binary, root string, systemd bool, starter Starter) *Runtime {
	return &Runtime{bin: bin, root: root, systemd: systemd, starter: starter}
}

// Binary returns the runtime in use.
func (r *Runtime) Binary() Binary { return r.bin }

// GlobalArgs are the arguments that stand before the runtime's subcommand.
func (r *Runtime) GlobalArgs() []string {
	args := append([]string{"--root=" + r.root}, r.handler.Args...)
	if r.systemd {
		args = append(args, "--systemd-cgroup")
	}
	return args
}

// SystemdCgroup tells whether cgroups are made by systemd.
func (r *Runtime) SystemdCgroup() bool { return r.systemd }

// Start lets a created container's process run. The error is an *Error.
func (r *Runtime) Start(ctx context.Context, id string) error {
	failpoint.Hit("cri/ociruntime/start")
	_, err := r.call(ctx, nil, "start", id)
	failpoint.Hit("cri/ociruntime/start-done")
	return err
}

// Delete removes what the runtime keeps of a container, its cgroup included,
// and kills what still runs in it. A container that is gone is success.
//
// Force comes second: with it runc takes a tenth of a second to see that
// a container that has ended is dead.
func (r *Runtime) Delete(ctx context.Context, id string) error {
	failpoint.Hit("cri/ociruntime/delete")
	_, err := r.call(ctx, nil, "delete", id)
	if err != nil && !isKind(err, NotFound) && !isKind(err, Timeout) && !isKind(err, Unusable) {
		_, err = r.call(ctx, nil, "delete", "--force", id)
	}
	failpoint.Hit("cri/ociruntime/delete-done")
	if isKind(err, NotFound) {
		return nil
	}
	return err
}

// Forget removes the files that the runtime keeps of a container. Only for one
// of which nothing runs any more.
func (r *Runtime) Forget(id string) error {
	failpoint.Hit("cri/ociruntime/forget")
	if err := os.RemoveAll(filepath.Join(r.root, id)); err != nil {
		return fmt.Errorf("removing the state of container %s: %w", id, err)
	}
	return nil
}

// State returns what the runtime knows of a container; an *Error of kind
// NotFound if it knows nothing.
func (r *Runtime) State(ctx context.Context, id string) (specs.State, error) {
	failpoint.Hit("cri/ociruntime/state")
	out, err := r.call(ctx, nil, "state", id)
	if err != nil {
		return specs.State{}, err
	}
	var s specs.State
	if err := json.Unmarshal(out, &s); err != nil {
		return specs.State{}, &Error{Op: "state", Runtime: r.Name(), Kind: Misbehaved, Err: err,
			Message: r.blame("answered state with something that is no state: " + clip(string(out)))}
	}
	return s, nil
}

// maxFilter is the longest program the kernel takes: 4096 instructions of 8 bytes.
const maxFilter = 4096 * 8

// SeccompFilter returns the filter that crun compiled for a created container;
// nil if there is none, or the runtime is another.
func (r *Runtime) SeccompFilter(id string) []byte {
	if r.bin.Name != "crun" {
		return nil
	}
	b, err := os.ReadFile(filepath.Join(r.root, id, "seccomp.bpf"))
	if err != nil || len(b) == 0 || len(b)%8 != 0 || len(b) > maxFilter {
		return nil
	}
	return b
}

// Update changes a container's limits.
func (r *Runtime) Update(ctx context.Context, id string, res specs.LinuxResources) error {
	in, err := json.Marshal(res)
	if err != nil {
		return err
	}
	failpoint.Hit("cri/ociruntime/update")
	_, err = r.call(ctx, in, "update", "--resources", "-", id)
	failpoint.Hit("cri/ociruntime/update-done")
	return err
}

// call runs one subcommand and waits for its end, no longer than callTimeout.
func (r *Runtime) call(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	return r.callWithin(ctx, stdin, args...)
}

// callWithin runs one subcommand and waits for its end, as long as ctx lets it.
func (r *Runtime) callWithin(ctx context.Context, stdin []byte, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, r.bin.Executable(), append(r.GlobalArgs(), args...)...)
	cmd.Env = environ
	cmd.Dir = "/"
	cmd.WaitDelay = time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) } // with all that it has started
	out, errOut := limited{max: maxOutput}, limited{max: maxStderr}
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if stdin != nil {
		cmd.Stdin = bytes.NewReader(stdin)
	}
	began := time.Now()
	if err := r.starter.Start(cmd); err != nil {
		return nil, &Error{Op: args[0], Runtime: r.Name(), Kind: Unusable,
			Message: r.blame(fmt.Sprintf("cannot be run: %v", err)), Err: err}
	}
	err := cmd.Wait()
	if errors.Is(err, exec.ErrWaitDelay) || r.Doubted() {
		// What it started holds its output open, or was forgotten. Gone is success: no
		// number is given away again so soon.
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL)
	}
	switch {
	case ctx.Err() != nil:
		return nil, &Error{Op: args[0], Runtime: r.Name(), Kind: Timeout, Err: ctx.Err(),
			Message: r.blame(fmt.Sprintf("did not end %s within %v and was killed", args[0], time.Since(began).Round(time.Second)))}
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		return nil, r.Failed(args[0], errOut.String(), err)
	}
	return out.Bytes(), nil
}

// ConsoleSocket is the socket, in the directory of a process's description, to
// which a runtime with SendsTerminal sends the terminal of the process.
const ConsoleSocket = "console"

// SendsTerminal tells whether the runtime hands out the terminal of a process
// that it runs in the foreground. crun does, and must be asked to: where it
// carries the bytes itself (1.8.1) it ends with the process, and what it has not
// yet read is lost. runc does not, and drains the terminal.
func (r *Runtime) SendsTerminal() bool { return r.bin.Name == "crun" }

// ExecCommand returns the command that runs the process described by the file
// spec in container id and writes its pid to pidFile. The caller sets its
// standard streams and calls StartExec; with tty and SendsTerminal it listens at
// ConsoleSocket instead.
func (r *Runtime) ExecCommand(id, spec, pidFile, logFile string, tty bool) *exec.Cmd {
	args := append(r.GlobalArgs(), "--log="+logFile, "--log-format=json", "exec", "--process="+spec, "--pid-file="+pidFile)
	if tty {
		args = append(args, "--tty")
	}
	dir := "/"
	if tty && r.SendsTerminal() {
		dir = filepath.Dir(spec) // a socket's path has room for 107 bytes
		args = append(args, "--console-socket="+ConsoleSocket)
	}
	cmd := exec.Command(r.bin.Executable(), append(args, id)...)
	cmd.Env = environ
	cmd.Dir = dir
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return cmd
}

// StartExec starts a command of ExecCommand.
func (r *Runtime) StartExec(cmd *exec.Cmd) error {
	failpoint.Hit("cri/ociruntime/exec")
	if err := r.starter.Start(cmd); err != nil {
		return &Error{Op: "exec", Runtime: r.Name(), Kind: Unusable,
			Message: r.blame(fmt.Sprintf("cannot be run: %v", err)), Err: err}
	}
	return nil
}

// limited keeps the first max bytes written to it and swallows the rest, so that
// the writer never blocks.
type limited struct {
	bytes.Buffer
	max int
}

func (l *limited) Write(p []byte) (int, error) {
	if room := l.max - l.Len(); room > 0 {
		l.Buffer.Write(p[:min(len(p), room)])
	}
	return len(p), nil
}

// ReadFrom hides the embedded Buffer's, which has no limit.
func (l *limited) ReadFrom(src io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{l}, src)
}

func quote(s string) string { return strconv.Quote(s) }

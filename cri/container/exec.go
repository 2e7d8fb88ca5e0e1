package container

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
	"strings"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Size is a terminal's.
type Size struct{ Rows, Cols uint16 }

// Streams are a client's ends.
type Streams struct {
	Stdin          io.Reader // nil: none
	Stdout, Stderr io.Writer // nil: thrown away
	Tty            bool
	Resize         <-chan Size // may be nil
}

const (
	// maxOutput bounds each stream of ExecSync, as CRI's message size does.
	maxOutput = 16 << 20
	// A process that has ended may leave children that hold its streams open.
	// A probe does not wait for them; a person's session drains a slow line.
	syncDrain   = 500 * time.Millisecond
	streamDrain = 10 * time.Second
)

// ExecSync runs args in a running container and returns what it wrote, up to
// 16 MiB a stream, and its exit code. If timeout (0: none) or ctx ends, the
// process and all it started are killed, and the error wraps
// context.DeadlineExceeded or ctx's.
func (s *Store) ExecSync(ctx context.Context, id string, args []string, timeout time.Duration) (stdout, stderr []byte, code int32, err error) {
	if timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, timeout)
		defer cancel()
	}
	var out, errOut limited
	code, err = s.exec(ctx, id, args, Streams{Stdout: &out, Stderr: &errOut}, syncDrain)
	if err != nil && ctx.Err() != nil {
		err = fmt.Errorf("command %q was killed after %v: %w", strings.Join(args, " "), timeout, ctx.Err())
	}
	return out.Bytes(), errOut.Bytes(), code, err
}

// Exec runs args in a running container with a client's streams and returns its
// exit code. When ctx ends the process and all it started are killed.
func (s *Store) Exec(ctx context.Context, id string, args []string, io Streams) (int32, error) {
	return s.exec(ctx, id, args, io, streamDrain)
}

// limited keeps the first maxOutput bytes and swallows the rest.
type limited struct{ bytes.Buffer }

func (l *limited) Write(p []byte) (int, error) {
	l.Buffer.Write(p[:min(len(p), max(0, maxOutput-l.Len()))])
	return len(p), nil
}

// ReadFrom hides the embedded Buffer's, which has no limit.
func (l *limited) ReadFrom(src io.Reader) (int64, error) { return io.Copy(struct{ io.Writer }{l}, src) }

// execPattern names the directories of sessions.
const execPattern = "exec-*"

// session is one process beside a container's own.
type session struct {
	cmd *exec.Cmd
	rt  *ociruntime.Runtime
	dir string // of its files, in the bundle
	// user owns its streams; nil: they are not given away.
	user *HostUser
	// size is what the terminal begins with; nil if not known.
	size *specs.Box
}

func (e *session) pidFile() string { return filepath.Join(e.dir, "pid") }
func (e *session) logFile() string { return filepath.Join(e.dir, "log") }

func (s *Store) exec(ctx context.Context, id string, args []string, st Streams, drain time.Duration) (int32, error) {
	c, err := s.complete(id)
	if err != nil {
		return 0, err
	}
	if rec, _ := c.snapshot(); rec.State() != runtimeapi.ContainerState_CONTAINER_RUNNING {
		return 0, fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	if len(args) == 0 || args[0] == "" {
		return 0, fmt.Errorf("no command to run: %w", errdefs.ErrInvalidArgument)
	}
	var size *specs.Box
	select {
	case sz := <-st.Resize: // a size that is known already is there from the first instruction
		size = &specs.Box{Height: uint(sz.Rows), Width: uint(sz.Cols)}
	default:
	}
	e, err := s.prepare(c, args, st.Tty, size)
	if err != nil {
		return 0, err
	}
	defer func() {
		failpoint.Hit("cri/container/exec-remove")
		if err := os.RemoveAll(e.dir); err != nil {
			s.cfg.Log.Warn("files of an exec stay until the container is removed", "dir", e.dir, "err", err)
		}
	}()
	e.cmd.WaitDelay = drain
	wait := s.runPlain
	if st.Tty {
		wait = s.runTerminal
	}
	ended := make(chan error, 1)
	release, err := wait(e, st, ended)
	if err != nil {
		return 0, err
	}
	defer release()
	outlived, end := e.watchOutlived(st.Tty)
	defer end()
	select {
	case err = <-ended:
	case code := <-outlived:
		e.cmd.Process.Kill() // what it waits for is not ours to end
		<-ended
		return code, nil
	case <-ctx.Done():
		e.kill(ended)
		return 0, ctx.Err()
	case <-c.exited: // a shared PID namespace does not end it
		err = e.kill(ended)
	}
	return s.result(e, err)
}

// prepare writes the description of the process: the container's own, with
// other arguments.
func (s *Store) prepare(c *container, args []string, tty bool, size *specs.Box) (*session, error) {
	raw, err := os.ReadFile(filepath.Join(s.bundle(c.id), "config.json"))
	if err != nil {
		return nil, fmt.Errorf("reading the specification of container %s: %w", c.id, err)
	}
	var spec struct {
		Process specs.Process `json:"process"`
	}
	if err := json.Unmarshal(raw, &spec); err != nil {
		return nil, fmt.Errorf("specification of container %s is unreadable: %w", c.id, err)
	}
	spec.Process.Args, spec.Process.Terminal, spec.Process.ConsoleSize = args, tty, size
	if tty && !hasKey(spec.Process.Env, "TERM") {
		spec.Process.Env = append(spec.Process.Env, "TERM=xterm")
	}
	if raw, err = json.Marshal(spec.Process); err != nil {
		return nil, fmt.Errorf("encoding a process: %w", err)
	}
	failpoint.Hit("cri/container/exec-mkdir")
	dir, err := os.MkdirTemp(s.bundle(c.id), execPattern)
	if err != nil {
		return nil, fmt.Errorf("making a directory for an exec: %w", err)
	}
	rec, _ := c.snapshot()
	e := &session{dir: dir, size: size, rt: s.runtime(rec), user: rec.HostUser}
	failpoint.Hit("cri/container/exec-write")
	if err := os.WriteFile(filepath.Join(dir, "process.json"), raw, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("writing the process of an exec: %w", err), os.RemoveAll(dir))
	}
	e.cmd = e.rt.ExecCommand(c.id, filepath.Join(dir, "process.json"), e.pidFile(), e.logFile(), tty)
	return e, nil
}

func hasKey(env []string, key string) bool {
	for _, kv := range env {
		if strings.HasPrefix(kv, key+"=") {
			return true
		}
	}
	return false
}

// runPlain starts the process on pipes, all three of them: os/exec would put the
// host's /dev/null in the place of one that is missing, and crun gives the streams
// of an exec to its user, who could then close /dev/null to everybody.
func (s *Store) runPlain(e *session, st Streams, ended chan<- error) (release func(), err error) {
	if st.Stdout == nil {
		st.Stdout = io.Discard
	}
	if st.Stderr == nil {
		st.Stderr = io.Discard
	}
	e.cmd.Stdout, e.cmd.Stderr = st.Stdout, st.Stderr
	// Not a reader for cmd.Stdin: Wait would wait for a client that sends nothing.
	theirs, ours, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	defer theirs.Close()
	e.cmd.Stdin = theirs
	release = func() { ours.Close() }
	if e.user != nil {
		if err := givePipe(theirs, *e.user); err != nil {
			release()
			return nil, err
		}
	}
	if st.Stdin == nil {
		release() // it reads an end of file
	}
	wait, err := e.startPlain(st)
	if err != nil {
		release()
		return nil, err
	}
	if st.Stdin != nil {
		// Ends with the pipe or with the client, whose connection the caller closes.
		go func() {
			io.Copy(ours, st.Stdin)
			ours.Close()
		}()
	}
	go func() { ended <- wait() }()
	return release, nil
}

// startPlain starts the process, with its output on pipes of its own user where
// it lives in a user namespace, and returns what waits for its end.
func (e *session) startPlain(st Streams) (wait func() error, err error) {
	if e.user == nil {
		return e.cmd.Wait, e.rt.StartExec(e.cmd)
	}
	var out outputs
	var theirs []*os.File
	for _, dst := range []io.Writer{st.Stdout, st.Stderr} {
		w, perr := out.pipe(*e.user, dst)
		if err = perr; err != nil {
			break
		}
		theirs = append(theirs, w)
	}
	if err == nil {
		e.cmd.Stdout, e.cmd.Stderr = theirs[0], theirs[1]
		err = e.rt.StartExec(e.cmd)
	}
	for _, f := range theirs {
		f.Close()
	}
	if err != nil {
		out.drain(func(f *os.File) { f.SetReadDeadline(deadline(0)) })
		return nil, err
	}
	return func() error {
		err := e.cmd.Wait()
		out.drain(func(f *os.File) { f.SetReadDeadline(deadline(e.cmd.WaitDelay)) })
		return err
	}, nil
}

// result tells the process's exit code from a failure to run it.
func (s *Store) result(e *session, err error) (int32, error) {
	if err == nil || errors.Is(err, exec.ErrWaitDelay) {
		if _, serr := os.Lstat(e.pidFile()); serr != nil && e.rt.Doubted() {
			return 0, e.rt.Misbehaved("exec", "ended as if it had run the command, and has not run it")
		}
		return int32(max(e.cmd.ProcessState.ExitCode(), 0)), nil
	}
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, fmt.Errorf("running a command: %w", err)
	}
	// The runtime's own failures are in its log; the process's stderr is not.
	if said := e.said(); ociruntime.Clean(said) != "" {
		return 0, e.rt.Failed("exec", said, err)
	}
	if code := exit.ExitCode(); code >= 0 {
		return int32(code), nil
	}
	return killedCode, nil // the runtime was killed, by us or by the kernel
}

// maxSaid bounds what is read of a runtime's log: the last words are what counts.
const maxSaid = 16 << 10

// said is the end of what the runtime has logged.
func (e *session) said() string {
	f, err := os.Open(e.logFile())
	if err != nil {
		return ""
	}
	defer f.Close()
	if st, err := f.Stat(); err == nil && st.Size() > maxSaid {
		if _, err := f.Seek(-maxSaid, io.SeekEnd); err != nil {
			return ""
		}
	}
	b, _ := io.ReadAll(io.LimitReader(f, maxSaid)) // what could be read
	return string(b)
}

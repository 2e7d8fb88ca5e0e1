package monitor

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Container is what a conmon is started for.
type Container struct {
	ID   string
	Name string
	// Bundle is the OCI bundle. It holds nextConfig, not yet config.json.
	Bundle string
	// PersistDir is where conmon leaves a file "oom".
	PersistDir string
	LogPath    string // "": what it writes is not kept
	Terminal   bool
	// Stdin keeps a pipe to the container's standard input; StdinOnce closes
	// it when the first client has left.
	Stdin, StdinOnce bool
	// Runtime creates it; nil for Config's.
	Runtime *ociruntime.Runtime
	// Recorded is called with conmon's identity before conmon can do anything.
	// It must put it on record; its error ends the creation.
	Recorded func(conmon Identity) error
}

// NextConfig is the name under which the OCI specification waits in the bundle.
const NextConfig = "config.json.next"

// createTimeout bounds a creation: image layers on a cold disk, a busy machine.
const createTimeout = time.Minute

// Create starts a conmon, which creates the container, and returns the identity
// of the container's first process, which waits to be started. On error nothing
// but files is left, unless the agent is killed; an error of the runtime is an
// *ociruntime.Error.
func (m *Monitor) Create(ctx context.Context, c Container) (Identity, error) {
	ctx, cancel := context.WithTimeout(ctx, createTimeout)
	defer cancel()
	slots := m.slots(m.runtime(c).Name())
	select {
	case slots <- struct{}{}:
		defer func() { <-slots }()
	case <-ctx.Done():
		return Identity{}, fmt.Errorf("waiting for other containers to be created by %s: %w", m.runtime(c).Name(), ctx.Err())
	}
	conmon, p, err := m.launch(c)
	if err != nil {
		return Identity{}, err
	}
	defer p.close()
	stop := context.AfterFunc(ctx, func() { p.sync.SetReadDeadline(time.Now()) })
	defer stop()
	pid, err := m.handshake(c, conmon, p)
	if err != nil {
		m.clear(c, conmon) // with the runtime it runs, and what that has started
		if ctx.Err() != nil {
			err = fmt.Errorf("creating container %s: %w: %w", c.ID, m.runtime(c).Misbehaved("create", "did not end create in time and was killed"), ctx.Err())
		}
		return Identity{}, err
	}
	if m.leaf.dir == nil {
		m.moves.Go(func() { m.settle(c.ID, conmon) })
	}
	id, err := Identify(pid)
	if errors.Is(err, ErrGone) {
		return Identity{}, fmt.Errorf("container %s ended before it was started", c.ID)
	}
	return id, err
}

// clear kills the monitor of a creation that failed, and what the runtime left
// running: of one that is doubted, also what has lost its parent by now. It is in
// the session of the monitor, whose number nothing else can have yet.
func (m *Monitor) clear(c Container, conmon Identity) {
	conmon.KillAll() // gone is success
	if !m.runtime(c).Doubted() {
		return
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		m.cfg.Log.Warn("what a runtime may have left running is not looked for", "container", c.ID, "err", err)
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		id, err := Identify(pid)
		if sid, serr := unix.Getsid(pid); err == nil && serr == nil && sid == conmon.PID {
			id.Signal(unix.SIGKILL) // gone is success
		}
	}
}

// settle moves a conmon to its cgroup.
func (m *Monitor) settle(id string, conmon Identity) {
	if err := m.leaf.place(conmon.PID); err != nil {
		m.cfg.Log.Warn("monitor stays in the agent's cgroup", "container", id, "err", err)
	}
}

// pipes are our ends; errs is what conmon says before it has set itself up.
type pipes struct{ sync, start, errs *os.File }

func (p pipes) close() {
	for _, f := range []*os.File{p.sync, p.start, p.errs} {
		if f != nil {
			f.Close()
		}
	}
}

func (m *Monitor) runtime(c Container) *ociruntime.Runtime {
	if c.Runtime != nil {
		return c.Runtime
	}
	return m.cfg.Runtime
}

func (m *Monitor) args(c Container) []string {
	rt := m.runtime(c)
	log := "none"
	if c.LogPath != "" {
		log = "k8s-file:" + c.LogPath
	}
	args := []string{
		"--sync", // one fork: conmon is our child, and ours to name
		"-c", c.ID, "-u", c.ID, "-n", c.Name, "-r", rt.Binary().Executable(), "-b", c.Bundle,
		"-p", filepath.Join(c.Bundle, "pidfile"), "--exit-dir", m.cfg.ExitDir, "--persist-dir", c.PersistDir,
		"--full-attach", "-l", log, "--log-size-max", "-1", "--no-sync-log", "--log-level", "warning",
	}
	for _, a := range rt.GlobalArgs() {
		args = append(args, "--runtime-arg="+a)
	}
	if rt.SystemdCgroup() {
		args = append(args, "-s")
	}
	if c.Terminal {
		args = append(args, "-t")
	}
	if c.Stdin {
		args = append(args, "-i")
		if !c.StdinOnce {
			args = append(args, "--leave-stdin-open")
		}
	}
	return args
}

// launch starts conmon, watched and waiting for its byte.
func (m *Monitor) launch(c Container) (Identity, pipes, error) {
	var p pipes
	var theirs [3]*os.File
	defer func() {
		for _, f := range theirs {
			if f != nil {
				f.Close()
			}
		}
	}()
	var err error
	if p.sync, theirs[0], err = os.Pipe(); err == nil {
		if theirs[1], p.start, err = os.Pipe(); err == nil {
			p.errs, theirs[2], err = os.Pipe()
		}
	}
	if err != nil {
		p.close()
		return Identity{}, p, fmt.Errorf("making pipes for the monitor of %s: %w", c.ID, err)
	}
	cmd := exec.Command(m.path, m.args(c)...)
	cmd.Dir = c.Bundle // conmon leaves a file "oom" where it is
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "_OCI_SYNCPIPE=3", "_OCI_STARTPIPE=4",
		// Of its console socket, whose path has room for 107 bytes: conmon and
		// the runtime are both in the bundle.
		"TMPDIR=.",
	}
	cmd.ExtraFiles = theirs[:2]
	cmd.Stderr = theirs[2]
	cmd.SysProcAttr = m.leaf.attr()
	failpoint.Hit("cri/monitor/launch")
	if err := m.cfg.Starter.Start(cmd); err != nil {
		p.close()
		return Identity{}, p, fmt.Errorf("starting the monitor of %s: %s: %w", c.ID, m.path, err)
	}
	failpoint.Hit("cri/monitor/launch-done")
	conmon, err := Identify(cmd.Process.Pid)
	if err == nil {
		var fd int
		if fd, err = conmon.Open(); err == nil {
			err = m.watch(fd, watch{id: c.ID, cmd: cmd})
		}
	}
	if err != nil {
		cmd.Process.Kill()
		cmd.Wait()
		p.close()
		return Identity{}, p, fmt.Errorf("watching the monitor of %s: %w", c.ID, err)
	}
	return conmon, p, nil
}

// handshake lets conmon go and waits for its answer.
func (m *Monitor) handshake(c Container, conmon Identity, p pipes) (int, error) {
	if err := c.Recorded(conmon); err != nil {
		return 0, err
	}
	failpoint.Hit("cri/monitor/config-rename")
	if err := os.Rename(filepath.Join(c.Bundle, NextConfig), filepath.Join(c.Bundle, "config.json")); err != nil {
		return 0, fmt.Errorf("putting the specification of %s in place: %w", c.ID, err)
	}
	failpoint.Hit("cri/monitor/release")
	if _, err := p.start.Write([]byte{0}); err != nil {
		return 0, m.failed(c, p, err)
	}
	var answer struct {
		PID     int    `json:"pid"`
		Message string `json:"message"`
	}
	err := json.NewDecoder(io.LimitReader(p.sync, 64<<10)).Decode(&answer)
	failpoint.Hit("cri/monitor/create-done")
	switch {
	case err != nil:
		return 0, m.failed(c, p, err)
	case answer.PID <= 0:
		return 0, m.runtime(c).Failed("create", answer.Message, errors.New("it made no process"))
	}
	return answer.PID, nil
}

// failed says why conmon ended without an answer.
func (m *Monitor) failed(c Container, p pipes, cause error) error {
	p.errs.SetReadDeadline(time.Now().Add(time.Second))
	said, _ := io.ReadAll(io.LimitReader(p.errs, 8<<10))
	text := strings.TrimSpace(strings.ReplaceAll(string(said), "[conmon:e]: ", ""))
	if text == "" {
		text = "it said nothing"
	}
	return fmt.Errorf("the monitor (conmon) of container %s, which calls %s, ended before the container existed: %s: %w", c.ID, m.runtime(c).Name(), text, cause)
}

package monitor

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Config is what a Monitor needs.
type Config struct {
	// Path is conmon's; empty searches PATH.
	Path    string
	Runtime *ociruntime.Runtime
	Starter ociruntime.Starter
	// ExitDir is where exit files appear: STATE/exits.
	ExitDir string
	// Cgroup is the leaf, from the root of the cgroup tree, that all conmons
	// live in. Empty leaves them in the agent's.
	Cgroup string
	Log    *slog.Logger
}

// Kind is what a hint is about.
type Kind int

// The kinds of hints.
const (
	Exited   Kind = iota // the exit file of ID has appeared
	Gone                 // the conmon of ID has ended
	Overflow             // hints were lost: look at every container
)

// Hint says that something has happened to container ID.
type Hint struct {
	Kind Kind
	ID   string
}

// Monitor starts and watches conmons. Its methods may be called at once.
type Monitor struct {
	cfg     Config
	path    string
	leaf    *leaf
	creates sync.Map // by runtime: one token for each creation that may go on at once
	hints   chan Hint
	inotify int
	epoll   int
	wake    int            // eventfd that ends Run
	moves   sync.WaitGroup // conmons on their way to their cgroup

	mu      sync.Mutex
	watched map[int32]watch  // by pidfd
	byID    map[string]int32 // pidfd by container
}

type watch struct {
	id  string
	cmd *exec.Cmd // nil for an adopted one: init reaps it
}

// maxCreates bounds creations at once: more than a few only queue for the CPU.
// Each runtime has as many: one that hangs holds up nobody else's.
const maxCreates = 8

func (m *Monitor) slots(runtime string) chan struct{} {
	have, ok := m.creates.Load(runtime)
	if !ok {
		have, _ = m.creates.LoadOrStore(runtime, make(chan struct{}, maxCreates))
	}
	return have.(chan struct{})
}

// Open finds conmon and begins to watch ExitDir; Run delivers what is seen.
func Open(cfg Config) (*Monitor, error) {
	path := cfg.Path
	if path == "" {
		path = "conmon"
	}
	path, err := exec.LookPath(path)
	if err != nil {
		return nil, fmt.Errorf("conmon is not usable: %w; install it (apt-get install conmon) or configure its path", err)
	}
	failpoint.Hit("cri/monitor/mkdir-exits")
	if err := os.MkdirAll(cfg.ExitDir, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of exit files: %w", err)
	}
	m := &Monitor{
		cfg: cfg, path: path, hints: make(chan Hint, 64),
		watched: map[int32]watch{}, byID: map[string]int32{}, inotify: -1, epoll: -1, wake: -1,
	}
	if m.leaf, err = openLeaf(cfg.Cgroup); err != nil {
		return nil, err
	}
	if m.leaf.v2 {
		raiseInotify(cfg.Log)
	}
	if err := m.openWatches(); err != nil {
		m.closeFDs()
		return nil, err
	}
	return m, nil
}

func (m *Monitor) openWatches() (err error) {
	if m.inotify, err = unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK); err != nil {
		return fmt.Errorf("making an inotify instance (see fs.inotify.max_user_instances): %w", err)
	}
	// conmon writes a temporary file and renames it.
	if _, err = unix.InotifyAddWatch(m.inotify, m.cfg.ExitDir, unix.IN_MOVED_TO|unix.IN_ONLYDIR); err != nil {
		return fmt.Errorf("watching %s: %w", m.cfg.ExitDir, err)
	}
	if m.epoll, err = unix.EpollCreate1(unix.EPOLL_CLOEXEC); err != nil {
		return fmt.Errorf("making an epoll instance: %w", err)
	}
	if m.wake, err = unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK); err != nil {
		return fmt.Errorf("making an eventfd: %w", err)
	}
	for _, fd := range []int{m.inotify, m.wake} {
		if err = unix.EpollCtl(m.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fd)}); err != nil {
			return fmt.Errorf("watching a descriptor: %w", err)
		}
	}
	return nil
}

func (m *Monitor) closeFDs() {
	for _, fd := range []int{m.inotify, m.epoll, m.wake} {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
	m.leaf.close()
}

// Hints is where Run delivers; its reader must keep reading until Run returns.
func (m *Monitor) Hints() <-chan Hint { return m.hints }

// Run watches until ctx ends, then closes the watches and the channel of hints.
// It is to be called once; conmons and containers live on.
func (m *Monitor) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() {
		unix.Write(m.wake, binaryOne[:])
	})
	defer stop()
	defer close(m.hints)
	events := make([]unix.EpollEvent, 64)
	for ctx.Err() == nil {
		n, err := unix.EpollWait(m.epoll, events, -1)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return fmt.Errorf("watching monitors: %w", err)
		}
		for _, e := range events[:n] {
			switch int(e.Fd) {
			case m.inotify:
				m.readExits(ctx)
			case m.wake:
			default:
				m.ended(ctx, e.Fd)
			}
		}
	}
	m.moves.Wait()
	m.mu.Lock()
	for fd := range m.watched {
		unix.Close(int(fd))
	}
	clear(m.watched)
	clear(m.byID)
	m.mu.Unlock()
	m.closeFDs()
	return nil
}

var binaryOne = [8]byte{1, 1, 1, 1, 1, 1, 1, 1}

func (m *Monitor) send(ctx context.Context, h Hint) {
	select {
	case m.hints <- h:
	case <-ctx.Done():
	}
}

// readExits turns what inotify has into hints.
func (m *Monitor) readExits(ctx context.Context) {
	var buf [8192]byte
	for {
		n, err := unix.Read(m.inotify, buf[:])
		if err != nil || n <= 0 {
			return
		}
		for off := 0; off+unix.SizeofInotifyEvent <= n; {
			e := parseInotify(buf[off:n])
			off += unix.SizeofInotifyEvent + e.length
			switch {
			case e.mask&unix.IN_Q_OVERFLOW != 0:
				m.send(ctx, Hint{Kind: Overflow})
			case e.name != "" && !strings.Contains(e.name, "."):
				m.send(ctx, Hint{Kind: Exited, ID: e.name})
			}
		}
	}
}

// ended reaps a conmon of ours and passes the hint on.
//
// The event may be about another process than the one fd now stands for: epoll
// watches what a descriptor refers to, and a program forked a moment ago holds
// that open until its exec, while the number has been given away again. So fd
// itself is asked whether its process has ended.
func (m *Monitor) ended(ctx context.Context, fd int32) {
	m.mu.Lock()
	poll := []unix.PollFd{{Fd: fd, Events: unix.POLLIN}}
	w, ok := m.watched[fd]
	if n, err := unix.Poll(poll, 0); !ok || err != nil || n == 0 || poll[0].Revents&unix.POLLIN == 0 {
		m.mu.Unlock()
		return
	}
	delete(m.watched, fd)
	if m.byID[w.id] == fd {
		delete(m.byID, w.id)
	}
	unix.EpollCtl(m.epoll, unix.EPOLL_CTL_DEL, int(fd), nil)
	unix.Close(int(fd))
	m.mu.Unlock()
	if w.cmd != nil {
		w.cmd.Wait() // it has ended: does not block; its exit status says nothing of the container
	}
	m.send(ctx, Hint{Kind: Gone, ID: w.id})
}

// watch takes over pidfd.
func (m *Monitor) watch(pidfd int, w watch) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.watched[int32(pidfd)] = w
	m.byID[w.id] = int32(pidfd)
	err := unix.EpollCtl(m.epoll, unix.EPOLL_CTL_ADD, pidfd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(pidfd)})
	if err != nil {
		delete(m.watched, int32(pidfd))
		delete(m.byID, w.id)
		unix.Close(pidfd)
		return fmt.Errorf("watching the monitor of %s: %w", w.id, err)
	}
	return nil
}

// Adopt watches the conmon of a container that an earlier agent started, and
// sees to its cgroup. ErrGone says that it has ended.
func (m *Monitor) Adopt(id string, conmon Identity) error {
	fd, err := conmon.Open()
	if err != nil {
		return err
	}
	m.settle(id, conmon)
	return m.watch(fd, watch{id: id})
}

// Exit is what an exit file says.
type Exit struct {
	Code int32
	At   time.Time
}

// ReadExit returns what conmon has recorded of id's end; ok is false if nothing yet.
func (m *Monitor) ReadExit(id string) (exit Exit, ok bool, err error) {
	path := filepath.Join(m.cfg.ExitDir, id)
	b, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		return Exit{}, false, nil
	}
	if err != nil {
		return Exit{}, false, fmt.Errorf("reading the exit file of %s: %w", id, err)
	}
	code, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil {
		return Exit{}, false, fmt.Errorf("exit file of %s is unreadable: %.40q", id, b)
	}
	st, err := os.Stat(path)
	if err != nil {
		return Exit{}, false, fmt.Errorf("reading the exit file of %s: %w", id, err)
	}
	return Exit{Code: int32(code), At: st.ModTime()}, true, nil
}

// RemoveExit removes id's exit file; one that is not there is success.
func (m *Monitor) RemoveExit(id string) error {
	failpoint.Hit("cri/monitor/remove-exit")
	if err := os.Remove(filepath.Join(m.cfg.ExitDir, id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("removing the exit file of %s: %w", id, err)
	}
	return nil
}

// SweepExits removes what has been left in the directory of exit files by
// containers that are not known: conmon's temporary files among them, which it
// leaves if it is killed while it writes.
func (m *Monitor) SweepExits(known func(id string) bool) {
	entries, err := os.ReadDir(m.cfg.ExitDir)
	if err != nil {
		m.cfg.Log.Warn("stray exit files are not looked for", "err", err)
	}
	for _, e := range entries {
		id, _, _ := strings.Cut(e.Name(), ".")
		if known(id) {
			continue
		}
		failpoint.Hit("cri/monitor/sweep-exit")
		if err := os.Remove(filepath.Join(m.cfg.ExitDir, e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
			m.cfg.Log.Warn("stray exit file stays", "file", e.Name(), "err", err)
		}
	}
}

package mountns

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// starters is how many threads start programs in the oci namespace at once. A
// start takes about a millisecond, nearly all of it under the fork lock.
const starters = 2

// Namespaces are the pinned mount namespaces below one directory. All methods
// may be called at once.
type Namespaces struct {
	dir  string
	log  *slog.Logger
	pins *thread
	oci  []*thread    // nil where programs are started plainly
	free chan *thread // the idle ones of oci
	once sync.Once    // of Close
}

// Open enters the namespaces pinned under dir (STATE/ns), making what is
// missing. Idempotent: after a restart of the agent it finds what it left, after
// a reboot it begins anew. Needs root.
//
// A host whose / is private is made shared first, since neither direction of
// mount propagation works there; which mounts that touched is kept in
// dir/made-shared, and Purge undoes it.
func Open(dir string, log *slog.Logger) (*Namespaces, error) {
	if err := shareHost(dir, log); err != nil {
		return nil, err
	}
	if err := holdDir(dir); err != nil {
		return nil, err
	}
	n := &Namespaces{dir: dir, log: log}
	var err error
	if n.pins, err = n.enter("pins", buildPins); err != nil {
		return nil, err
	}
	if !Hybrid() {
		return n, nil
	}
	n.free = make(chan *thread, starters)
	for range starters {
		t, err := n.enter("oci", buildOCI)
		if err != nil {
			n.Close()
			return nil, err
		}
		n.oci = append(n.oci, t)
		n.free <- t
	}
	return n, nil
}

// Hybrid tells whether this host mounts cgroup2 at /sys/fs/cgroup/unified
// beside version 1 controllers.
func Hybrid() bool {
	var top, unified unix.Statfs_t
	return unix.Statfs("/sys/fs/cgroup", &top) == nil && top.Type != unix.CGROUP2_SUPER_MAGIC &&
		unix.Statfs("/sys/fs/cgroup/unified", &unified) == nil && unified.Type == unix.CGROUP2_SUPER_MAGIC
}

// Start is cmd.Start in the mount namespace for OCI runtimes and monitors: on a
// hybrid host the pinned one, elsewhere the agent's own. The caller waits for
// cmd as usual, on any goroutine.
func (n *Namespaces) Start(cmd *exec.Cmd) error {
	if n.oci == nil {
		failpoint.Hit("cri/mountns/start")
		return cmd.Start()
	}
	t := <-n.free
	defer func() { n.free <- t }()
	return t.do(cmd.Start)
}

// Close ends the threads; what is pinned stays. Calls after Close fail.
func (n *Namespaces) Close() {
	n.once.Do(func() {
		for _, t := range append([]*thread{n.pins}, n.oci...) {
			if t != nil {
				t.close()
			}
		}
	})
}

// enter returns a thread in the namespace pinned at dir/name. If there is none
// (never made, or of an earlier boot) build makes one, on that thread.
func (n *Namespaces) enter(name string, build func() error) (*thread, error) {
	path := filepath.Join(n.dir, name)
	f, err := openPinned(path)
	if err != nil {
		return nil, err
	}
	if f != nil {
		defer f.Close()
		t, err := newThread(func() error { return unix.Setns(int(f.Fd()), unix.CLONE_NEWNS) })
		if err != nil {
			return nil, fmt.Errorf("entering the mount namespace pinned at %s: %w", path, err)
		}
		return t, nil
	}
	return n.create(path, build)
}

// create makes and pins a namespace. A mount namespace can only be bound where
// the binding namespace has a lower ID, to keep cycles out, and since Linux 6.18
// IDs are dealt to CPUs in batches, so that a younger namespace can have the
// lower one if it was made on another CPU. Where the host's namespace is itself
// not the first of the machine, the CPU it was made on is therefore looked for.
func (n *Namespaces) create(path string, build func() error) (*thread, error) {
	var allowed unix.CPUSet
	if err := unix.SchedGetaffinity(0, &allowed); err != nil {
		return nil, fmt.Errorf("asking for the CPUs of this thread: %w", err)
	}
	t, err := createOn(path, build, nil)
	for cpu, left := 0, allowed.Count(); errors.Is(err, unix.EINVAL) && left > 0; cpu++ {
		if allowed.IsSet(cpu) {
			left--
			t, err = createOn(path, build, &cpu)
		}
	}
	if err != nil {
		return nil, err
	}
	n.log.Info("mount namespace pinned", "path", path)
	return t, nil
}

func createOn(path string, build func() error, cpu *int) (*thread, error) {
	var own string
	failpoint.Hit("cri/mountns/unshare")
	t, err := newThread(func() error {
		own = fmt.Sprintf("/proc/%d/task/%d/ns/mnt", unix.Getpid(), unix.Gettid())
		if err := unshareOn(cpu); err != nil {
			return err
		}
		return build()
	})
	if err != nil {
		return nil, fmt.Errorf("making the mount namespace for %s (needs CAP_SYS_ADMIN): %w", path, err)
	}
	if err := bindFile(own, path); err != nil {
		t.close()
		return nil, fmt.Errorf("pinning a mount namespace at %s: %w", path, err)
	}
	failpoint.Hit("cri/mountns/pin-namespace-done")
	return t, nil
}

// unshareOn gives this thread a mount namespace of its own, made on cpu if one
// is given. The thread may run anywhere afterwards: what it starts inherits that.
func unshareOn(cpu *int) error {
	if cpu == nil {
		return unix.Unshare(unix.CLONE_NEWNS)
	}
	var before, only unix.CPUSet
	if err := unix.SchedGetaffinity(0, &before); err != nil {
		return err
	}
	only.Set(*cpu)
	if err := unix.SchedSetaffinity(0, &only); err != nil {
		return err
	}
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err
	}
	return unix.SchedSetaffinity(0, &before)
}

// openPinned opens the namespace pinned at path; nil if there is none.
func openPinned(path string) (*os.File, error) {
	f, err := os.Open(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("opening a pinned mount namespace: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Fstatfs(int(f.Fd()), &st); err != nil || st.Type != unix.NSFS_MAGIC {
		f.Close() // the mount point of an earlier boot, or of a kill before the bind
		return nil, nil
	}
	return f, nil
}

// bindFile bind-mounts the file from on to, which is made if missing.
func bindFile(from, to string) error {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	f.Close()
	failpoint.Hit("cri/mountns/bind")
	return unix.Mount(from, to, "", unix.MS_BIND, "")
}

// buildOCI turns a fresh copy of the host's mounts into the oci namespace. The
// parent of "unified" becomes private first: an unmount propagates through the
// mount it happens under.
func buildOCI() error {
	failpoint.Hit("cri/mountns/build-oci")
	if err := unix.Mount("", "/sys/fs/cgroup", "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making /sys/fs/cgroup private: %w", err)
	}
	if err := unix.Unmount("/sys/fs/cgroup/unified", unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
		return fmt.Errorf("unmounting /sys/fs/cgroup/unified: %w", err)
	}
	return nil
}

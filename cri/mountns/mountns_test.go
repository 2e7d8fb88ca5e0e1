package mountns

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// TestMain runs the tests in a private copy of the machine's mounts: the tests
// take it for the host, and nothing they do to it can leak.
func TestMain(m *testing.M) {
	switch {
	case os.Getenv("MOUNTNS_TEST_ROLE") == "pinner":
		pinner()
	case os.Getuid() != 0 || os.Getenv("MOUNTNS_TEST_ROLE") == "host":
		if os.Getuid() == 0 {
			if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
				panic(err)
			}
		}
		os.Exit(m.Run())
	default:
		cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
		cmd.Env = append(os.Environ(), "MOUNTNS_TEST_ROLE=host")
		cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
		if err := cmd.Run(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
}

// pinner is an agent that pins and waits to be killed.
func pinner() {
	n, err := Open(os.Getenv("MOUNTNS_TEST_DIR"), slog.New(slog.DiscardHandler))
	if err == nil {
		err = n.Pin(os.Getpid(), []Kind{Net, IPC, UTS}, "box")
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("pinned")
	time.Sleep(time.Hour)
}

func needRoot(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mount namespaces need root")
	}
}

func open(t *testing.T, dir string) *Namespaces {
	t.Helper()
	n, err := Open(dir, slog.New(slog.NewTextHandler(t.Output(), nil)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		n.Close()
		if err := Purge(dir); err != nil {
			t.Error(err)
		}
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Errorf("%s is left: %v", dir, err)
		}
	})
	return n
}

// inode identifies the namespace that a file or path stands for.
func inode(t *testing.T, path string) uint64 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return st.Ino
}

func fdPath(f *os.File) string { return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), f.Fd()) }

// run runs a shell script in the runtime's mount namespace.
func run(t *testing.T, n *Namespaces, script string) string {
	t.Helper()
	cmd := exec.Command("sh", "-c", script)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := n.Start(cmd)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		t.Fatalf("%s: %v\n%s", script, err, &out)
	}
	return strings.TrimSpace(out.String())
}

func TestPins(t *testing.T) {
	needRoot(t)
	n := open(t, filepath.Join(t.TempDir(), "ns"))
	cmd := exec.Command("sleep", "60")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWUTS, Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ino := inode(t, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	for range 2 {
		if err := n.Pin(cmd.Process.Pid, []Kind{Net, UTS}, "box"); err != nil {
			t.Fatal(err)
		}
	}
	cmd.Process.Kill()
	cmd.Wait()
	f, err := n.Open("box", Net)
	if err != nil {
		t.Fatal(err)
	}
	if got := inode(t, fdPath(f)); got != ino {
		t.Errorf("pinned network namespace is %d, want %d", got, ino)
	}
	// Another program, in the runtime's mount namespace, can enter it by that path.
	if got := run(t, n, "nsenter --net="+fdPath(f)+" stat -Lc %i /proc/self/ns/net"); got != fmt.Sprint(ino) {
		t.Errorf("entered %s, want %d", got, ino)
	}
	f.Close()
	if _, err := n.Open("box", IPC); !errdefs.IsNotFound(err) {
		t.Errorf("opening what is not pinned: %v", err)
	}
	list, err := n.List()
	if want := map[string][]Kind{"box": {Net, UTS}}; err != nil || !reflect.DeepEqual(list, want) {
		t.Errorf("list %v, %v; want %v", list, err, want)
	}
	if b, _ := os.ReadFile("/proc/self/mountinfo"); bytes.Contains(b, fmt.Appendf(nil, "net:[%d]", ino)) {
		t.Error("the pin is seen among the host's mounts")
	}
	for range 2 {
		if err := n.Unpin("box"); err != nil {
			t.Fatal(err)
		}
	}
	if list, err := n.List(); err != nil || len(list) != 0 {
		t.Errorf("after unpin: %v, %v", list, err)
	}
	for _, name := range []string{"", ".", "..", "a/b", "/"} {
		if err := n.Pin(1, nil, name); !errdefs.IsInvalidArgument(err) {
			t.Errorf("pinning as %q: %v", name, err)
		}
	}
}

func TestPinsOutliveKill(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "MOUNTNS_TEST_ROLE=pinner", "MOUNTNS_TEST_DIR="+dir)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWNET | syscall.CLONE_NEWIPC | syscall.CLONE_NEWUTS}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, 200)
	c, _ := out.Read(b)
	ino := inode(t, fmt.Sprintf("/proc/%d/ns/net", cmd.Process.Pid))
	cmd.Process.Kill()
	cmd.Wait()
	if got := string(b[:c]); got != "pinned\n" {
		t.Fatalf("the first agent said %q", got)
	}
	n := open(t, dir)
	f, err := n.Open("box", Net)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if got := inode(t, fdPath(f)); got != ino {
		t.Errorf("after the kill the pin is %d, want %d", got, ino)
	}
}

// TestUnfinished opens over what a kill or a reboot may leave: mount points
// without mounts, and a directory bound on itself but not yet private.
func TestUnfinished(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "ns")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"pins", "oci"} {
		if err := os.WriteFile(filepath.Join(dir, name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
		t.Fatal(err)
	}
	n := open(t, dir)
	if list, err := n.List(); err != nil || len(list) != 0 {
		t.Fatalf("list %v, %v", list, err)
	}
	run(t, n, "true")
}

// TestPropagation proves that mounts travel both ways between the host and the
// runtime's namespace, before and after a restart of the agent.
func TestPropagation(t *testing.T) {
	needRoot(t)
	tmp := t.TempDir()
	dir := filepath.Join(tmp, "ns")
	n := open(t, dir)
	for i, n := range []*Namespaces{n, open(t, dir)} {
		host, inside := filepath.Join(tmp, fmt.Sprint("host", i)), filepath.Join(tmp, fmt.Sprint("inside", i))
		for _, d := range []string{host, inside} {
			if err := os.Mkdir(d, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mount("x", host, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(host, "seen"), nil, 0o600); err != nil {
			t.Fatal(err)
		}
		run(t, n, "test -e "+host+"/seen")
		run(t, n, "mount -n -t tmpfs x "+inside+" && : > "+inside+"/seen")
		if _, err := os.Stat(filepath.Join(inside, "seen")); err != nil {
			t.Errorf("a mount made inside is not seen on the host: %v", err)
		}
		for _, d := range []string{host, inside} {
			if err := unix.Unmount(d, 0); err != nil {
				t.Errorf("unmounting %s: %v", d, err)
			}
		}
		run(t, n, "! test -e "+host+"/seen && ! test -e "+inside+"/seen")
	}
}

func TestHybrid(t *testing.T) {
	needRoot(t)
	if !Hybrid() {
		t.Skip("this host does not mount cgroup2 at /sys/fs/cgroup/unified beside v1")
	}
	n := open(t, filepath.Join(t.TempDir(), "ns"))
	if got := run(t, n, "stat -fc %T /sys/fs/cgroup/unified"); got == "cgroup2fs" {
		t.Error("the unified hierarchy is still mounted inside")
	}
	if !Hybrid() {
		t.Error("the host has lost its unified hierarchy")
	}
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("crun is not installed")
	}
	bundle := t.TempDir()
	id := fmt.Sprintf("mountns-test-%d", os.Getpid())
	out := run(t, n, "cd "+bundle+" && mkdir rootfs rootfs/bin rootfs/proc rootfs/sys rootfs/dev && cp $(command -v busybox) rootfs/bin/ && crun spec && "+
		`sed -i 's/"sh"/"busybox","echo","alive"/; s/"terminal": true/"terminal": false/' config.json && crun run `+id)
	if out != "alive" {
		t.Errorf("crun said %q", out)
	}
}

func TestStartInParallel(t *testing.T) {
	needRoot(t)
	n := open(t, filepath.Join(t.TempDir(), "ns"))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if err := n.Start(exec.Command("/nonexistent")); err == nil {
				t.Error("a missing program started")
			}
			cmd := exec.Command("true")
			if err := n.Start(cmd); err != nil {
				t.Error(err)
			} else if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
}

// TestFirstThreadStays makes sure that what others see as the agent's own mount
// namespace is the host's.
func TestFirstThreadStays(t *testing.T) {
	needRoot(t)
	before := inode(t, "/proc/self/ns/mnt")
	for range 20 {
		open(t, filepath.Join(t.TempDir(), "ns"))
	}
	if after := inode(t, "/proc/self/ns/mnt"); after != before {
		t.Errorf("the first thread moved from %d to %d", before, after)
	}
}

func TestVolatile(t *testing.T) {
	needRoot(t)
	dir := filepath.Join(t.TempDir(), "state")
	log := slog.New(slog.DiscardHandler)
	for range 2 {
		if err := Volatile(dir, log); err != nil {
			t.Fatal(err)
		}
	}
	// Where the temporary directory is in memory already, there is nothing to do.
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("file system %x, %v", st.Type, err)
	}
	n := open(t, filepath.Join(dir, "ns")) // works on top of it
	run(t, n, "test -d "+dir+"/ns")
	n.Close()
	if err := Purge(filepath.Join(dir, "ns")); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := PurgeVolatile(dir); err != nil {
			t.Fatal(err)
		}
	}
}

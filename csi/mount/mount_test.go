package mount

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"pgregory.net/rapid"
)

// tree returns a directory that loses its mounts before it is removed.
func tree(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounting needs root")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unmountAll(t, dir) })
	return dir
}

type failer interface {
	Helper()
	Fatal(...any)
}

func unmountAll(t failer, dir string) {
	t.Helper()
	paths, err := Kernel{}.Below(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, p := range paths {
		if err := (Kernel{}).Unmount(p); err != nil {
			t.Fatal(err)
		}
	}
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func TestTmpfsIsIdempotentAndGrows(t *testing.T) {
	dir := filepath.Join(tree(t), "v")
	must(t, os.Mkdir(dir, 0o755))
	size := func() int64 {
		var st unix.Statfs_t
		must(t, unix.Statfs(dir, &st))
		if st.Type != unix.TMPFS_MAGIC {
			t.Fatalf("file system type %x", st.Type)
		}
		return int64(st.Blocks) * st.Bsize
	}
	for _, step := range []struct{ ask, want int64 }{{1 << 20, 1 << 20}, {1 << 20, 1 << 20}, {4096, 1 << 20}, {2 << 20, 2 << 20}} {
		must(t, Kernel{}.Tmpfs(dir, step.ask))
		if got := size(); got != step.want {
			t.Errorf("asked for %d: %d bytes, want %d", step.ask, got, step.want)
		}
	}
	if paths, err := (Kernel{}).Below(dir); err != nil || len(paths) != 1 {
		t.Errorf("mounts %q, %v; want one", paths, err)
	}
}

func TestUnmountOfWhatIsNotMounted(t *testing.T) {
	dir := tree(t)
	must(t, Kernel{}.Unmount(dir))
	must(t, Kernel{}.Unmount(filepath.Join(dir, "gone", "entirely")))
}

func TestUnmountFollowsNoLink(t *testing.T) {
	dir := tree(t)
	must(t, os.MkdirAll(filepath.Join(dir, "real", "m"), 0o755))
	must(t, Kernel{}.Tmpfs(filepath.Join(dir, "real", "m"), 4096))
	must(t, os.Symlink("real", filepath.Join(dir, "link")))
	if err := (Kernel{}).Unmount(filepath.Join(dir, "link", "m")); err == nil {
		t.Error("unmounted through a symbolic link")
	}
	if on, err := (Kernel{}).Mounted(filepath.Join(dir, "real", "m")); !on || err != nil {
		t.Errorf("the mount is gone (%v)", err)
	}
}

func TestUnmountOfABusyMount(t *testing.T) {
	dir := filepath.Join(tree(t), "v")
	must(t, os.Mkdir(dir, 0o755))
	must(t, Kernel{}.Tmpfs(dir, 4096))
	f, err := os.Open(dir)
	must(t, err)
	defer f.Close()
	must(t, Kernel{}.Unmount(dir))
	if on, _ := (Kernel{}).Mounted(dir); on {
		t.Error("still mounted")
	}
}

func TestShareIsIdempotent(t *testing.T) {
	private := filepath.Join(tree(t), "private") // whatever the host's root is
	must(t, os.Mkdir(private, 0o755))
	must(t, Kernel{}.Tmpfs(private, 1<<20))
	must(t, unix.Mount("", private, "", unix.MS_PRIVATE, ""))
	dir := filepath.Join(private, "root")
	must(t, os.Mkdir(dir, 0o755))
	for range 2 {
		must(t, Kernel{}.Share(dir))
	}
	m, err := holder(dir)
	must(t, err)
	if m.Mountpoint != dir || !strings.Contains(m.Optional, "shared:") {
		t.Errorf("held by %s (%s)", m.Mountpoint, m.Optional)
	}
	below := filepath.Join(dir, "pods")
	must(t, os.Mkdir(below, 0o755))
	must(t, Kernel{}.Share(below)) // held by a shared mount: nothing to do
	if paths, _ := (Kernel{}).Below(dir); len(paths) != 1 {
		t.Errorf("mounts %q, want one", paths)
	}
}

func TestRemoveTree(t *testing.T) {
	ctx := t.Context()
	t.Run("gone", func(t *testing.T) {
		must(t, RemoveTree(ctx, filepath.Join(t.TempDir(), "a", "b")))
	})
	t.Run("a file", func(t *testing.T) {
		f := filepath.Join(t.TempDir(), "f")
		must(t, os.WriteFile(f, nil, 0o400))
		must(t, RemoveTree(ctx, f))
		if _, err := os.Lstat(f); !os.IsNotExist(err) {
			t.Error("still there")
		}
	})
	t.Run("many", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "d")
		must(t, os.Mkdir(dir, 0o755))
		for i := range 3000 {
			must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
		}
		must(t, RemoveTree(ctx, dir))
		if _, err := os.Lstat(dir); !os.IsNotExist(err) {
			t.Error("still there")
		}
	})
	t.Run("canceled", func(t *testing.T) {
		dir := filepath.Join(t.TempDir(), "d")
		must(t, os.MkdirAll(filepath.Join(dir, "e"), 0o755))
		done, cancel := context.WithCancel(ctx)
		cancel()
		if err := RemoveTree(done, dir); !errors.Is(err, context.Canceled) {
			t.Errorf("error %v", err)
		}
	})
}

func TestRemoveTreeOfAnyDepth(t *testing.T) {
	const depth = 3000
	dir := filepath.Join(t.TempDir(), "d")
	must(t, os.Mkdir(dir, 0o755))
	fd, err := unix.Open(dir, unix.O_DIRECTORY|unix.O_RDONLY, 0)
	must(t, err)
	for range depth {
		must(t, unix.Mkdirat(fd, "x", 0o700))
		next, err := unix.Openat(fd, "x", unix.O_DIRECTORY|unix.O_RDONLY, 0)
		must(t, err)
		must(t, unix.Close(fd))
		fd = next
	}
	must(t, unix.Close(fd))
	must(t, RemoveTree(t.Context(), dir))
	if _, err := os.Lstat(dir); !os.IsNotExist(err) {
		t.Error("still there")
	}
}

// TestRemoveTreeNeverTouchesOthersData builds random trees into which live data
// is bound, linked and hard to tell apart, and removes them without unmounting
// first: the data stays, whatever else happens.
func TestRemoveTreeNeverTouchesOthersData(t *testing.T) {
	base := tree(t)
	live := filepath.Join(base, "live")
	must(t, os.MkdirAll(filepath.Join(live, "sub"), 0o755))
	for _, f := range []string{"one", "sub/two"} {
		must(t, os.WriteFile(filepath.Join(live, f), []byte(f), 0o644))
	}
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		top := filepath.Join(base, fmt.Sprintf("pod%d", n))
		must(t, os.Mkdir(top, 0o755))
		defer unmountAll(t, top)
		mounts := grow(t, top, live)
		err := RemoveTree(context.Background(), top) // rapid has no context
		for _, f := range []string{"one", "sub/two"} {
			if got, err := os.ReadFile(filepath.Join(live, f)); err != nil || string(got) != f {
				t.Fatalf("live data %s is damaged: %q, %v", f, got, err)
			}
		}
		if mounts == 0 && err != nil {
			t.Fatalf("without mounts: %v", err)
		}
		if mounts > 0 && !strings.Contains(fmt.Sprint(err), "is a mount point") {
			t.Fatalf("with %d mounts: %v", mounts, err)
		}
		unmountAll(t, top)
		must(t, RemoveTree(context.Background(), top))
		if _, err := os.Lstat(top); !os.IsNotExist(err) {
			t.Fatal("still there after the mounts were gone")
		}
	})
}

// grow fills dir at random and returns how many mounts it made.
func grow(t *rapid.T, top, live string) (mounts int) {
	dirs := []string{top}
	for i := range rapid.IntRange(0, 12).Draw(t, "entries") {
		at := filepath.Join(rapid.SampledFrom(dirs).Draw(t, "in"), fmt.Sprint(i))
		switch rapid.SampledFrom([]string{"dir", "file", "link", "linkfile", "bind", "bindfile", "tmpfs"}).Draw(t, "what") {
		case "dir":
			must(t, os.Mkdir(at, 0o755))
			dirs = append(dirs, at)
		case "file":
			must(t, os.WriteFile(at, []byte("x"), 0o600))
		case "link":
			must(t, os.Symlink(live, at))
		case "linkfile":
			must(t, os.Symlink(filepath.Join(live, "one"), at))
		case "bind":
			must(t, os.Mkdir(at, 0o755))
			must(t, unix.Mount(live, at, "", unix.MS_BIND, ""))
			mounts++
		case "bindfile":
			must(t, os.WriteFile(at, nil, 0o600))
			must(t, unix.Mount(filepath.Join(live, "one"), at, "", unix.MS_BIND, ""))
			mounts++
		case "tmpfs":
			must(t, os.Mkdir(at, 0o755))
			must(t, unix.Mount("tmpfs", at, "tmpfs", 0, "size=64k"))
			mounts++
			dirs = append(dirs, at)
		}
	}
	return mounts
}

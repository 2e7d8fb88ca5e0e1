package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/moby/sys/mountinfo"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func small(t testing.TB) *built {
	return build(t, ocispec.ImageConfig{},
		layerTar(t, file{name: "dir/", kind: tar.TypeDir}, file{name: "dir/a", body: strings.Repeat("a", 9000)}),
		layerTar(t, file{name: "dir/b", body: strings.Repeat("b", 9000)}))
}

func importOne(t testing.TB, s *Store, b *built, names ...string) Image {
	t.Helper()
	list, err := s.Import(t.Context(), bytes.NewReader(b.layout(names...)), nil)
	if err != nil || len(list) != 1 {
		t.Fatalf("import: %v, %v", list, err)
	}
	return list[0]
}

func mountOne(t testing.TB, s *Store, container string, img Image) string {
	t.Helper()
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := s.MountRootfs(t.Context(), container, string(img.ID), target, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.UnmountRootfs(t.Context(), container, target); err != nil {
			t.Error(err)
		}
	})
	return target
}

func assertFile(t testing.TB, path, want string) {
	t.Helper()
	got, err := os.ReadFile(path)
	if err != nil || string(got) != want {
		t.Errorf("%s: %d bytes, %v", path, len(got), err)
	}
}

func TestRootLock(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	_, err := Open(t.Context(), Config{Root: s.cfg.Root})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprint("process ", os.Getpid())) {
		t.Errorf("second store: %v", err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	openStore(t, s.cfg.Root)
}

// TestRootLockHeldByChild has a program hold what its parent had open, as one
// between fork and exec does.
func TestRootLockHeldByChild(t *testing.T) {
	t.Parallel()
	inherit := func(lock *os.File, seconds string) *exec.Cmd {
		cmd := exec.CommandContext(t.Context(), "sleep", seconds)
		cmd.ExtraFiles = []*os.File{lock}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		return cmd
	}
	root := t.TempDir()
	lock, err := lockRoot(root)
	if err != nil {
		t.Fatal(err)
	}
	for _, holder := range []int{os.Getpid(), math.MaxInt32} { // one that lives, one that does not
		if _, err := lock.WriteAt(fmt.Appendf(nil, "%d\n", holder), 0); err != nil {
			t.Fatal(err)
		}
		child := inherit(lock, "0.3")
		if err := lock.Close(); err != nil { // as a kill does
			t.Fatal(err)
		}
		if lock, err = lockRoot(root); err != nil {
			t.Fatalf("the child of process %d goes away: %v", holder, err)
		}
		if err := child.Wait(); err != nil {
			t.Error(err)
		}
	}
	child := inherit(lock, "60")
	if err := unlockRoot(lock); err != nil {
		t.Fatal(err)
	}
	if lock, err = lockRoot(root); err != nil {
		t.Fatalf("given up, though a child has it open: %v", err)
	}
	if err := errors.Join(unlockRoot(lock), child.Process.Kill()); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // killed
}

func TestRootfsLife(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := importOne(t, s, small(t), "app:1")
	target := mountOne(t, s, "c1", img)
	other := mountOne(t, s, "c2", img)
	if err := s.MountRootfs(t.Context(), "c1", string(img.ID), target, RootfsOptions{}); err != nil {
		t.Errorf("again: %v", err)
	}
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(target))
	if err != nil || len(mounts) != 1 {
		t.Errorf("%d mounts, %v", len(mounts), err)
	}
	if err := os.WriteFile(filepath.Join(target, "dir/a"), []byte("mine"), 0o644); err != nil {
		t.Fatal(err)
	}
	assertFile(t, filepath.Join(target, "dir/a"), "mine")
	assertFile(t, filepath.Join(other, "dir/a"), strings.Repeat("a", 9000))
	assertFile(t, filepath.Join(s.RootfsUpper("c1"), "dir/a"), "mine")
	if st, err := os.Stat(target); err != nil || st.Mode().Perm() != 0o755 {
		t.Errorf("mode of the root: %v, %v", st.Mode(), err)
	}
	if refs := s.Rootfs(); len(refs) != 2 || refs[0].Container != "c1" || refs[0].Target != target {
		t.Errorf("refs %+v", refs)
	}
	if err := s.MountRootfs(t.Context(), "c1", string(img.ID), target+"2", RootfsOptions{}); err == nil {
		t.Error("a second target was accepted")
	}
	if err := s.MountRootfs(t.Context(), "../c3", string(img.ID), target+"3", RootfsOptions{}); err == nil {
		t.Error("a container ID with a path was accepted")
	}
	for range 2 {
		if err := s.UnmountRootfs(t.Context(), "c1", target); err != nil {
			t.Fatal(err)
		}
	}
	if mounted, err := mountinfo.Mounted(target); err != nil || mounted {
		t.Errorf("still mounted: %v, %v", mounted, err)
	}
	if refs := s.Rootfs(); len(refs) != 1 {
		t.Errorf("refs %+v", refs)
	}
	ro := filepath.Join(t.TempDir(), "ro")
	if err := s.MountRootfs(t.Context(), "c4", string(img.ID), ro, RootfsOptions{ReadOnly: true}); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(ro, "x"), nil, 0o600); err == nil {
		t.Error("a read-only root was written to")
	}
	if err := s.UnmountRootfs(t.Context(), "c4", ro); err != nil {
		t.Error(err)
	}
}

func TestRootfsOfManyLayers(t *testing.T) {
	t.Parallel()
	var layers [][]byte
	for i := range 60 {
		layers = append(layers, layerTar(t, file{name: fmt.Sprint("f", i), body: fmt.Sprint(i)}))
	}
	s := newStore(t)
	img := importOne(t, s, build(t, ocispec.ImageConfig{}, layers...), "many:1")
	target := mountOne(t, s, "c", img)
	for _, i := range []int{0, 30, 59} {
		assertFile(t, filepath.Join(target, fmt.Sprint("f", i)), fmt.Sprint(i))
	}
	scratch := importOne(t, s, build(t, ocispec.ImageConfig{}), "scratch:1")
	if err := os.WriteFile(filepath.Join(mountOne(t, s, "d", scratch), "x"), nil, 0o600); err != nil {
		t.Error(err)
	}
}

func TestRootfsIsAdoptedAndVoidAfterBoot(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	img := importOne(t, s, small(t), "app:1")
	target := mountOne(t, s, "running", img)
	targets := map[string]string{"running": target, "torn": mountOne(t, s, "torn", img)}
	rw := s.RootfsDir()
	// A killed Mount, and two of before the last boot, one with a reference torn by a power cut.
	for _, id := range []string{"half", "old", "cut"} {
		if err := os.MkdirAll(filepath.Join(rw, id, "upper"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for id, text := range map[string]string{"old": `{"boot":"x","container":"old"}`, "torn": `{"boo`, "cut": `{"boo`} {
		if err := os.WriteFile(filepath.Join(rw, id, "ref"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s2 := openStore(t, s.cfg.Root)
	assertFile(t, filepath.Join(target, "dir/b"), strings.Repeat("b", 9000))
	var ids []string
	for _, r := range s2.Rootfs() {
		ids = append(ids, r.Container)
	}
	if fmt.Sprint(ids) != "[running torn]" {
		t.Errorf("root filesystems %v", ids)
	}
	// While a reference is unreadable nothing is freed; then it is.
	if err := s2.Remove(t.Context(), "app:1"); err != nil {
		t.Fatal(err)
	}
	assertFile(t, filepath.Join(target, "dir/b"), strings.Repeat("b", 9000))
	for _, id := range []string{"torn", "running"} {
		if n := layerCount(t, s2); n != 2 {
			t.Errorf("before %s went: %d layers", id, n)
		}
		if err := s2.UnmountRootfs(t.Context(), id, targets[id]); err != nil {
			t.Fatal(err)
		}
		if err := s2.collect(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	assertEmpty(t, s2)
}

func TestRemove(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	b := small(t)
	img := importOne(t, s, b, "app:1", "app:2", "other:1")
	shares := importOne(t, s, build(t, ocispec.ImageConfig{Cmd: []string{"x"}}, b.diffs[0]), "shares:1")
	target := mountOne(t, s, "c", img)
	if err := s.Remove(t.Context(), "app:1"); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get("app:2"); err != nil || len(got.RepoTags) != 2 {
		t.Errorf("%+v, %v", got, err)
	}
	if err := s.Pin(t.Context(), "app:2", true); err != nil {
		t.Fatal(err)
	}
	if got, err := s.Get("other:1"); err != nil || !got.Pinned {
		t.Errorf("not pinned: %+v, %v", got, err)
	}
	for range 2 {
		if err := s.Remove(t.Context(), string(img.ID)); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.Get("other:1"); CodeOf(err) != CodeNotFound {
		t.Errorf("removed by ID, but: %v", err)
	}
	assertFile(t, filepath.Join(target, "dir/b"), strings.Repeat("b", 9000))
	if n := layerCount(t, s); n != 2 {
		t.Errorf("%d layers while a container stands on them", n)
	}
	if err := s.UnmountRootfs(t.Context(), "c", target); err != nil {
		t.Fatal(err)
	}
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	if n := layerCount(t, s); n != 1 {
		t.Errorf("%d layers, one image of one layer is left", n)
	}
	u, err := s.Usage(t.Context())
	if err != nil || u.Bytes < uint64(shares.Size) || u.Inodes < 4 || u.Mountpoint != s.cfg.Root {
		t.Errorf("usage %+v, %v", u, err)
	}
}

// BenchmarkMountRootfs mounts root filesystems that stay, then unmounts them:
// removal in the background must not hide in, or slow, the creation.
func BenchmarkMountRootfs(b *testing.B) {
	s := newStore(b)
	img := importOne(b, s, small(b), "app:1")
	dir := b.TempDir()
	var mount, unmount []time.Duration
	n := 0
	for ; b.Loop(); n++ {
		id := fmt.Sprint("c", n)
		t0 := time.Now()
		if err := s.MountRootfs(b.Context(), id, string(img.ID), filepath.Join(dir, id), RootfsOptions{}); err != nil {
			b.Fatal(err)
		}
		mount = append(mount, time.Since(t0))
	}
	for i := range n {
		id := fmt.Sprint("c", i)
		t0 := time.Now()
		if err := s.UnmountRootfs(b.Context(), id, filepath.Join(dir, id)); err != nil {
			b.Fatal(err)
		}
		unmount = append(unmount, time.Since(t0))
	}
	b.ReportMetric(median(mount), "mount-p50-us")
	b.ReportMetric(median(unmount), "unmount-p50-us")
}

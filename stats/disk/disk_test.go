package disk

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func write(t testing.TB, path string, size int) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, make([]byte, size), 0o644); err != nil {
		t.Fatal(err)
	}
}

// du is what the program of that name says, in bytes.
func du(t testing.TB, path string) int64 {
	t.Helper()
	out, err := exec.Command("du", "-s", "-x", "-B", "1", path).Output()
	if err != nil {
		t.Fatalf("du: %v", err)
	}
	n, err := strconv.ParseInt(strings.Fields(string(out))[0], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func measure(t testing.TB, path string) Usage {
	t.Helper()
	var s Scanner
	u, err := s.Usage(t.Context(), path)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

func TestUsageIsWhatDuSays(t *testing.T) {
	dir := t.TempDir()
	inodes := int64(1)
	for i := range 200 {
		path := dir
		for range rand.IntN(5) {
			path = filepath.Join(path, fmt.Sprint(rand.IntN(3)))
		}
		write(t, filepath.Join(path, fmt.Sprintf("f%d", i)), rand.IntN(20000))
	}
	outside := filepath.Join(t.TempDir(), "large")
	write(t, outside, 1<<20)
	if err := os.Link(filepath.Join(dir, firstFile(t, dir)), filepath.Join(dir, "again")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "out")); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o600); err != nil {
		t.Fatal(err)
	}
	sparse, err := os.Create(filepath.Join(dir, "sparse"))
	if err != nil {
		t.Fatal(err)
	}
	defer sparse.Close()
	if err := sparse.Truncate(1 << 30); err != nil {
		t.Fatal(err)
	}
	if err := filepath.WalkDir(dir, func(path string, _ os.DirEntry, err error) error {
		inodes++
		return err
	}); err != nil {
		t.Fatal(err)
	}
	inodes -= 2 // the root was counted twice, the linked file has two names
	unix.Sync() // blocks are allocated late
	if u := measure(t, dir); u.Bytes != du(t, dir) || u.Inodes != inodes || u.Partial {
		t.Errorf("got %+v; du says %d bytes, there are %d inodes", u, du(t, dir), inodes)
	}
}

func firstFile(t *testing.T, dir string) string {
	t.Helper()
	var found string
	err := filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() && found == "" {
			found, err = filepath.Rel(dir, path)
		}
		return err
	})
	if err != nil || found == "" {
		t.Fatalf("no file below %s: %v", dir, err)
	}
	return found
}

func TestNothingThere(t *testing.T) {
	if u := measure(t, filepath.Join(t.TempDir(), "none")); u != (Usage{}) {
		t.Errorf("got %+v", u)
	}
	file := filepath.Join(t.TempDir(), "f")
	write(t, file, 1)
	var s Scanner
	if _, err := s.Usage(t.Context(), file); !errors.Is(err, unix.ENOTDIR) || !strings.Contains(err.Error(), file) {
		t.Errorf("a file: %v", err)
	}
}

func TestDeepTree(t *testing.T) {
	dir := t.TempDir()
	at, err := unix.Open(dir, unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	const depth = 3000 // its path is longer than any path may be
	for range depth {
		if err := unix.Mkdirat(at, "dd", 0o755); err != nil {
			t.Fatal(err)
		}
		next, err := unix.Openat(at, "dd", unix.O_RDONLY|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		unix.Close(at)
		if err != nil {
			t.Fatal(err)
		}
		at = next
	}
	defer unix.Close(at)
	if u := measure(t, dir); u.Inodes != depth+1 || u.Partial {
		t.Errorf("got %+v, want %d inodes", u, depth+1)
	}
}

func mount(t *testing.T, source, target, kind string, flags uintptr, options string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it mounts")
	}
	if err := unix.Mount(source, target, kind, flags, options); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(target, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
}

func TestMountsAreNotCrossed(t *testing.T) {
	dir, other := t.TempDir(), t.TempDir()
	write(t, filepath.Join(other, "large"), 1<<20)
	write(t, filepath.Join(dir, "own"), 4096)
	write(t, filepath.Join(dir, "file"), 0)
	if err := os.Mkdir(filepath.Join(dir, "bound"), 0o755); err != nil {
		t.Fatal(err)
	}
	before := measure(t, dir)
	mount(t, other, filepath.Join(dir, "bound"), "", unix.MS_BIND, "") // the same file system: only the mount tells
	mount(t, filepath.Join(other, "large"), filepath.Join(dir, "file"), "", unix.MS_BIND, "")
	if u := measure(t, dir); u.Bytes > before.Bytes || u.Inodes > before.Inodes {
		t.Errorf("with mounts %+v, without %+v", u, before)
	}
}

func TestMemoryIsAsked(t *testing.T) {
	dir := t.TempDir()
	mount(t, "none", dir, "tmpfs", 0, "size=4m")
	write(t, filepath.Join(dir, "a"), 1<<20)
	if u := measure(t, dir); u.Bytes != 1<<20 {
		t.Errorf("got %+v", u)
	}
	if err := os.Mkdir(filepath.Join(dir, "sub"), 0o755); err != nil {
		t.Fatal(err)
	}
	if u := measure(t, filepath.Join(dir, "sub")); u.Bytes != 0 { // a part of a tmpfs is walked
		t.Errorf("a directory of it: %+v", u)
	}
}

func TestRateAndBounds(t *testing.T) {
	dir := t.TempDir()
	for i := range 1000 {
		write(t, filepath.Join(dir, fmt.Sprint(i)), 0)
	}
	begun := time.Now()
	s := Scanner{Rate: 2000}
	for range 2 {
		if _, err := s.Usage(t.Context(), dir); err != nil {
			t.Fatal(err)
		}
	}
	if took := time.Since(begun); took < 500*time.Millisecond {
		t.Errorf("2000 files at 2000 a second took %v", took)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	slow := Scanner{Rate: 10}
	if _, err := slow.Usage(ctx, dir); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a walk that is ended: %v", err)
	}
	wide := t.TempDir()
	for i := range 20 {
		if err := os.Mkdir(filepath.Join(wide, fmt.Sprint(i)), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	few := Scanner{remember: 5}
	if u, err := few.Usage(t.Context(), wide); err != nil || !u.Partial || u.Inodes != 21 {
		t.Errorf("more directories than are remembered: %+v, %v", u, err)
	}
}

func TestTreeThatChanges(t *testing.T) {
	dir := t.TempDir()
	for i := range 50 {
		write(t, filepath.Join(dir, fmt.Sprint(i%5), fmt.Sprint(i), "f"), 10)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ctx.Err() == nil; i++ {
			a, b := filepath.Join(dir, fmt.Sprint(i%5)), filepath.Join(dir, "moved", fmt.Sprint(i%5))
			_ = os.MkdirAll(filepath.Dir(b), 0o755) // whatever fails, fails: it is the disturbance that counts
			_ = os.Rename(a, b)
			_ = os.Rename(b, a)
		}
	}()
	var s Scanner
	for range 200 {
		if _, err := s.Usage(ctx, dir); err != nil {
			t.Fatal(err)
		}
	}
	cancel()
	<-done
}

func BenchmarkUsage(b *testing.B) {
	dir := b.TempDir()
	for i := range 10000 {
		write(b, filepath.Join(dir, fmt.Sprint(i%100), fmt.Sprint(i)), 0)
	}
	s := Scanner{Rate: 1 << 40}
	for b.Loop() {
		if _, err := s.Usage(b.Context(), dir); err != nil {
			b.Fatal(err)
		}
	}
}

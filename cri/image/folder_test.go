package image

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/test/patience"
	"github.com/fsnotify/fsnotify"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// startFolder runs the import folder of s until the returned function is called.
func startFolder(t *testing.T, s *Store, dir string, watched bool) (*Folder, func()) {
	t.Helper()
	f, err := s.OpenFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	if !watched { // as where others have used up fs.inotify.max_user_instances
		f.open = func() (*fsnotify.Watcher, error) { return nil, syscall.EMFILE }
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- f.Run(ctx) }()
	stop := sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(stop)
	return f, stop
}

// within waits until ok. Two seconds is the promise, on a machine with nothing
// else to do, and is logged; the limit is for a starved one, and is far below
// folderRest, after which what a lost notification was about would be found too.
func within(t *testing.T, what string, ok func() bool) {
	t.Helper()
	begin := time.Now()
	for end := begin.Add(patience.For(10 * time.Second)); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not after %v", what, time.Since(begin))
		}
	}
	took := time.Since(begin)
	if took > 2*time.Second {
		t.Logf("%s: after %v, more than the two seconds that are promised where nothing else runs", what, took)
		return
	}
	t.Logf("%s: after %v", what, took)
}

func has(s *Store, ref string) func() bool {
	return func() bool {
		i, err := s.Get(ref)
		return err == nil && i.Pinned
	}
}

func put(t *testing.T, path string, body []byte) {
	t.Helper()
	if err := os.WriteFile(path, body, 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestFolder(t *testing.T) {
	t.Parallel()
	for _, watched := range []bool{true, false} {
		t.Run(map[bool]string{true: "watched", false: "polled"}[watched], func(t *testing.T) {
			t.Parallel()
			testFolder(t, watched)
		})
	}
}

func testFolder(t *testing.T, watched bool) {
	b := small(t)
	root, dir := t.TempDir(), filepath.Join(t.TempDir(), "import")
	var log lockedBuffer
	change := func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) }
	s := openStore(t, root, change)
	f, stop := startFolder(t, s, dir, watched)

	put(t, filepath.Join(dir, "one.tar"), b.layout("one:1"))
	within(t, "OCI archive", has(s, "one:1"))
	put(t, filepath.Join(dir, "two.tar.gz"), gz(t, b.dockerArchive("two:1")))
	within(t, "docker archive, gzip", has(s, "two:1"))
	put(t, filepath.Join(dir, "three.tar.zst"), zst(t, b.layout("three:1")))
	within(t, "OCI archive, zstd", has(s, "three:1"))
	layout := filepath.Join(t.TempDir(), "layout")
	unpackTar(t, layout, b.layout("four:1"))
	if err := os.CopyFS(filepath.Join(dir, "layout"), os.DirFS(layout)); err != nil {
		t.Fatal(err)
	}
	within(t, "OCI layout", has(s, "four:1"))

	whole := b.layout("five:1")
	w, err := os.Create(filepath.Join(dir, "five.tar"))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(whole[:len(whole)/2]); err != nil {
		t.Fatal(err)
	}
	time.Sleep(1500 * time.Millisecond)
	if slices.ContainsFunc(f.Files(), func(f FolderFile) bool { return f.Name == "five.tar" }) {
		t.Error("a file that is open for writing was dealt with")
	}
	if _, err := w.Write(whole[len(whole)/2:]); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	within(t, "half-written archive", has(s, "five:1"))

	cut := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "n", body: noise(100_000)})).layout("cut:1")
	put(t, filepath.Join(dir, "bad.tar"), cut[:len(cut)-50_000])
	bad := func() FolderFile {
		for _, r := range f.Files() {
			if r.Name == "bad.tar" {
				return r
			}
		}
		return FolderFile{}
	}
	within(t, "bad archive", func() bool { return bad().Err != "" })
	time.Sleep(2500 * time.Millisecond)
	if n := strings.Count(log.String(), "bad.tar"); n != 1 || !strings.Contains(bad().Err, "damaged or cut off") {
		t.Errorf("reported %d times: %q", n, bad().Err)
	}
	put(t, filepath.Join(dir, ".hidden.tar"), b.layout("six:1"))
	if err := os.Rename(filepath.Join(dir, ".hidden.tar"), filepath.Join(dir, "bad.tar")); err != nil {
		t.Fatal(err)
	}
	within(t, "bad archive replaced", has(s, "six:1"))

	if err := s.Remove(t.Context(), "one:1"); err != nil {
		t.Fatal(err)
	}
	stop()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	log.Reset()
	s = openStore(t, root, change)
	startFolder(t, s, dir, watched)
	put(t, filepath.Join(dir, "seven.tar"), b.layout("seven:1"))
	within(t, "after a restart", has(s, "seven:1"))
	count := func() int { return strings.Count(log.String(), "imported from") }
	within(t, "record of it", func() bool { return count() > 0 })
	if n := count(); n != 1 {
		t.Errorf("%d files were imported after the restart, want the new one", n)
	}
	other := build(t, ocispec.ImageConfig{Cmd: []string{"other"}}, layerTar(t, file{name: "o", body: "o"}))
	put(t, filepath.Join(dir, "other.tar"), other.layout("other:1"))
	within(t, "another image", has(s, "other:1"))
	if err := os.Remove(filepath.Join(dir, "other.tar")); err != nil {
		t.Fatal(err)
	}
	within(t, "pin given up", func() bool {
		i, err := s.Get("other:1")
		return err == nil && !i.Pinned
	})
}

// lockedBuffer is a log that several goroutines write to.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

func (l *lockedBuffer) Reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.b.Reset()
}

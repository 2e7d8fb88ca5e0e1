package image

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/snapshot"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// importEnv names root and archive (or pull=REF), by which this test binary becomes a
// process that imports and is killed for it.
const importEnv = "BERTH_TEST_IMPORT"

// importToBeKilled is the main function of that process.
func importToBeKilled(root, archive string) int {
	s, err := Open(context.Background(), Config{Root: root})
	if err != nil {
		return 2
	}
	if ref, ok := strings.CutPrefix(archive, "pull="); ok {
		if _, err := s.Pull(context.Background(), ref, Auth{}, nil); err != nil {
			return 1
		}
		return 0
	}
	f, err := os.Open(archive)
	if err != nil {
		return 2
	}
	if _, err := s.Import(context.Background(), f, nil); err != nil {
		return 1
	}
	return 0
}

// killStep is the time between two moments of TestKilledImport, unless
// $BERTH_KILL_STEP says another.
const killStep = 50 * time.Millisecond

// TestKilledImport kills an importing process at many moments. After each, the
// store opens, holds nothing or the whole image, and takes it again.
func TestKilledImport(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{},
		layerTar(t, append(manyFiles(300), file{name: "big", body: noise(1 << 20)})...),
		layerTar(t, append(manyFiles(400), file{name: "big2", body: noise(1 << 20)})...))
	root := t.TempDir()
	archive := filepath.Join(t.TempDir(), "archive.tar")
	if err := os.WriteFile(archive, b.layout("app:1"), 0o600); err != nil {
		t.Fatal(err)
	}
	half, step := 0, killStep
	if v := os.Getenv("BERTH_KILL_STEP"); v != "" {
		var err error
		if step, err = time.ParseDuration(v); err != nil || step <= 0 {
			t.Fatalf("BERTH_KILL_STEP is to be a time: %q, %v", v, err)
		}
	}
	for delay := 15 * time.Millisecond; delay < 350*time.Millisecond; delay += step {
		ctx, cancel := context.WithCancel(t.Context())
		cmd := exec.CommandContext(ctx, os.Args[0])
		cmd.Env = append(os.Environ(), importEnv+"="+root+":"+archive)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.Sleep(delay)
		cancel()
		err := cmd.Wait()
		s := openAfterKill(t, root)
		switch n := len(s.List()); {
		case n == 0:
			half++
			if err == nil {
				t.Errorf("after %v: imported, but gone", delay)
			}
			if err := s.collect(t.Context()); err != nil {
				t.Fatal(err)
			}
			assertEmpty(t, s)
		case n == 1:
			mountOne(t, s, "c"+strconv.Itoa(int(delay)), s.List()[0])
		}
		importOne(t, s, b, "app:1")
		if d, err := s.Verify(t.Context(), false, nil); err != nil || len(d) > 0 {
			t.Errorf("after %v: %v, %v", delay, d, err)
		}
		for _, r := range s.Rootfs() {
			if err := s.UnmountRootfs(t.Context(), r.Container, r.Target); err != nil {
				t.Fatal(err)
			}
		}
		if err := s.Remove(t.Context(), "app:1"); err != nil {
			t.Fatal(err)
		}
		assertEmpty(t, s)
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if half == 0 {
		t.Error("no kill came before the image was complete: the test shows nothing")
	}
}

// openAfterKill opens as openStore does, but leaves closing to the caller.
func openAfterKill(t *testing.T, root string) *Store {
	t.Helper()
	s, err := Open(t.Context(), Config{Root: root, CertsDir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	<-s.swept
	return s
}

// TestKilledUnpack kills only the unpacking child: the import fails, the store stays sound.
func TestKilledUnpack(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{}, layerTar(t, manyFiles(3000)...))
	s := newStore(t)
	stop := make(chan struct{})
	done := make(chan int)
	go func() {
		killed := 0
		for {
			select {
			case <-stop:
				done <- killed
				return
			case <-time.After(2 * time.Millisecond):
			}
			killed += killChildrenUnpackingIn(s.cfg.Root)
		}
	}()
	_, err := s.Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil)
	close(stop)
	if n := <-done; n == 0 || CodeOf(err) != CodeHost {
		t.Errorf("%d children killed, import: %v", n, err)
	}
	if _, err := s.Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil); err != nil {
		t.Error(err)
	}
}

// killChildrenUnpackingIn kills this process's unpacking children that work
// below root, told by their working layer's directory.
func killChildrenUnpackingIn(root string) int {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0
	}
	n := 0
	for _, d := range dirs {
		args, _ := os.ReadFile(filepath.Join(d, "cmdline"))
		link, _ := os.Readlink(filepath.Join(d, "root"))
		if !bytes.HasSuffix(args, []byte("\x00"+snapshot.UnpackArg+"\x00")) || !strings.HasPrefix(link, root+"/") {
			continue
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			continue
		}
		if p, err := os.FindProcess(pid); err == nil && p.Kill() == nil {
			n++
		}
	}
	return n
}

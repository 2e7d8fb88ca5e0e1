package image

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

// TestPowerCut copies the device below a store right after an import returned and
// mounts the copy: what the file system had not written by then is lost, as after
// a power cut. The image has to be whole.
func TestPowerCut(t *testing.T) {
	t.Parallel()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for mounts")
	}
	mkfs, err := exec.LookPath("mkfs.ext4")
	if err != nil {
		t.Skip("needs mkfs.ext4: ", err)
	}
	dir := t.TempDir()
	device := filepath.Join(dir, "device")
	if err := os.WriteFile(device, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(device, 256<<20); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), mkfs, "-q", "-F", device).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	first := loopMount(t, device, filepath.Join(dir, "first"))
	s := openStore(t, filepath.Join(first, "images"))
	b := build(t, ocispec.ImageConfig{}, layerTar(t, append(manyFiles(200), file{name: "big", body: noise(3 << 20)})...),
		layerTar(t, file{name: "d/e/f", body: noise(10_000)}, file{name: ".wh.f1"}, file{name: "hard", kind: '1', link: "f2"}))
	importOne(t, s, b, "app:1")
	cut := filepath.Join(dir, "cut")
	if err := copyFile(device, cut); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	after := openStore(t, filepath.Join(loopMount(t, cut, filepath.Join(dir, "second")), "images"))
	img, err := after.Get("app:1")
	if err != nil {
		t.Fatal(err)
	}
	if d, err := after.Verify(t.Context(), false, nil); err != nil || len(d) != 0 {
		t.Errorf("after a power cut: %+v, %v", d, err)
	}
	target := mountOne(t, after, "c", img)
	if st, err := os.Stat(filepath.Join(target, "big")); err != nil || st.Size() != 3<<20 {
		t.Errorf("%v, %v", st, err)
	}
	if err := after.UnmountRootfs(t.Context(), "c", target); err != nil {
		t.Fatal(err)
	}
}

func loopMount(t *testing.T, device, at string) string {
	t.Helper()
	if err := os.Mkdir(at, 0o755); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mount", "-o", "loop", device, at).CombinedOutput(); err != nil {
		t.Skipf("needs loop devices: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(at, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	})
	return at
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	if _, err := io.Copy(out, in); err != nil {
		return err
	}
	return out.Close()
}

// TestKilledPull kills a process in the middle of a download. The next one begins
// cleanly, and has the image.
func TestKilledPull(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(1 << 20)}))
	b.push(host, "app", "1")
	half := make(chan struct{}, 8)
	front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if len(half) > 0 || !strings.HasSuffix(r.URL.Path, b.layers[0].Digest.String()) {
			return false
		}
		w.Header().Set("Content-Length", "1000000")
		_, _ = w.Write(bytes.Clone(b.blobs[b.layers[0].Digest][:400_000]))
		w.(http.Flusher).Flush()
		half <- struct{}{}
		<-r.Context().Done()
		return true
	})
	root := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	cmd := exec.CommandContext(ctx, os.Args[0])
	cmd.Env = append(os.Environ(), importEnv+"="+root+":pull="+front.host+"/app:1")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	half <- <-half
	within(t, "half of the layer stored", func() bool {
		files, err := filepath.Glob(filepath.Join(root, "content/ingest/*/data"))
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range files {
			if st, err := os.Stat(f); err == nil && st.Size() >= 300_000 {
				return true
			}
		}
		return false
	})
	cancel()
	_ = cmd.Wait() // killed
	s := openStore(t, root)
	if _, err := s.Get(front.host + "/app:1"); CodeOf(err) != CodeNotFound {
		t.Errorf("half an image: %v", err)
	}
	if _, err := s.Pull(t.Context(), front.host+"/app:1", Auth{}, nil); err != nil {
		t.Error(err)
	}
	if d, err := s.Verify(t.Context(), false, nil); err != nil || len(d) != 0 {
		t.Errorf("after a kill: %+v, %v", d, err)
	}
}

package unpack

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berthd/berth/cri/image"
	"github.com/berthd/berth/cri/snapshot"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == snapshot.UnpackArg {
		snapshot.UnpackMain()
	}
	os.Exit(m.Run())
}

// umociProgram finds umoci, which test/peer/build.sh builds where it is missing.
func umociProgram(t *testing.T) string {
	t.Helper()
	if p := os.Getenv("BERTH_UMOCI"); p != "" {
		return p
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(cache, "berth-peer/bin/umoci")
	if _, err := os.Stat(path); err == nil {
		return path
	}
	if out, err := exec.CommandContext(t.Context(), "sh", "../peer/build.sh", "umoci").CombinedOutput(); err != nil {
		t.Skipf("needs umoci, which test/peer/build.sh could not build: %v\n%s", err, out)
	}
	return path
}

// seeds is how many images are random, unless $BERTH_SEEDS says another number.
const seeds = 40

// TestTreesAreUmocis unpacks generated images with Berth, half of them pulled and
// half imported, and with umoci, and compares what a container would see.
func TestTreesAreUmocis(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, for overlay mounts and device nodes")
	}
	umoci := umociProgram(t)
	s, err := image.Open(t.Context(), image.Config{Root: t.TempDir(), CertsDir: t.TempDir(), Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	all, count := features(), uint64(seeds)
	if v := os.Getenv("BERTH_SEEDS"); v != "" {
		if count, err = strconv.ParseUint(v, 10, 32); err != nil {
			t.Fatalf("BERTH_SEEDS is to be a number of images: %v", err)
		}
	}
	for seed := range count {
		all = append(all, randomImage(seed))
	}
	var compared atomic.Int64
	t.Run("images", func(t *testing.T) {
		for n, i := range all {
			t.Run(i.name, func(t *testing.T) {
				t.Parallel()
				if one(t, s, umoci, i, n) {
					compared.Add(1)
				}
			})
		}
	})
	if t.Failed() || strings.Contains(strings.Join(os.Args, " "), "-test.run") {
		return
	}
	if n := compared.Load(); n < 80 {
		t.Errorf("%d trees were compared, at least 80 are to be", n)
	}
}

// one compares one image; it says whether both unpacked it.
func one(t *testing.T, s *image.Store, umoci string, i img, n int) bool {
	dir := layout(t, i.layers)
	theirs, uerr := withUmoci(t, umoci, i, dir)
	ours, err := withBerth(t, s, dir, n)
	if uerr != nil || err != nil || i.refused {
		if (uerr == nil) != (err == nil) || i.refused != (err != nil) && !strings.HasPrefix(i.name, "seed") {
			t.Errorf("Berth: %v\numoci: %v", err, uerr)
		}
		return false
	}
	compare(t, i, tree(t, ours), tree(t, theirs))
	if t.Failed() {
		for n, l := range i.layers {
			for _, e := range l.entries {
				t.Logf("layer %d: %c %q %#o %d:%d -> %q", n, e.Typeflag, e.Name, e.Mode, e.Uid, e.Gid, e.Linkname)
			}
		}
	}
	return true
}

func withUmoci(t *testing.T, program string, i img, dir string) (string, error) {
	t.Helper()
	if i.umoci != nil {
		dir = layout(t, i.umoci)
	}
	bundle := filepath.Join(t.TempDir(), "bundle")
	out, err := exec.CommandContext(t.Context(), program, "unpack", "--image", dir+":it", bundle).CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%w: %s", err, out)
	}
	return filepath.Join(bundle, "rootfs"), nil
}

// withBerth stores the image and mounts it as a container's root. Odd ones are
// pulled.
func withBerth(t *testing.T, s *image.Store, dir string, n int) (string, error) {
	t.Helper()
	var got image.Image
	if n%2 == 0 {
		list, err := s.ImportLayoutDir(t.Context(), dir, nil)
		if err != nil {
			return "", err
		}
		got = list[0]
	} else {
		var err error
		if got, err = s.Pull(t.Context(), serve(t, dir)+"/app:it", image.Auth{}, nil); err != nil {
			return "", err
		}
	}
	container := fmt.Sprintf("c%d", n)
	target := filepath.Join(t.TempDir(), "root")
	if err := s.MountRootfs(t.Context(), container, string(got.ID), target, image.RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx := context.WithoutCancel(t.Context())
		if err := s.UnmountRootfs(ctx, container, target); err != nil {
			t.Error(err)
		}
		if err := s.Remove(ctx, string(got.ID)); err != nil {
			t.Error(err)
		}
	})
	return target, nil
}

// serve serves a layout as a registry would.
func serve(t *testing.T, dir string) string {
	t.Helper()
	ix, err := os.ReadFile(filepath.Join(dir, "index.json"))
	if err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		name := filepath.Base(r.URL.Path)
		hex, ok := strings.CutPrefix(name, "sha256:")
		switch {
		case name == "it" || name == digest.FromBytes(ix).String():
			w.Header().Set("Content-Type", ocispec.MediaTypeImageIndex)
			w.Header().Set("Docker-Content-Digest", digest.FromBytes(ix).String())
			http.ServeFile(w, r, filepath.Join(dir, "index.json"))
		case ok && strings.Contains(r.URL.Path, "/manifests/"):
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			http.ServeFile(w, r, filepath.Join(dir, "blobs/sha256", hex))
		case ok:
			w.Header().Set("Content-Type", "application/octet-stream")
			http.ServeFile(w, r, filepath.Join(dir, "blobs/sha256", hex))
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	return strings.TrimPrefix(srv.URL, "http://")
}

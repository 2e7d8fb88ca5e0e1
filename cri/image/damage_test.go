package image

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func TestDamagedDatabases(t *testing.T) {
	t.Parallel()
	for name, damage := range map[string]func(t *testing.T, root string){
		"truncated": func(t *testing.T, root string) { truncate(t, filepath.Join(root, "metadata.db"), 8192) },
		"empty":     func(t *testing.T, root string) { truncate(t, filepath.Join(root, "metadata.db"), 0) },
		"text":      func(t *testing.T, root string) { overwrite(t, filepath.Join(root, "metadata.db"), 0, 8192) },
		"pages":     func(t *testing.T, root string) { overwrite(t, filepath.Join(root, "metadata.db"), 8192, 1<<20) },
		"missing":   func(t *testing.T, root string) { remove(t, filepath.Join(root, "metadata.db")) },
		"layers": func(t *testing.T, root string) {
			overwrite(t, filepath.Join(root, "layers-1/metadata.db"), 8192, 1<<20)
		},
		"layers truncate": func(t *testing.T, root string) { truncate(t, filepath.Join(root, "layers-1/metadata.db"), 5000) },
	} {
		for _, copied := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s names %v", name, copied), func(t *testing.T) {
				t.Parallel()
				s := newStore(t)
				b := small(t)
				img := importOne(t, s, b, "app:1")
				target := mountOne(t, s, "running", img)
				if err := s.Close(); err != nil {
					t.Fatal(err)
				}
				damage(t, s.cfg.Root)
				if !copied {
					remove(t, filepath.Join(s.cfg.Root, "names.json"))
				}
				s2 := openStore(t, s.cfg.Root)
				got, err := s2.Get(string(img.ID))
				if err != nil || copied != (len(got.RepoTags) == 1) {
					t.Fatalf("rebuilt image: %+v, %v", got, err)
				}
				assertFile(t, filepath.Join(target, "dir/a"), strings.Repeat("a", 9000))
				fresh := mountOne(t, s2, "fresh", got)
				assertFile(t, filepath.Join(fresh, "dir/b"), strings.Repeat("b", 9000))
				if err := s2.UnmountRootfs(t.Context(), "running", target); err != nil {
					t.Fatal(err)
				}
				if err := s2.Close(); err != nil {
					t.Fatal(err)
				}
				s3 := openStore(t, s.cfg.Root)
				if dirs, err := generations(s3.cfg.Root); err != nil || len(dirs) != 1 {
					t.Errorf("layer directories %v, %v", dirs, err)
				}
				assertFile(t, filepath.Join(fresh, "dir/b"), strings.Repeat("b", 9000))
				if err := s3.UnmountRootfs(t.Context(), "fresh", fresh); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

func truncate(t *testing.T, path string, n int64) {
	t.Helper()
	if err := os.Truncate(path, n); err != nil {
		t.Fatal(err)
	}
}

func remove(t *testing.T, path string) {
	t.Helper()
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
}

// overwrite puts noise over [from, to) of the file, as far as it goes.
func overwrite(t *testing.T, path string, from, to int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte(noise(int(min(to, st.Size())-from))), from)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

func TestVerify(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := small(t)
	b.push(host, "app", "1")
	other := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "o", body: "o"}))
	other.push(host, "other", "1")
	s := newStore(t)
	pull := func(repo string) Image {
		t.Helper()
		img, err := s.Pull(t.Context(), host+"/"+repo+":1", Auth{}, nil)
		if err != nil {
			t.Fatal(err)
		}
		return img
	}
	img := pull("app")
	pull("other")
	var last Progress
	if d, err := s.Verify(t.Context(), func(p Progress) { last = p }); err != nil || len(d) != 0 || last.Done != last.Total || last.Phase != PhaseDone {
		t.Fatalf("a sound store: %+v, %v, %+v", d, err, last)
	}
	blob := func(b *built, i int) string { return s.dbs.blobPath("sha256", b.layers[i].Digest.Encoded()) }
	overwrite(t, blob(b, 0), 0, 20)
	remove(t, s.dbs.blobPath("sha256", other.config.Digest.Encoded()))
	damaged, err := s.Verify(t.Context(), nil)
	if err != nil || len(damaged) != 2 {
		t.Fatalf("%+v, %v", damaged, err)
	}
	if _, err := s.Get(host + "/other:1"); CodeOf(err) != CodeNotFound {
		t.Errorf("an image without configuration: %v", err)
	}
	if _, err := s.Get(host + "/app:1"); err != nil {
		t.Errorf("an image with a damaged layer blob and sound layers: %v", err)
	}
	pull("app")
	pull("other")
	if d, err := s.Verify(t.Context(), nil); err != nil || len(d) != 0 {
		t.Errorf("after pulling again: %+v, %v", d, err)
	}
	// An unpacked file that a power cut left empty.
	e := s.index.Load().byID[img.ID]
	dirs, err := s.chainDirs(s.ctx, e.parsed)
	if err != nil {
		t.Fatal(err)
	}
	target := mountOne(t, s, "c", img)
	truncate(t, filepath.Join(dirs[1], "dir/a"), 0)
	if d, err := s.Verify(t.Context(), nil); err != nil || len(d) != 1 || !strings.Contains(d[0].Why, "stands on it") {
		t.Errorf("damaged layer in use: %+v, %v", d, err)
	}
	if err := s.UnmountRootfs(t.Context(), "c", target); err != nil {
		t.Fatal(err)
	}
	if d, err := s.Verify(t.Context(), nil); err != nil || len(d) != 1 {
		t.Errorf("damaged layer: %+v, %v", d, err)
	}
	assertFile(t, filepath.Join(mountOne(t, s, "d", img), "dir/a"), strings.Repeat("a", 9000))
}

// TestImageWithNothingSoundIsForgotten loses a layer both unpacked and packed.
func TestImageWithNothingSoundIsForgotten(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	b := small(t)
	img := importOne(t, s, b, "app:1")
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	truncate(t, filepath.Join(s.cfg.Root, "layers-1/metadata.db"), 5000)
	overwrite(t, s.dbs.blobPath("sha256", b.layers[0].Digest.Encoded()), 30, 60)
	s2 := openStore(t, s.cfg.Root)
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := s2.MountRootfs(t.Context(), "c", string(img.ID), target, RootfsOptions{}); CodeOf(err) != CodeDamaged || !errdefs.IsDataLoss(err) {
		t.Errorf("mount of a damaged image: %v", err)
	}
	if _, err := s2.Get("app:1"); CodeOf(err) != CodeNotFound {
		t.Errorf("it is still there, and would not be pulled again: %v", err)
	}
	if refs := s2.Rootfs(); len(refs) != 0 {
		t.Errorf("left over: %+v", refs)
	}
}

// BenchmarkOpen opens a store of 50 images.
func BenchmarkOpen(b *testing.B) {
	s := newStore(b)
	for i := range 50 {
		importOne(b, s, build(b, ocispec.ImageConfig{Cmd: []string{fmt.Sprint(i)}}, layerTar(b, file{name: fmt.Sprint(i)})), fmt.Sprint("app:", i))
	}
	if err := s.Close(); err != nil {
		b.Fatal(err)
	}
	var took []time.Duration
	for b.Loop() {
		t0 := time.Now()
		s, err := Open(b.Context(), s.cfg)
		if err != nil {
			b.Fatal(err)
		}
		took = append(took, time.Since(t0))
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(median(took), "open-p50-us")
}

// BenchmarkImport imports an image of one 64 MiB layer of noise, and removes it.
func BenchmarkImport(b *testing.B) {
	s := newStore(b)
	im := build(b, ocispec.ImageConfig{}, layerTar(b, file{name: "big", body: noise(64 << 20)}))
	archive := im.layout("app:1")
	b.SetBytes(int64(len(archive)))
	for b.Loop() {
		if _, err := s.Import(b.Context(), bytes.NewReader(archive), nil); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove(b.Context(), string(im.id())); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
	}
}

package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
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
	p := startProxy(t, startRegistry(t), nil)
	b := build(t, ocispec.ImageConfig{}, small(t).diffs[0], layerTar(t, file{name: "noise", body: noise(50_000)}, file{name: "l", kind: tar.TypeSymlink, link: "noise"}),
		layerTar(t, file{name: "dir/.wh.a"}, file{name: ".wh.noise"}, file{name: "dir/c", body: "c"}), layerTar(t, file{name: "late", kind: tar.TypeLink, link: "l"}, file{name: ".wh.l"}, file{name: "dir/a", body: strings.Repeat("a", 9000)}))
	b.push(p.host, "app", "1")
	other := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "o", body: "o"}))
	s := newStore(t)
	img, err := s.Pull(t.Context(), p.host+"/app:1", Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	importOne(t, s, other, "other:1")
	verify := func(repair bool) []Damage {
		t.Helper()
		d, err := s.Verify(t.Context(), repair, nil)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	var last Progress
	if d, err := s.Verify(t.Context(), false, func(p Progress) { last = p }); err != nil || len(d) != 0 || last.Done != last.Total || last.Phase != PhaseDone {
		t.Fatalf("a sound store: %+v, %v, %+v", d, err, last)
	}
	blob := func(d digest.Digest) string { return s.dbs.blobPath("sha256", d.Encoded()) }
	flip(t, blob(b.layers[1].Digest), 20_000)
	for range 2 { // finding alone changes nothing
		if d := verify(false); len(d) != 1 || d[0].Digest != b.layers[1].Digest.String() || !slices.Contains(d[0].Images, p.host+"/app:1") {
			t.Fatalf("a flipped bit in a blob: %+v", d)
		}
	}
	before := p.blobs.Load()
	if d := verify(true); len(d) != 1 || !strings.Contains(d[0].Why, "fetched again") {
		t.Errorf("repair of a blob: %+v", d)
	}
	if n := p.blobs.Load() - before; n != 1 {
		t.Errorf("%d blobs were fetched to mend one", n)
	}
	for _, d := range []ocispec.Descriptor{b.manifest, b.config} {
		remove(t, blob(d.Digest))
		if d := verify(true); len(d) != 1 || !strings.Contains(d[0].Why, "fetched again") {
			t.Errorf("repair of a document: %+v", d)
		}
	}
	if d := verify(false); len(d) != 0 {
		t.Errorf("after repair: %+v", d)
	}
	if err := s.collect(t.Context()); err != nil {
		t.Fatal(err)
	}
	testVerifyUnpacked(t, s, p, img, verify)

	remove(t, blob(other.config.Digest))
	if d := verify(true); len(d) != 1 || !strings.Contains(d[0].Why, "pulled or imported again") {
		t.Errorf("damage that cannot be mended: %+v", d)
	}
	if _, err := s.Get("other:1"); CodeOf(err) != CodeNotFound {
		t.Errorf("an image without configuration: %v", err)
	}
	importOne(t, s, other, "other:1")
	if d := verify(false); len(d) != 0 {
		t.Errorf("after importing again: %+v", d)
	}
}

// testVerifyUnpacked damages unpacked files in ways that do not show in sizes.
func testVerifyUnpacked(t *testing.T, s *Store, p *proxy, img Image, verify func(bool) []Damage) {
	dirs, err := s.chainDirs(s.ctx, s.index.Load().byID[img.ID].parsed)
	if err != nil {
		t.Fatal(err)
	}
	target := mountOne(t, s, "c", img)
	for what, damage := range map[string]func(){
		"flipped bit": func() { flip(t, filepath.Join(dirs[2], "noise"), 33_333) },
		"emptied":     func() { truncate(t, filepath.Join(dirs[3], "dir/a"), 0) },
		"mode": func() {
			if err := os.Chmod(filepath.Join(dirs[2], "noise"), 0o600); err != nil {
				t.Fatal(err)
			}
		},
		"missing": func() { remove(t, filepath.Join(dirs[1], "dir/c")) },
	} {
		damage()
		d := verify(true)
		if len(d) != 1 || !strings.Contains(d[0].Why, "stands on it") {
			t.Fatalf("%s, in use: %+v", what, d)
		}
		if err := s.UnmountRootfs(t.Context(), "c", target); err != nil {
			t.Fatal(err)
		}
		if d := verify(false); len(d) != 1 {
			t.Errorf("%s: %+v", what, d)
		}
		before := p.blobs.Load()
		if d := verify(true); len(d) != 1 || !strings.Contains(d[0].Why, "unpacked again") {
			t.Errorf("%s, repair: %+v", what, d)
		}
		if n := p.blobs.Load() - before; n != 0 {
			t.Errorf("%s: %d blobs were fetched, none was damaged", what, n)
		}
		if d := verify(false); len(d) != 0 {
			t.Errorf("%s, after repair: %+v", what, d)
		}
		target = mountOne(t, s, "c", img)
	}
	assertFile(t, filepath.Join(target, "dir/a"), strings.Repeat("a", 9000))
	if err := s.UnmountRootfs(t.Context(), "c", target); err != nil {
		t.Fatal(err)
	}
}

// flip flips a bit of a file, as a failing disk does: times stay.
func flip(t *testing.T, path string, at int64) {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	b := make([]byte, 1)
	if _, err := f.ReadAt(b, at); err != nil {
		t.Fatal(err)
	}
	b[0] ^= 4
	if _, err := f.WriteAt(b, at); err != nil {
		t.Fatal(err)
	}
	if err := os.Chtimes(path, st.ModTime(), st.ModTime()); err != nil {
		t.Fatal(err)
	}
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

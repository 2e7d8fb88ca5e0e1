package image

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func zst(t testing.TB, b []byte) []byte {
	t.Helper()
	w, err := zstd.NewWriter(nil)
	if err != nil {
		t.Fatal(err)
	}
	return w.EncodeAll(b, nil)
}

func TestImport(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{User: "web"}, layerTar(t, file{name: "a", body: "a"}), layerTar(t, file{name: "b", body: "b"}))
	for _, c := range []struct {
		name    string
		archive []byte
		tags    []string
	}{
		{"layout", b.layout("app:1"), []string{"docker.io/library/app:1"}},
		{"two names", b.layout("registry.example/x/app:1", "app:2"), []string{"docker.io/library/app:2", "registry.example/x/app:1"}},
		{"no name", b.layout(), nil},
		{"gzip", gz(t, b.layout("app:1")), []string{"docker.io/library/app:1"}},
		{"zstd", zst(t, b.layout("app:1")), []string{"docker.io/library/app:1"}},
		{"docker", b.dockerArchive("app:1", "app:latest"), []string{"docker.io/library/app:1", "docker.io/library/app:latest"}},
		{"docker gzip no name", gz(t, b.dockerArchive()), nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			var last Progress
			list, err := s.Import(t.Context(), bytes.NewReader(c.archive), func(p Progress) { last = p })
			if err != nil {
				t.Fatal(err)
			}
			if len(list) != 1 || list[0].ID != b.id() || !slices.Equal(list[0].RepoTags, c.tags) || list[0].Username != "web" {
				t.Errorf("images %+v", list)
			}
			if last.Phase != PhaseDone || last.Done < int64(len(c.archive))/2 {
				t.Errorf("last progress %+v of %d bytes", last, len(c.archive))
			}
			// Again is the same, and nothing is left over.
			if again, err := s.Import(t.Context(), bytes.NewReader(c.archive), nil); err != nil || len(again) != 1 {
				t.Errorf("again: %v, %v", again, err)
			}
			if err := s.Remove(t.Context(), string(b.id())); err != nil {
				t.Fatal(err)
			}
			assertEmpty(t, s)
		})
	}
}

// assertEmpty checks that no content and no layer is left on disk.
func assertEmpty(t *testing.T, s *Store) {
	t.Helper()
	for _, pattern := range []string{"content/blobs/sha256/*", "content/ingest/*", "layers-*/snapshots/*"} {
		left, err := filepath.Glob(filepath.Join(s.cfg.Root, pattern))
		if err != nil || len(left) > 0 {
			t.Errorf("left on disk: %v, %v", left, err)
		}
	}
}

func TestImportLayoutDir(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	dir := t.TempDir()
	unpackTar(t, dir, b.layout("app:1"))
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(secret, filepath.Join(dir, "blobs", "sha256", digest.FromString("secret").Encoded())); err != nil {
		t.Fatal(err)
	}
	s := newStore(t)
	list, err := s.ImportLayoutDir(t.Context(), dir, nil)
	if err != nil || len(list) != 1 || list[0].ID != b.id() {
		t.Fatalf("%+v, %v", list, err)
	}
	if _, err := s.dbs.blobs.Info(t.Context(), digest.FromString("secret")); err == nil {
		t.Error("a link out of the layout was followed")
	}
	if _, err := s.ImportLayoutDir(t.Context(), filepath.Join(dir, "absent"), nil); CodeOf(err) != CodeBadArchive {
		t.Errorf("absent directory: %v", err)
	}
}

func unpackTar(t *testing.T, dir string, b []byte) {
	t.Helper()
	r := tar.NewReader(bytes.NewReader(b))
	for {
		h, err := r.Next()
		if err != nil {
			return
		}
		path := filepath.Join(dir, h.Name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		body := make([]byte, h.Size)
		if _, err := r.Read(body); err != nil && h.Size > 0 && int64(len(body)) != h.Size {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, body, 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

func TestImportRefuses(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(100_000)}))
	whole := b.layout("app:1")
	lacking := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	delete(lacking.blobs, lacking.layers[0].Digest)
	foreign := buildFor(t, "s390x", ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	fewer := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	fewer.layers = nil
	fewer.remanifest()
	for _, c := range []struct {
		name    string
		archive []byte
		code    Code
	}{
		{"empty", nil, CodeBadArchive},
		{"text", []byte("this is no archive"), CodeBadArchive},
		{"no image", layerTar(t, file{name: "readme", body: "hello"}), CodeBadArchive},
		{"cut off", whole[:len(whole)/2], CodeBadArchive},
		{"cut off gzip", gz(t, whole)[:50_000], CodeBadArchive},
		{"traversal", layerTar(t, file{name: "../../etc/cron.d/x", body: "x"}), CodeBadArchive},
		{"absolute", layerTar(t, file{name: "/etc/cron.d/x", body: "x"}), CodeBadArchive},
		{"link out", layerTar(t, file{name: "layer.tar", kind: tar.TypeSymlink, link: "../../etc/shadow"}), CodeBadArchive},
		{"twice", layerTar(t, file{name: "manifest.json", body: "[]"}, file{name: "./manifest.json", body: "[]"}), CodeBadArchive},
		{"large document", layerTar(t, file{name: "manifest.json", body: strings.Repeat(" ", maxConfig+1)}), CodeLimit},
		{"lacking a layer", lacking.layout("app:1"), CodeBadArchive},
		{"foreign", foreign.layout("app:1"), CodePlatform},
		{"bad name", b.layout("UPPER:1"), CodeBadArchive},
		{"layers differ", fewer.layout("app:1"), CodeBadImage},
		{"not JSON", layerTar(t, file{name: "oci-layout", body: `{"imageLayoutVersion":"1.0.0"}`}, file{name: "index.json", body: "{"}), CodeBadArchive},
		{"docker absent layer", layerTar(t, file{name: "manifest.json", body: `[{"Config":"c","Layers":["l"]}]`}), CodeBadArchive},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t)
			_, err := s.Import(t.Context(), bytes.NewReader(c.archive), nil)
			if CodeOf(err) != c.code {
				t.Errorf("want %s, got %q: %v", c.code, CodeOf(err), err)
			}
			if len(s.List()) != 0 {
				t.Errorf("images %v", s.List())
			}
			if err := s.collect(s.ctx); err != nil {
				t.Fatal(err)
			}
			if err := s.abortIngests(s.ctx); err != nil {
				t.Fatal(err)
			}
			assertEmpty(t, s)
		})
	}
}

func TestArchiveEntriesAreLimited(t *testing.T) {
	t.Parallel()
	archive := layerTar(t, manyFiles(maxArchiveEntries+1)...)
	if err := filterArchive(bytes.NewReader(archive), io.Discard, 1<<30); codeFor(err) != CodeLimit {
		t.Errorf("%d entries: %v", maxArchiveEntries+1, err)
	}
	if err := filterArchive(bytes.NewReader(archive[:100*512]), io.Discard, 1<<30); err != nil {
		t.Errorf("100 entries: %v", err)
	}
	large := layerTar(t, file{name: "a", body: noise(2000)})
	if err := filterArchive(bytes.NewReader(large), io.Discard, 1000); codeFor(err) != CodeLimit {
		t.Errorf("archive above its limit: %v", err)
	}
}

func TestImportEndsWithContext(t *testing.T) {
	t.Parallel()
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(1 << 20)}))
	r := &stopReader{b: b.layout("app:1"), at: 300_000, stop: cancel}
	if _, err := s.Import(ctx, r, nil); CodeOf(err) != CodeCanceled {
		t.Errorf("canceled import: %v", err)
	}
}

// stopReader calls stop after at bytes.
type stopReader struct {
	b    []byte
	at   int
	stop func()
}

func (s *stopReader) Read(p []byte) (int, error) {
	n := copy(p, s.b)
	s.b = s.b[n:]
	if s.at -= n; s.at < 0 {
		s.stop()
	}
	return n, nil
}

func TestImportHostileLayers(t *testing.T) {
	t.Parallel()
	outside := t.TempDir()
	victim := filepath.Join(outside, "victim")
	if err := os.WriteFile(victim, []byte("untouched"), 0o644); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		layers [][]byte
		code   Code
	}{
		{"traversal", [][]byte{layerTar(t, file{name: strings.Repeat("../", 20) + victim, body: "taken"})}, ""},
		{"link then file", [][]byte{layerTar(t, file{name: "out", kind: tar.TypeSymlink, link: outside}, file{name: "out/victim", body: "taken"})}, ""},
		{"link below", [][]byte{
			layerTar(t, file{name: "out", kind: tar.TypeSymlink, link: strings.Repeat("../", 20) + outside}),
			layerTar(t, file{name: "out/victim", body: "taken"}),
		}, ""},
		{"hard link", [][]byte{layerTar(t, file{name: "h", kind: tar.TypeLink, link: strings.Repeat("../", 20) + victim})}, CodeBadImage},
		{"whiteout through link", [][]byte{layerTar(t, file{name: "out", kind: tar.TypeSymlink, link: outside}, file{name: "out/.wh.victim"})}, ""},
		{"opaque through link", [][]byte{
			layerTar(t, file{name: "out", kind: tar.TypeSymlink, link: outside}),
			layerTar(t, file{name: "out/.wh..wh..opq"}),
		}, ""},
		{"whiteout of parent", [][]byte{layerTar(t, file{name: ".wh..."})}, CodeBadImage},
		{"twice", [][]byte{layerTar(t, file{name: "a", body: "1"}, file{name: "a", kind: tar.TypeDir}, file{name: "a", body: "2"})}, ""},
		{"cut off", [][]byte{layerTar(t, file{name: "a", body: noise(4000)})[:1500]}, CodeBadImage},
		{"no tar", [][]byte{[]byte(noise(5000))}, CodeBadImage},
		{"bomb", [][]byte{layerTar(t, file{name: "a", body: strings.Repeat("\x00", 3<<20)})}, CodeLimit},
		{"many entries", [][]byte{layerTar(t, manyFiles(2000)...)}, CodeLimit},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, func(c *Config) { c.MaxLayerBytes, c.MaxLayerEntries = 2<<20, 1000 })
			b := build(t, ocispec.ImageConfig{}, c.layers...)
			_, err := s.Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil)
			if CodeOf(err) != c.code {
				t.Errorf("want %q, got %q: %v", c.code, CodeOf(err), err)
			}
			if got, err := os.ReadFile(victim); string(got) != "untouched" {
				t.Fatalf("a file outside of the layer was changed: %q, %v", got, err)
			}
			if err != nil {
				if err := s.collect(s.ctx); err != nil {
					t.Fatal(err)
				}
				assertEmpty(t, s)
			}
		})
	}
}

func manyFiles(n int) []file {
	var out []file
	for i := range n {
		out = append(out, file{name: fmt.Sprint("f", i)})
	}
	return out
}

func TestImportChecksDiffID(t *testing.T) {
	t.Parallel()
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	b.layers[0] = b.put(ocispec.MediaTypeImageLayerGzip, gz(t, layerTar(t, file{name: "a", body: "another"})))
	b.remanifest()
	s := newStore(t)
	if _, err := s.Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil); CodeOf(err) != CodeBadImage || !strings.Contains(err.Error(), "digest") {
		t.Errorf("layer of another digest: %v", err)
	}
}

func TestUnpackMemoryIsLimited(t *testing.T) {
	t.Parallel()
	if raceEnabled {
		t.Skip("the race detector itself allocates more than the limits tested here")
	}
	w, err := zstd.NewWriter(nil, zstd.WithWindowSize(64<<20), zstd.WithSingleSegment(false))
	if err != nil {
		t.Fatal(err)
	}
	layer := layerTar(t, file{name: "a", body: strings.Repeat("\x00", 80<<20)})
	b := build(t, ocispec.ImageConfig{}, layer)
	b.layers[0] = b.put(ocispec.MediaTypeImageLayerZstd, w.EncodeAll(layer, nil))
	b.remanifest()
	small := newStore(t, func(c *Config) { c.UnpackMemory = 48 << 20 })
	if _, err := small.Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil); CodeOf(err) != CodeLimit {
		t.Errorf("a layer that needs a 64 MiB window in 48 MiB: %v", err)
	}
	if _, err := newStore(t).Import(t.Context(), bytes.NewReader(b.layout("app:1")), nil); err != nil {
		t.Error(err)
	}
}

// FuzzImageArchive feeds archives to everything that reads them in this
// process; unpacking is left out, for it has a process of its own.
func FuzzImageArchive(f *testing.F) {
	b := build(f, ocispec.ImageConfig{}, layerTar(f, file{name: "a", body: "a"}))
	f.Add(b.layout("app:1"))
	f.Add(b.layout())
	f.Add(b.dockerArchive("app:1", "app:2"))
	f.Add(gz(f, b.layout("app:1")))
	f.Add(zst(f, b.dockerArchive("app:1")))
	f.Add(b.layout("app:1")[:2000])
	f.Add(layerTar(f, file{name: "manifest.json", body: `[{"Config":"c","RepoTags":["a:b"],"Layers":["l","l"]}]`}, file{name: "c", body: "{}"}))
	f.Add(layerTar(f, file{name: "x", kind: tar.TypeSymlink, link: "x"}))
	root := f.TempDir()
	if dir, err := os.MkdirTemp("/dev/shm", "berth-fuzz-"); err == nil {
		f.Cleanup(func() { os.RemoveAll(dir) })
		root = dir
	}
	s := openStore(f, root, func(c *Config) { c.MaxImageSize = 4 << 20 })
	runs := 0
	f.Fuzz(func(t *testing.T, archive []byte) {
		if runs++; runs%500 == 0 {
			if err := s.collect(s.ctx); err != nil {
				t.Fatal(err)
			}
		}
		err := s.leased(s.ctx, func(ctx context.Context) error {
			desc, err := s.readArchive(ctx, bytes.NewReader(archive))
			if err != nil {
				return err
			}
			found, err := s.archiveImages(ctx, desc)
			for _, im := range found {
				if im.parsed.id == "" || len(im.parsed.layers) != len(im.parsed.diffIDs) {
					t.Errorf("half an image was taken: %+v", im.parsed)
				}
			}
			return err
		})
		if err := failed("import", "", err); err != nil && CodeOf(err) == CodeHost {
			t.Errorf("archive of %d bytes gives an unclassified error: %v", len(archive), err)
		}
	})
}

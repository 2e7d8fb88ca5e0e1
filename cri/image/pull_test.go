package image

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

func testLogger(t testing.TB) *slog.Logger {
	return slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelInfo}))
}

func noise(n int) string {
	r := rand.NewChaCha8([32]byte{7})
	b := make([]byte, n)
	_, _ = r.Read(b)
	return string(b)
}

func TestPullByTagAndDigest(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := busybox(t, layerTar(t, file{name: "etc/.wh.passwd"}, file{name: "data/", kind: tar.TypeDir}, file{name: "data/x", body: "x"}))
	b.push(host, "team/app", "1", "2")
	s := newStore(t)
	var last Progress
	img, err := s.Pull(t.Context(), host+"/team/app:1", Auth{}, func(p Progress) { last = p })
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != b.id() || len(img.Config.Cmd) != 1 || img.UID == nil || *img.UID != 1000 || img.Username != "" {
		t.Errorf("image %+v", img)
	}
	if want := []string{host + "/team/app:1"}; !slices.Equal(img.RepoTags, want) {
		t.Errorf("tags %v", img.RepoTags)
	}
	if want := []string{host + "/team/app@" + b.manifest.Digest.String()}; !slices.Equal(img.RepoDigests, want) {
		t.Errorf("digests %v", img.RepoDigests)
	}
	if last.Done != last.Total || last.Total == 0 || len(last.Layers) != 2 {
		t.Errorf("last progress %+v", last)
	}
	if _, err := s.Pull(t.Context(), host+"/team/app@"+b.manifest.Digest.String(), Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{string(img.ID), string(img.ID)[7:19], b.manifest.Digest.String(), img.RepoTags[0], img.RepoDigests[0]} {
		if got, err := s.Get(ref); err != nil || got.ID != img.ID {
			t.Errorf("Get(%s) = %v, %v", ref, got.ID, err)
		}
	}
	if _, err := s.Get("nothing:here"); CodeOf(err) != CodeNotFound || !errdefs.IsNotFound(err) {
		t.Errorf("absent image: %v", err)
	}
	if n := len(s.List()); n != 1 {
		t.Errorf("%d images", n)
	}
	target := filepath.Join(t.TempDir(), "rootfs")
	if err := s.MountRootfs(t.Context(), "c1", string(img.ID), target, RootfsOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(target, "etc/passwd")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("whiteout not applied: %v", err)
	}
	if got, err := os.ReadFile(filepath.Join(target, "data/x")); string(got) != "x" {
		t.Errorf("data/x = %q, %v", got, err)
	}
	if err := s.UnmountRootfs(t.Context(), "c1", target); err != nil {
		t.Fatal(err)
	}
}

func TestPullErrors(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	b.push(host, "app", "1")
	other := buildFor(t, "s390x", ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	other.push(host, "other", "1")
	wrong := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "wrong"}))
	wrong.push(host, "wrong", "1")
	liar := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, wrong.layers[0].Digest.String()) {
			return false
		}
		body := bytes.Clone(wrong.blobs[wrong.layers[0].Digest])
		body[len(body)-9] ^= 1
		_, _ = w.Write(body)
		return true
	})
	closed := startProxy(t, host, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusForbidden)
		return true
	})
	down := startProxy(t, host, func(w http.ResponseWriter, _ *http.Request) bool {
		w.WriteHeader(http.StatusServiceUnavailable)
		return true
	})
	s := newStore(t)
	for _, c := range []struct {
		ref   string
		code  Code
		class func(error) bool
	}{
		{"UPPER/Case:1", CodeInvalidReference, errdefs.IsInvalidArgument},
		{host + "/app:absent", CodeTagNotFound, errdefs.IsNotFound},
		{host + "/absent:1", CodeRepositoryNotFound, errdefs.IsNotFound},
		{host + "/other:1", CodePlatform, errdefs.IsNotFound},
		{liar.host + "/wrong:1", CodeDigestMismatch, errdefs.IsDataLoss},
		{closed.host + "/app:1", CodeUnauthorized, errdefs.IsPermissionDenied},
		{down.host + "/app:1", CodeUnavailable, errdefs.IsUnavailable},
		{"127.0.0.1:1/app:1", CodeUnavailable, errdefs.IsUnavailable},
	} {
		_, err := s.Pull(t.Context(), c.ref, Auth{}, nil)
		if CodeOf(err) != c.code || !c.class(err) {
			t.Errorf("%s: want %s, got %q: %v", c.ref, c.code, CodeOf(err), err)
		}
	}
	if n := len(s.List()); n != 0 {
		t.Errorf("%d images after failures", n)
	}
	// What a liar gave is not continued with the truth.
	if _, err := s.Pull(t.Context(), host+"/wrong:1", Auth{}, nil); err != nil {
		t.Error(err)
	}
}

func TestPullWithCredentials(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	b.push(host, "private", "1")
	basic := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if user, pass, _ := r.BasicAuth(); user == "me" && pass == "s3cret" {
			return false
		}
		w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	token := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer t0ken" {
			return false
		}
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	for _, c := range []struct {
		name, host string
		auth       Auth
		code       Code
	}{
		{"password", basic.host, Auth{Username: "me", Password: "s3cret"}, ""},
		{"base64", basic.host, Auth{Auth: "bWU6czNjcmV0"}, ""},
		{"address", basic.host, Auth{Username: "me", Password: "s3cret", ServerAddress: "http://" + basic.host + "/v1/"}, ""},
		{"none", basic.host, Auth{}, CodeUnauthorized},
		{"wrong", basic.host, Auth{Username: "me", Password: "wr0ng"}, CodeUnauthorized},
		{"elsewhere", basic.host, Auth{Username: "me", Password: "s3cret", ServerAddress: "other.example"}, CodeUnauthorized},
		{"malformed", basic.host, Auth{Auth: "!"}, CodeUnauthorized},
		{"token", token.host, Auth{RegistryToken: "t0ken"}, ""},
		{"wrong token", token.host, Auth{RegistryToken: "wr0ng"}, CodeUnauthorized},
	} {
		_, err := newStore(t).Pull(t.Context(), c.host+"/private:1", c.auth, nil)
		if CodeOf(err) != c.code {
			t.Errorf("%s: want %q, got %v", c.name, c.code, err)
		}
		if err != nil && (strings.Contains(err.Error(), "s3cret") || strings.Contains(err.Error(), "wr0ng")) {
			t.Errorf("%s: secret in error: %v", c.name, err)
		}
	}
}

func TestConcurrentPullsShare(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	shared := layerTar(t, file{name: "shared", body: noise(1 << 20)})
	one := build(t, ocispec.ImageConfig{Cmd: []string{"1"}}, shared)
	two := build(t, ocispec.ImageConfig{Cmd: []string{"2"}}, shared)
	one.push(host, "one", "1")
	two.push(host, "two", "1")
	p := startProxy(t, host, nil)
	s := newStore(t)
	var wg sync.WaitGroup
	for i := range 12 {
		wg.Go(func() {
			if _, err := s.Pull(t.Context(), p.host+"/"+[]string{"one", "two"}[i%2]+":1", Auth{}, nil); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := p.blobs.Load(); n != 3 {
		t.Errorf("%d downloads of blobs, want 2 configurations and 1 layer", n)
	}
	if a, b := layerCount(t, s), 1; a != b {
		t.Errorf("%d unpacked layers, want %d", a, b)
	}
}

func layerCount(t *testing.T, s *Store) int {
	t.Helper()
	dirs, err := filepath.Glob(filepath.Join(s.dbs.generation, "snapshots", "*"))
	if err != nil {
		t.Fatal(err)
	}
	return len(dirs)
}

func TestPullResumes(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(3 << 20)}))
	b.push(host, "app", "1")
	var mu sync.Mutex
	var ranges []string
	cut := true
	p := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Method != http.MethodGet || !strings.HasSuffix(r.URL.Path, b.layers[0].Digest.String()) {
			return false
		}
		mu.Lock()
		defer mu.Unlock()
		ranges = append(ranges, r.Header.Get("Range"))
		if !cut {
			return false
		}
		body := b.blobs[b.layers[0].Digest]
		w.Header().Set("Content-Length", fmt.Sprint(len(body)))
		_, _ = w.Write(body[:2<<20])
		if fl, ok := w.(http.Flusher); ok {
			fl.Flush()
		}
		mu.Unlock()
		<-r.Context().Done()
		mu.Lock()
		return true
	})
	s := newStore(t, func(c *Config) { c.StallTimeout = time.Second })
	_, err := s.Pull(t.Context(), p.host+"/app:1", Auth{}, nil)
	if CodeOf(err) != CodeStalled || !errdefs.IsUnavailable(err) {
		t.Fatalf("a registry that stalls: %v", err)
	}
	mu.Lock()
	cut, ranges = false, nil
	mu.Unlock()
	if _, err := s.Pull(t.Context(), p.host+"/app:1", Auth{}, nil); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(ranges) == 0 || !strings.HasPrefix(ranges[len(ranges)-1], "bytes=") || strings.HasPrefix(ranges[len(ranges)-1], "bytes=0-") {
		t.Errorf("second pull asked for %q, want it to go on where the first stopped", ranges)
	}
}

func TestPullIsCanceledWithItsLastCaller(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	b.push(host, "app", "1")
	begun, gone := make(chan struct{}, 8), make(chan struct{})
	p := startProxy(t, host, func(_ http.ResponseWriter, r *http.Request) bool {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			begun <- struct{}{}
			<-r.Context().Done()
			select {
			case <-gone:
			default:
				close(gone)
			}
			return true
		}
		return false
	})
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-begun
		cancel()
	}()
	if _, err := s.Pull(ctx, p.host+"/app:1", Auth{}, nil); err == nil {
		t.Fatal("pull ended without error")
	}
	select {
	case <-gone:
	case <-time.After(10 * time.Second):
		t.Error("the download goes on after its only caller left")
	}
}

func TestHostsToml(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "a"}))
	b.push(host, "app", "1")
	certs := t.TempDir()
	dir := filepath.Join(certs, "registry.invalid")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("server = \"http://127.0.0.1:1\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", host)
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	s := newStore(t, func(c *Config) { c.CertsDir = certs })
	img, err := s.Pull(t.Context(), "registry.invalid/app:1", Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"registry.invalid/app:1"}; !slices.Equal(img.RepoTags, want) {
		t.Errorf("tags %v", img.RepoTags)
	}
}

func TestIndexPicksPlatform(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	mine := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "mine"}))
	other := buildFor(t, "s390x", ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: "other"}))
	mine.push(host, "multi", "mine")
	other.push(host, "multi", "other")
	om, mm := other.manifest, mine.manifest
	om.Platform = &ocispec.Platform{OS: "linux", Architecture: "s390x"}
	mm.Platform = &ocispec.Platform{OS: "linux", Architecture: goarch()}
	ix := ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{om, mm}}
	ix.SchemaVersion = 2
	desc := mine.json(ocispec.MediaTypeImageIndex, ix)
	pushManifest(t, host, "multi", "all", desc, mine.blobs[desc.Digest])
	s := newStore(t)
	img, err := s.Pull(t.Context(), host+"/multi:all", Auth{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if img.ID != mine.id() || !strings.HasSuffix(img.RepoDigests[0], desc.Digest.String()) {
		t.Errorf("got %+v", img)
	}
	if _, err := s.dbs.blobs.Info(t.Context(), other.layers[0].Digest); !errdefs.IsNotFound(err) {
		t.Errorf("the other platform's layer was fetched: %v", err)
	}
	if err := s.Remove(t.Context(), img.RepoTags[0]); err != nil {
		t.Fatal(err)
	}
	if u, err := s.Usage(t.Context()); err != nil || u.Bytes != 0 {
		t.Errorf("after removal %+v, %v", u, err)
	}
}

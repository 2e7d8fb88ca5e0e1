package image

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/berthd/berth/test/registry"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// startRegistry runs a real registry on loopback and returns host:port.
func startRegistry(t *testing.T) string {
	t.Helper()
	return strings.TrimPrefix(registry.Start(t).Direct, "http://")
}

// push uploads an image under tags.
func (b *built) push(host, repo string, tags ...string) {
	b.t.Helper()
	for d, body := range b.blobs {
		pushBlob(b.t, host, repo, d, body)
	}
	for _, tag := range tags {
		pushManifest(b.t, host, repo, tag, b.manifest, b.blobs[b.manifest.Digest])
	}
}

func pushBlob(t testing.TB, host, repo string, d digest.Digest, body []byte) {
	t.Helper()
	resp, err := http.Post(fmt.Sprintf("http://%s/v2/%s/blobs/uploads/", host, repo), "", nil)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	loc := resp.Header.Get("Location")
	sep := "?"
	if strings.Contains(loc, "?") {
		sep = "&"
	}
	send(t, http.MethodPut, loc+sep+"digest="+d.String(), "application/octet-stream", body)
}

func pushManifest(t testing.TB, host, repo, tag string, desc ocispec.Descriptor, body []byte) {
	t.Helper()
	send(t, http.MethodPut, fmt.Sprintf("http://%s/v2/%s/manifests/%s", host, repo, tag), desc.MediaType, body)
}

func send(t testing.TB, method, url, mediaType string, body []byte) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, bytes.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", mediaType)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode >= 300 {
		text, _ := io.ReadAll(io.LimitReader(resp.Body, 1024))
		t.Fatalf("%s %s: %s %s", method, url, resp.Status, text)
	}
}

// proxy stands before a registry and does what a test wants.
type proxy struct {
	host  string
	blobs atomic.Int64 // layer and config downloads that were begun
}

// startProxy serves what answer does not: it says true when it answered.
func startProxy(t *testing.T, registry string, answer func(http.ResponseWriter, *http.Request) bool) *proxy {
	t.Helper()
	target, err := url.Parse("http://" + registry)
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{}
	rp := httputil.NewSingleHostReverseProxy(target)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			p.blobs.Add(1)
		}
		if answer == nil || !answer(w, r) {
			rp.ServeHTTP(w, r)
		}
	}))
	t.Cleanup(srv.Close)
	p.host = strings.TrimPrefix(srv.URL, "http://")
	return p
}

func newStore(t testing.TB, change ...func(*Config)) *Store {
	t.Helper()
	return openStore(t, t.TempDir(), change...)
}

func openStore(t testing.TB, root string, change ...func(*Config)) *Store {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for overlay mounts and device nodes")
	}
	cfg := Config{Root: root, CertsDir: filepath.Join(t.TempDir(), "certs.d"), Logger: testLogger(t)}
	for _, c := range change {
		c(&cfg)
	}
	s, err := Open(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil && !strings.Contains(err.Error(), "closed") {
			t.Error(err)
		}
	})
	<-s.swept
	return s
}

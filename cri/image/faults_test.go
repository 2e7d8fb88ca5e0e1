package image

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// hostsToml configures a registry in a directory of its own.
func hostsToml(t *testing.T, name, text string) func(*Config) {
	t.Helper()
	certs := t.TempDir()
	dir := filepath.Join(certs, name)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	put(t, filepath.Join(dir, "hosts.toml"), []byte(text))
	return func(c *Config) { c.CertsDir, c.StallTimeout = certs, time.Second }
}

func forwardTo(t *testing.T, host string) *httputil.ReverseProxy {
	t.Helper()
	u, err := url.Parse("http://" + host)
	if err != nil {
		t.Fatal(err)
	}
	return httputil.NewSingleHostReverseProxy(u)
}

func TestPullOverTLS(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := small(t)
	b.push(host, "app", "1")
	ca := newAuthority(t)
	server, _, _ := ca.issue(2)
	pool := x509.NewCertPool()
	pool.AddCert(ca.cert)
	front := httptest.NewUnstartedServer(forwardTo(t, host))
	front.TLS = &tls.Config{Certificates: []tls.Certificate{server}, ClientCAs: pool, ClientAuth: tls.RequireAndVerifyClientCert}
	front.StartTLS()
	t.Cleanup(front.Close)
	name := strings.TrimPrefix(front.URL, "https://")
	_, cert, key := ca.issue(3)
	_, strange, strangeKey := newAuthority(t).issue(4)
	for _, c := range []struct{ what, toml, says string }{
		{"CA and client certificate", fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", ca.file, cert, key), ""},
		{"no CA", fmt.Sprintf("client = [[%q, %q]]", cert, key), "name its CA in"},
		{"no client certificate", fmt.Sprintf("ca = %q", ca.file), "client certificate"},
		{"another CA's client certificate", fmt.Sprintf("ca = %q\nclient = [[%q, %q]]", ca.file, strange, strangeKey), "client certificate"},
	} {
		s := newStore(t, hostsToml(t, name, fmt.Sprintf("server = \"https://%s\"\n[host.\"https://%s\"]\n%s\n", name, name, c.toml)))
		_, err := s.Pull(t.Context(), name+"/app:1", Auth{}, nil)
		switch {
		case c.says == "" && err != nil:
			t.Errorf("%s: %v", c.what, err)
		case c.says != "" && (CodeOf(err) != CodeUnavailable || !strings.Contains(err.Error(), c.says)):
			t.Errorf("%s: %v", c.what, err)
		}
	}
}

// TestPullWithTokens has a token server stand before the registry.
func TestPullWithTokens(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	small(t).push(host, "team/app", "1")
	var asked atomic.Pointer[url.URL]
	tokens := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Store(r.URL)
		if u, p, _ := r.BasicAuth(); u != "me" || p != "s3cret" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		fmt.Fprintf(w, `{"token":"granted","expires_in":60}`)
	}))
	t.Cleanup(tokens.Close)
	front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if r.Header.Get("Authorization") == "Bearer granted" {
			r.Header.Del("Authorization")
			return false
		}
		w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm=%q,service="test",scope="repository:team/app:pull"`, tokens.URL))
		w.WriteHeader(http.StatusUnauthorized)
		return true
	})
	if _, err := newStore(t).Pull(t.Context(), front.host+"/team/app:1", Auth{Username: "me", Password: "s3cret"}, nil); err != nil {
		t.Fatal(err)
	}
	if q := asked.Load().Query(); q.Get("service") != "test" || q.Get("scope") != "repository:team/app:pull" {
		t.Errorf("token was asked for with %v", q)
	}
	_, err := newStore(t).Pull(t.Context(), front.host+"/team/app:1", Auth{Username: "me", Password: "wr0ng"}, nil)
	if CodeOf(err) != CodeUnauthorized || strings.Contains(err.Error(), "wr0ng") {
		t.Errorf("refused by the token server: %v", err)
	}
}

// TestMirrorsFailOver has every mirror fail in another way before the registry answers.
func TestMirrorsFailOver(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(300_000)}))
	b.push(host, "app", "1")
	answer := func(f func(w http.ResponseWriter, r *http.Request) bool) string { return startProxy(t, host, f).host }
	status := func(n int) string {
		return answer(func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(n); return true })
	}
	blobs := func(r *http.Request) bool { return strings.Contains(r.URL.Path, "/blobs/") }
	mirrors := map[string]string{
		"dead":    "127.0.0.1:1",
		"404":     status(404),
		"500":     status(500),
		"429":     status(429),
		"401":     status(401),
		"stalled": answer(func(_ http.ResponseWriter, r *http.Request) bool { <-r.Context().Done(); return true }),
		"stalled in the body": answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !blobs(r) {
				return false
			}
			w.Header().Set("Content-Length", "300000")
			_, _ = w.Write([]byte("x"))
			w.(http.Flusher).Flush()
			<-r.Context().Done()
			return true
		}),
		"lies": answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !blobs(r) {
				return false
			}
			_, _ = w.Write(bytes.Repeat([]byte{7}, int(b.layers[0].Size)))
			return true
		}),
		"endless": answer(func(w http.ResponseWriter, r *http.Request) bool {
			if !blobs(r) {
				return false
			}
			for junk := make([]byte, 64<<10); r.Context().Err() == nil; {
				if _, err := w.Write(junk); err != nil {
					break
				}
			}
			return true
		}),
	}
	for what, mirror := range mirrors {
		t.Run(what, func(t *testing.T) {
			t.Parallel()
			s := newStore(t, hostsToml(t, "registry.test", fmt.Sprintf(
				"server = \"http://%s\"\n[host.\"http://%s\"]\ncapabilities = [\"pull\", \"resolve\"]\n", host, mirror)))
			begin := time.Now()
			if _, err := s.Pull(t.Context(), "registry.test/app:1", Auth{}, nil); err != nil {
				t.Errorf("after %v: %v", time.Since(begin), err)
			}
		})
	}
}

func TestRateLimit(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := small(t)
	b.push(host, "app", "1")
	var n atomic.Int64
	busy := startProxy(t, host, func(w http.ResponseWriter, _ *http.Request) bool {
		if n.Add(1) > 2 {
			return false
		}
		w.Header().Set("Retry-After", "1")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	begin := time.Now()
	if _, err := newStore(t).Pull(t.Context(), busy.host+"/app:1", Auth{}, nil); err != nil {
		t.Error(err)
	}
	if d := time.Since(begin); d < 2*time.Second {
		t.Errorf("two Retry-After of a second took %v", d)
	}
	closed := startProxy(t, host, func(w http.ResponseWriter, _ *http.Request) bool {
		w.Header().Set("Retry-After", "3600")
		w.WriteHeader(http.StatusTooManyRequests)
		return true
	})
	begin = time.Now()
	_, err := newStore(t).Pull(t.Context(), closed.host+"/app:1", Auth{}, nil)
	if CodeOf(err) != CodeRateLimited || !strings.Contains(err.Error(), "1h0m0s") || time.Since(begin) > 20*time.Second {
		t.Errorf("asked to wait an hour, after %v: %v", time.Since(begin), err)
	}
}

// TestBrokenDownloadsGoOn cuts or stalls each connection after a part of the layer.
func TestBrokenDownloadsGoOn(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(2 << 20)}))
	b.push(host, "app", "1")
	for _, how := range []string{"cut", "stalled", "short", "no ranges"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			var mu sync.Mutex
			var ranges []string
			front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
				if !strings.HasSuffix(r.URL.Path, b.layers[0].Digest.String()) {
					return false
				}
				mu.Lock()
				ranges = append(ranges, r.Header.Get("Range"))
				n := len(ranges)
				mu.Unlock()
				if n > 4 {
					if how == "no ranges" {
						r.Header.Del("Range")
					}
					return false
				}
				var at int64
				_, _ = fmt.Sscanf(r.Header.Get("Range"), "bytes=%d-", &at)
				body := b.blobs[b.layers[0].Digest]
				if at > 0 {
					w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", at, len(body)-1, len(body)))
				}
				if how != "short" {
					w.Header().Set("Content-Length", fmt.Sprint(int64(len(body))-at))
				}
				if at > 0 {
					w.WriteHeader(http.StatusPartialContent)
				}
				_, _ = w.Write(body[at : at+300_000])
				w.(http.Flusher).Flush()
				switch how {
				case "stalled":
					<-r.Context().Done()
				case "cut", "no ranges":
					panic(http.ErrAbortHandler)
				}
				return true
			})
			s := newStore(t, func(c *Config) { c.StallTimeout = time.Second })
			if _, err := s.Pull(t.Context(), front.host+"/app:1", Auth{}, nil); err != nil {
				t.Fatal(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if len(ranges) != 5 || ranges[1] != "bytes=300000-" || ranges[4] != "bytes=1200000-" {
				t.Errorf("asked for %q", ranges)
			}
		})
	}
}

// TestRedirects leads to other hosts, which must not learn what is for the registry alone.
func TestRedirects(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := small(t)
	b.push(host, "app", "1")
	forward := forwardTo(t, host)
	var leaked atomic.Value
	var asks atomic.Bool
	store := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, h := range []string{"Authorization", "Cookie", "X-Secret", "Referer"} {
			if v := r.Header.Get(h); v != "" {
				leaked.Store(h + ": " + v)
			}
		}
		if asks.Load() {
			w.Header().Set("WWW-Authenticate", `Basic realm="give me"`)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(store.Close)
	front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if u, p, _ := r.BasicAuth(); u != "me" || p != "s3cret" || r.Header.Get("X-Secret") != "mine" {
			w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
			w.WriteHeader(http.StatusUnauthorized)
			return true
		}
		r.Header.Del("Authorization")
		if !strings.Contains(r.URL.Path, "/blobs/") {
			return false
		}
		http.Redirect(w, r, store.URL+r.URL.Path, http.StatusTemporaryRedirect)
		return true
	})
	toml := fmt.Sprintf("server = \"http://%s\"\n[host.\"http://%s\"]\n[host.\"http://%s\".header]\nX-Secret = \"mine\"\n", front.host, front.host, front.host)
	login := Auth{Username: "me", Password: "s3cret"}
	if _, err := newStore(t, hostsToml(t, front.host, toml)).Pull(t.Context(), front.host+"/app:1", login, nil); err != nil {
		t.Error(err)
	}
	asks.Store(true)
	_, err := newStore(t, hostsToml(t, front.host, toml)).Pull(t.Context(), front.host+"/app:1", login, nil)
	if CodeOf(err) != CodeUnauthorized || !strings.Contains(err.Error(), "it is given none") {
		t.Errorf("a host that was led to and asks for credentials: %v", err)
	}
	if v := leaked.Load(); v != nil {
		t.Errorf("another host was told %v", v)
	}

	ca := newAuthority(t)
	cert, _, _ := ca.issue(2)
	secure := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://"+host+r.URL.Path, http.StatusTemporaryRedirect)
	}))
	secure.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	secure.StartTLS()
	t.Cleanup(secure.Close)
	name := strings.TrimPrefix(secure.URL, "https://")
	s := newStore(t, hostsToml(t, name, fmt.Sprintf("server = %q\n[host.%q]\nca = %q\n", secure.URL, secure.URL, ca.file)))
	if _, err := s.Pull(t.Context(), name+"/app:1", Auth{}, nil); err == nil || !strings.Contains(err.Error(), "which is refused") {
		t.Errorf("led from https to http: %v", err)
	}
}

// TestHugeManifests has manifests claim or have more than is read.
func TestHugeManifests(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := small(t)
	b.push(host, "app", "1")
	big := append(bytes.Repeat([]byte(" "), maxManifest+1), b.blobs[b.manifest.Digest]...)
	for _, head := range []bool{true, false} {
		front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
			if !strings.Contains(r.URL.Path, "/manifests/") {
				return false
			}
			if r.Method == http.MethodHead && !head {
				w.WriteHeader(http.StatusMethodNotAllowed)
				return true
			}
			w.Header().Set("Content-Type", ocispec.MediaTypeImageManifest)
			if head {
				w.Header().Set("Docker-Content-Digest", b.manifest.Digest.String())
				w.Header().Set("Content-Length", fmt.Sprint(len(big)))
			}
			if r.Method == http.MethodGet {
				_, _ = w.Write(big)
			}
			return true
		})
		if _, err := newStore(t).Pull(t.Context(), front.host+"/app:1", Auth{}, nil); CodeOf(err) != CodeLimit {
			t.Errorf("HEAD %v: %v", head, err)
		}
	}
}

// TestCanceledPullLeavesNothing ends the only caller in the middle of a layer.
func TestCanceledPullLeavesNothing(t *testing.T) {
	t.Parallel()
	host := startRegistry(t)
	b := build(t, ocispec.ImageConfig{}, layerTar(t, file{name: "a", body: noise(1 << 20)}), layerTar(t, file{name: "b", body: "b"}))
	b.push(host, "app", "1")
	half := make(chan struct{})
	front := startProxy(t, host, func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, b.layers[0].Digest.String()) {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(b.layers[0].Size))
		_, _ = w.Write(b.blobs[b.layers[0].Digest][:500_000])
		w.(http.Flusher).Flush()
		close(half)
		<-r.Context().Done()
		return true
	})
	s := newStore(t)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-half
		time.Sleep(100 * time.Millisecond)
		cancel()
	}()
	if _, err := s.Pull(ctx, front.host+"/app:1", Auth{}, nil); CodeOf(err) != CodeCanceled {
		t.Fatalf("canceled: %v", err)
	}
	within(t, "everything removed", func() bool {
		left, err := filepath.Glob(filepath.Join(s.cfg.Root, "content", "*", "*"))
		if err != nil {
			t.Fatal(err)
		}
		blobs, err := filepath.Glob(filepath.Join(s.cfg.Root, "content/blobs/sha256/*"))
		if err != nil {
			t.Fatal(err)
		}
		return len(blobs) == 0 && len(left) <= 1 && layerCount(t, s) == 0
	})
}

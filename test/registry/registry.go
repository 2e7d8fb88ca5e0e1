// Package registry starts real image registries on loopback for tests, and
// stands before them to ask for credentials or to misbehave.
package registry

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/patience"
)

// Registry is one registry.
type Registry struct {
	// Address is host:port, as it stands in an image's name. Behind it is a
	// proxy that applies Fault.
	Address string
	// Direct is the registry itself, http://host:port: tests push there.
	Direct string
	fault  atomic.Pointer[http.HandlerFunc]
}

// Start starts docker-registry; it ends with the test. The test is skipped where
// the program is not installed.
func Start(t testing.TB) *Registry {
	t.Helper()
	program, err := exec.LookPath("docker-registry")
	if err != nil {
		t.Skip("needs docker-registry")
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	address := l.Addr().String()
	l.Close()
	dir := t.TempDir()
	conf := filepath.Join(dir, "registry.yml")
	body := fmt.Sprintf("version: 0.1\nlog: {level: error}\nstorage: {filesystem: {rootdirectory: %s/registry}}\nhttp: {addr: %s}\n", dir, address)
	if err := os.WriteFile(conf, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(program, "serve", conf)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	r := &Registry{Direct: "http://" + address}
	for end := time.Now().Add(patience.For(20 * time.Second)); ; time.Sleep(20 * time.Millisecond) {
		resp, err := http.Get(r.Direct + "/v2/")
		if err == nil {
			resp.Body.Close()
			break
		}
		if time.Now().After(end) {
			t.Fatalf("the registry does not answer: %v", err)
		}
	}
	to, err := url.Parse(r.Direct)
	if err != nil {
		t.Fatal(err)
	}
	forward := httputil.NewSingleHostReverseProxy(to)
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, q *http.Request) {
		if f := r.fault.Load(); f != nil {
			(*f)(w, q)
			return
		}
		forward.ServeHTTP(w, q)
	}))
	t.Cleanup(func() { proxy.CloseClientConnections(); proxy.Close() })
	r.Address = proxy.Listener.Addr().String()
	return r
}

// Push uploads spec as NAME:TAG and returns its digest.
func (r *Registry) Push(t testing.TB, name, tag string, spec image.Spec) string {
	t.Helper()
	digest, err := image.Push(r.Direct, name, tag, spec)
	if err != nil {
		t.Fatalf("push %s:%s: %v", name, tag, err)
	}
	return digest
}

// Fault makes every answer f's from now on; nil makes the registry well again.
func (r *Registry) Fault(f http.HandlerFunc) {
	if f == nil {
		r.fault.Store(nil)
		return
	}
	r.fault.Store(&f)
}

// Private makes the registry ask everybody for user and password.
func (r *Registry) Private(user, password string) {
	to, _ := url.Parse(r.Direct) // it is our own
	forward := httputil.NewSingleHostReverseProxy(to)
	r.Fault(func(w http.ResponseWriter, q *http.Request) {
		if u, p, ok := q.BasicAuth(); !ok || u != user || p != password {
			w.Header().Set("WWW-Authenticate", `Basic realm="private"`)
			http.Error(w, `{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}`, http.StatusUnauthorized)
			return
		}
		q.Header.Del("Authorization")
		forward.ServeHTTP(w, q)
	})
}

// Corrupt flips a bit of every blob that is served.
func (r *Registry) Corrupt() {
	to, _ := url.Parse(r.Direct) // it is our own
	forward := httputil.NewSingleHostReverseProxy(to)
	forward.ModifyResponse = func(resp *http.Response) error {
		if !strings.Contains(resp.Request.URL.Path, "/blobs/") || resp.Request.Method != http.MethodGet {
			return nil
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err
		}
		if len(body) > 0 {
			body[len(body)/2] ^= 1
		}
		resp.Body = io.NopCloser(bytes.NewReader(body))
		return nil
	}
	r.Fault(forward.ServeHTTP)
}

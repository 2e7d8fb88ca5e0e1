package source

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
)

func TestURL(t *testing.T) {
	var mu sync.Mutex
	body, status, hits, notModified := manifest("u", "i:1"), 200, 0, 0
	set := func(b string, s int) { mu.Lock(); body, status = b, s; mu.Unlock() }
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		hits++
		tag := fmt.Sprintf("%q", fmt.Sprint(len(body)))
		w.Header().Set("ETag", tag)
		switch {
		case r.Header.Get("Authorization") != "secret":
			w.WriteHeader(401)
		case status == 200 && r.Header.Get("If-None-Match") == tag:
			notModified++
			w.WriteHeader(304)
		default:
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}))
	defer server.Close()
	address := strings.Replace(server.URL, "http://", "http://user:hidden@", 1) + "/pods?token=hidden"
	root := t.TempDir()
	with := func(c *Config) {
		c.URLs = []URL{{Address: address, Header: http.Header{"Authorization": {"secret"}}}}
		c.Period = 5 * time.Millisecond
	}
	h := start(t, root, with)
	h.until("u", func() bool { return h.get("u") != nil })
	uid := h.get("u").Pod.UID
	h.until("conditional", func() bool { mu.Lock(); defer mu.Unlock(); return notModified > 1 })
	set("gone", 503)
	h.until("problem", func() bool { return len(h.Problems()) == 1 })
	if p := h.Problems()[0].String(); strings.Contains(p, "hidden") || !strings.Contains(p, "503") {
		t.Errorf("problem: %s", p)
	}
	if h.get("u") == nil {
		t.Error("a failing server took the pod")
	}
	h.stop()
	h = start(t, root, with) // the server still fails
	h.until("last good content after a restart", func() bool { return h.get("u") != nil })
	if h.get("u").Pod.UID != uid {
		t.Error("another UID after a restart")
	}
	set("", 200)
	h.until("an empty answer is a problem", func() bool { return len(h.Problems()) == 1 && strings.Contains(h.Problems()[0].Message, "empty") })
	set("apiVersion: v1\nkind: PodList\nitems: []\n", 200)
	h.until("removed", func() bool { return h.get("u") == nil && len(h.Problems()) == 0 })
}

func TestStdinAndSymlinks(t *testing.T) {
	dir, target := t.TempDir(), t.TempDir()
	write(t, filepath.Join(target, "x"), manifest("linked", "i"))
	write(t, filepath.Join(dir, ".hidden"), manifest("hidden", "i"))
	write(t, filepath.Join(dir, "backup~"), manifest("backup", "i"))
	h := start(t, t.TempDir(), func(c *Config) {
		c.Paths = []string{Stdin, dir}
		c.Stdin = strings.NewReader(manifest("in", "i"))
	})
	h.until("in", func() bool { return h.get("in") != nil })
	if err := os.Symlink(filepath.Join(target, "x"), filepath.Join(dir, "l.yaml")); err != nil {
		t.Fatal(err)
	}
	h.until("linked", func() bool { return h.get("linked") != nil })
	if h.get("hidden") != nil || h.get("backup") != nil {
		t.Error("hidden or backup files were read")
	}
}

func TestConfigIsChecked(t *testing.T) {
	ok := Config{Node: "n", Root: "/r", Deliver: func(pod.Source, []pod.Desired) {}, Logger: slog.New(slog.DiscardHandler)}
	for name, change := range map[string]func(*Config){
		"no node":   func(c *Config) { c.Node = "" },
		"no stdin":  func(c *Config) { c.Paths = []string{"-"} },
		"twice":     func(c *Config) { c.Paths = []string{"/a", "/a/"} },
		"not a URL": func(c *Config) { c.URLs = []URL{{Address: "file:///x"}} },
	} {
		c := ok
		change(&c)
		if _, err := New(c); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
	if _, err := New(ok); errors.Is(err, os.ErrInvalid) || err != nil {
		t.Error(err)
	}
}

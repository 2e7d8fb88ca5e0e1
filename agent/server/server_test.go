package server

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/agent/pod"
)

func TestAnswers(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("app", pod.SourceRun), snapshot("web", pod.SourceFile)}, hold: make(chan struct{})}
	close(n.hold)
	c, _, _ := serve(t, n)
	for _, x := range []struct {
		ask, body string
		code      int
		has       []string
	}{
		{"GET /healthz", "", 200, []string{"ok"}},
		{"GET /version", "", 200, []string{`"berth":"v1"`}},
		{"GET /pods", "", 200, []string{`"kind":"PodList"`, `"name":"web"`, `"phase":"Running"`}},
		{"GET /pods?namespace=kube", "", 200, []string{`"items":[]`}},
		{"GET /berth/v1/pods/default/web", "", 200, []string{`"op":"pull-image","container":"late"`, `"manifest":"/m/web.yaml"`, `"problems":[{"file":"/m/web.yaml"`}},
		{"GET /berth/v1/pods/kube/web", "", 404, []string{`"reason":"NotFound"`, `there is one in namespace \"default\"`}},
		{"GET /berth/v1/why/default/web", "", 200, []string{`"pod":"default/web"`, `"cause":"The image cannot be pulled."`, `{"name":"late","state":"waiting","detail":"ErrImagePull: no route"}`}},
		{"GET /berth/v1/events?pod=web", "", 200, []string{`"kind":"EventList"`, `"reason":"Started"`}},
		{"GET /berth/v1/events?watch=maybe", "", 400, []string{"expected 1, true, 0 or false"}},
		{"POST /berth/v1/apply?dryRun=1", "good", 200, []string{`"applied":[{"kind":"Pod","namespace":"default","name":"web","change":"created"}]`, `"line":3`}},
		{"POST /berth/v1/apply", "bad", 422, []string{`"kind":"Status"`, `"applied":[]`, `"problems":[{`, "nothing was applied: unknown field"}},
		{"POST /berth/v1/apply", "disk", 507, []string{"the disk is full"}},
		{"POST /berth/v1/apply", strings.Repeat("x", maxApplyBody+1), 413, []string{"RequestEntityTooLarge"}},
		{"GET /berth/v1/problems", "", 200, []string{"other.yaml"}},
		{"POST /berth/v1/stop/default/web", "", 409, []string{"/m/web.yaml", "remove that file"}},
		{"POST /berth/v1/stop/default/app?grace=-1", "", 400, []string{"seconds"}},
		{"GET /berth/v1/images", "", 200, []string{`{"id":"sha256:1","tags":[],"digests":[],"size":7,"pinned":false,"inUse":4}`, `"inUse":0`}},
		{"POST /berth/v1/images/pull", "", 400, []string{"name an image"}},
		{"POST /berth/v1/images/pull?image=x", `{"username":"u"`, 400, []string{"not of the form"}},
		{"POST /berth/v1/images/pull?image=none", "", 200, []string{`"phase":"downloading"`, `{"error":"pull: no such image"}`}},
		{"POST /berth/v1/images/pull?image=x", `{"username":"u","password":"p"}`, 200, []string{"\n" + `{"image":{"id":"sha256:1"`}},
		{"POST /berth/v1/images/import", "abcdefgh", 200, []string{`{"images":[{"id":"sha256:1"`}},
		{"POST /berth/v1/images/verify", "", 200, []string{`{"damaged":[{"digest":"sha256:3"`}},
		{"DELETE /berth/v1/images?image=none", "", 404, []string{"no such image"}},
		{"DELETE /berth/v1/images?image=x", "", 200, []string{"{}"}},
		{"GET /berth/v1/audit", "", 200, []string{`{"leaks":[]}`}},
		{"GET /containerLogs/default/web/main", "", 200, []string{"out /log/1.log", "err /log/1.log"}},
		{"GET /containerLogs/default/web/main?previous=true&stream=Stderr", "", 200, []string{"err /log/0.log"}},
		{"GET /containerLogs/default/web/late", "", 400, []string{"ErrImagePull: no route", "The image cannot be pulled. It is tried again."}},
		{"GET /containerLogs/default/web/late?previous=1", "", 400, []string{"has no previous instance"}},
		{"GET /containerLogs/default/web/no", "", 404, []string{"it has main, late"}},
		{"GET /containerLogs/default/web/main?tailLines=x", "", 400, []string{"whole number"}},
		{"POST /exec/default/web/main?command=ls&command=-l&output=1&error=1&tty=1", "", 200, []string{"exec c1"}},
		{"POST /exec/default/web/main?output=1", "", 400, []string{"name a command"}},
		{"POST /exec/default/web/late?command=ls&output=1", "", 409, []string{"is not running"}},
		{"GET /attach/default/web/main?input=1", "", 200, []string{"attach c1"}},
		{"POST /portForward/default/web?port=80&port=81", "", 200, []string{"forward box[80 81]"}},
		{"POST /portForward/default/web?port=0", "", 400, []string{"1 to 65535"}},
		{"GET /nothing", "", 404, []string{`"kind":"Status"`, "another version"}},
	} {
		method, path, _ := strings.Cut(x.ask, " ")
		code, got := call(t, c, method, path, x.body)
		if code != x.code {
			t.Errorf("%s: %d %s", x.ask, code, got)
		}
		for _, want := range x.has {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", x.ask, got, want)
			}
		}
	}
	if !n.logs.Since.IsZero() || n.logs.Tail != -1 || n.exec.Stderr || len(n.exec.Cmd) != 2 || n.auth.Password != "p" {
		t.Errorf("passed on: logs %+v, exec %v", n.logs, n.exec)
	}
}

func TestStop(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("app", pod.SourceRun), snapshot("web", pod.SourceFile)}}
	c, _, end := serve(t, n)
	if code, got := call(t, c, "POST", "/berth/v1/stop/default/app?grace=5", ""); code != 202 || got != `{"stopping":"default/app"}` {
		t.Errorf("%d %s", code, got)
	}
	if code, got := call(t, c, "POST", "/berth/v1/stop/default/web?force=1", ""); code != 202 {
		t.Errorf("%d %s", code, got)
	}
	end()
	if g := n.terminated["uid-app"].Grace; g == nil || *g != 5*time.Second || len(n.terminated) != 2 || n.terminated["uid-web"].Grace != nil {
		t.Errorf("terminated %+v", n.terminated)
	}
	if len(n.removed) != 1 || n.removed[0] != "default/app" {
		t.Errorf("removed %v", n.removed)
	}
}

// open begins a stream; next reads a line of it.
func open(t *testing.T, c *http.Client, ctx context.Context, method, path string, body io.Reader) (next func() map[string]any) {
	t.Helper()
	r, err := http.NewRequestWithContext(ctx, method, "http://berth"+path, body)
	if err != nil {
		t.Fatal(err)
	}
	a, err := c.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Body.Close() })
	in := bufio.NewReader(a.Body)
	return func() map[string]any {
		line, err := in.ReadBytes('\n')
		if err != nil {
			return nil
		}
		m := map[string]any{}
		if err := json.Unmarshal(line, &m); err != nil {
			t.Errorf("%s: %v", line, err)
		}
		return m
	}
}

func TestWatchAndEnd(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("web", pod.SourceFile)}}
	c, path, end := serve(t, n)
	next := open(t, c, t.Context(), "GET", "/berth/v1/watch?namespace=default", nil)
	changed, gone, stranger := snapshot("web", pod.SourceFile), snapshot("web", pod.SourceFile), snapshot("x", pod.SourceFile)
	changed.At, gone.At = time.Unix(200, 0), time.Time{}
	stranger.Desired.Pod.Namespace = "other"
	go func() {
		for _, s := range []pod.Snapshot{snapshot("web", pod.SourceFile), changed, stranger, gone, changed} {
			n.changes <- s
		}
	}()
	for _, want := range []string{"ADDED", "BOOKMARK", "MODIFIED", "DELETED", "ADDED"} {
		if m := next(); m["type"] != want || want != "BOOKMARK" && m["explanation"] == nil {
			t.Fatalf("got %v, want %s", m, want)
		}
	}
	events := open(t, c, t.Context(), "GET", "/berth/v1/events?watch=1", nil)
	if m := events(); m["reason"] != "Started" {
		t.Errorf("event %v", m)
	}
	end() // returns though two watches are open
	if m := next(); m != nil {
		t.Errorf("after the end: %v", m)
	}
	if _, err := os.Stat(path); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket stays: %v", err)
	}
}

func TestPullEndsWithItsClient(t *testing.T) {
	n := &node{hold: make(chan struct{})}
	c, _, _ := serve(t, n)
	ctx, leave := context.WithCancel(t.Context())
	if m := open(t, c, ctx, "POST", "/berth/v1/images/pull?image=x", nil)(); m["phase"] != "downloading" {
		t.Errorf("got %v", m)
	}
	leave() // the server's end waits for the pull, which only ends with its client
}

func TestImportReportsWhileItReads(t *testing.T) {
	c, _, _ := serve(t, &node{})
	r, w := io.Pipe()
	lines := make(chan map[string]any, 1)
	go func() { w.Write([]byte("abcd")) }()
	next := open(t, c, t.Context(), "POST", "/berth/v1/images/import", r)
	go func() { lines <- next() }()
	if m := <-lines; m["phase"] != "abcd" { // the body has not ended
		t.Errorf("got %v", m)
	}
	w.Close()
	for m := next(); ; m = next() {
		if m["images"] != nil {
			return
		}
		if m == nil {
			t.Fatal("no images at the end")
		}
	}
}

func TestFollowEndsWithTheContainer(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("web", pod.SourceFile)}}
	c, _, _ := serve(t, n)
	go func() {
		time.Sleep(20 * time.Millisecond)
		n.mu.Lock()
		defer n.mu.Unlock()
		ended := snapshot("web", pod.SourceFile)
		ended.Observed.Containers[0].State = pod.Exited
		n.pods = []pod.Snapshot{ended}
	}()
	if code, got := call(t, c, "GET", "/containerLogs/default/web/main?follow=true", ""); code != 200 || !strings.Contains(got, "out /log/1.log") {
		t.Errorf("%d %s", code, got)
	}
}

func TestSocket(t *testing.T) {
	n := &node{}
	_, path, _ := serve(t, n)
	if i, err := os.Stat(path); err != nil || i.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", i.Mode(), err)
	}
	other := New(Config{Log: slog.New(slog.DiscardHandler)})
	if err := other.Serve(t.Context(), path); err == nil || !strings.Contains(err.Error(), "another agent answers") {
		t.Errorf("a second agent: %v", err)
	}
	stale := filepath.Join(t.TempDir(), "s.sock")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	replaced, err := listen(stale)
	if err != nil {
		t.Fatalf("a stale socket: %v", err)
	}
	replaced.Close()
}

func TestOnlyRoot(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root, to become another user")
	}
	dir, err := os.MkdirTemp("", "berth-server-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	var log bytes.Buffer
	s := New(Config{Log: slog.New(slog.NewTextHandler(&log, nil))})
	ctx, cancel := context.WithCancel(t.Context())
	path, done := filepath.Join(dir, "a.sock"), make(chan error, 1)
	go func() { done <- s.Serve(ctx, path) }()
	for os.Chmod(path, 0o666) != nil { // the mode lets everybody in
		time.Sleep(time.Millisecond)
	}
	answer := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if _, _, e := syscall.RawSyscall(syscall.SYS_SETRESUID, 65534, 65534, 65534); e != 0 {
			answer <- nil
			return
		}
		c, err := net.Dial("unix", path)
		if err == nil {
			fmt.Fprint(c, "GET /healthz HTTP/1.0\r\n\r\n")
			_, err = c.Read(make([]byte, 1))
		}
		answer <- err
	}()
	if err := <-answer; err == nil {
		t.Error("another user was answered")
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if !strings.Contains(log.String(), "uid=65534") {
		t.Errorf("the refusal is not logged: %s", &log)
	}
}

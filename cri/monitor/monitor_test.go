package monitor

import (
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"golang.org/x/sys/unix"
)

// lying is a conmon that does what the script says. It is given conmon's pipes:
// 3 to answer on, 4 to wait on.
func lying(t *testing.T, body string) *Monitor {
	t.Helper()
	dir := t.TempDir()
	path := filepath.Join(dir, "conmon")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	rt := ociruntime.New(ociruntime.Binary{Name: "crun", Path: "/bin/true"}, filepath.Join(dir, "oci"), false, ociruntime.Direct{})
	m, err := Open(Config{Path: path, Runtime: rt, Starter: ociruntime.Direct{}, ExitDir: filepath.Join(dir, "exits"), Log: slog.New(slog.DiscardHandler)})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- m.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		for range m.Hints() {
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return m
}

func bundle(t *testing.T) string {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, NextConfig), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	return dir
}

func recorded(Identity) error { return nil }

func hint(t *testing.T, m *Monitor) Hint {
	t.Helper()
	select {
	case h := <-m.Hints():
		return h
	case <-time.After(10 * time.Second):
		t.Fatal("no hint")
		return Hint{}
	}
}

func TestCreate(t *testing.T) {
	m := lying(t, `head -c1 <&4 >/dev/null; test -f config.json || exit 3; echo "{\"pid\": $$}" >&3; exec sleep 0.2`)
	dir := bundle(t)
	var conmon Identity
	who, err := m.Create(t.Context(), Container{ID: "c1", Name: "n", Bundle: dir, PersistDir: dir, Recorded: func(i Identity) error {
		conmon = i
		if _, err := os.Stat(filepath.Join(dir, "config.json")); err == nil {
			t.Error("the specification was in place before the monitor was on record")
		}
		return nil
	}})
	if err != nil || who.PID != conmon.PID || !who.Alive() {
		t.Fatalf("%+v %+v %v", who, conmon, err)
	}
	if h := hint(t, m); h != (Hint{Gone, "c1"}) {
		t.Errorf("hint %+v", h)
	}
	if conmon.Alive() {
		t.Error("the monitor has not been reaped")
	}
}

func TestCreateFailures(t *testing.T) {
	for name, tc := range map[string]struct {
		body, say string
		kind      ociruntime.Kind
	}{
		"runtime's error": {`head -c1 <&4 >/dev/null; echo '{"pid": -1, "message": "executable file ` + "`x`" + ` not found in $PATH"}' >&3`, `the command "x" is not in the image`, ociruntime.CommandNotFound},
		"says why":        {`echo '[conmon:e]: log path is bad' >&2; exit 1`, "log path is bad", -1},
		"says nothing":    {`head -c1 <&4 >/dev/null; exit 1`, "it said nothing", -1},
		"garbage":         {`head -c1 <&4 >/dev/null; echo garbage >&3; exit 1`, "ended before the container existed", -1},
	} {
		t.Run(name, func(t *testing.T) {
			m := lying(t, tc.body)
			dir := bundle(t)
			_, err := m.Create(t.Context(), Container{ID: "c", Bundle: dir, PersistDir: dir, Recorded: recorded})
			if err == nil || !strings.Contains(err.Error(), tc.say) {
				t.Errorf("%v, want %q", err, tc.say)
			}
			var rt *ociruntime.Error
			if errors.As(err, &rt) != (tc.kind >= 0) || rt != nil && rt.Kind != tc.kind {
				t.Errorf("%#v", err)
			}
			hint(t, m) // it has been reaped
		})
	}
}

func TestCreateGivenUp(t *testing.T) {
	m := lying(t, `exec sleep 100`)
	dir := bundle(t)
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	var conmon Identity
	_, err := m.Create(ctx, Container{ID: "c", Bundle: dir, PersistDir: dir, Recorded: func(i Identity) error { conmon = i; return nil }})
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("%v", err)
	}
	hint(t, m)
	if conmon.Alive() {
		t.Error("the monitor still runs")
	}
	full := errors.New("disk full")
	if _, err = m.Create(t.Context(), Container{ID: "d", Bundle: dir, PersistDir: dir, Recorded: func(Identity) error { return full }}); !errors.Is(err, full) {
		t.Errorf("%v", err)
	}
	hint(t, m)
}

func TestExitFiles(t *testing.T) {
	m := lying(t, "")
	if _, ok, err := m.ReadExit("c"); ok || err != nil {
		t.Fatalf("nothing: %v %v", ok, err)
	}
	write := func(id, content string) {
		t.Helper()
		temp := filepath.Join(m.cfg.ExitDir, id+".TMP")
		if err := os.WriteFile(temp, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Rename(temp, filepath.Join(m.cfg.ExitDir, id)); err != nil {
			t.Fatal(err)
		}
	}
	write("c", "42")
	if h := hint(t, m); h != (Hint{Exited, "c"}) {
		t.Errorf("hint %+v", h)
	}
	e, ok, err := m.ReadExit("c")
	if !ok || err != nil || e.Code != 42 || time.Since(e.At) > time.Minute {
		t.Errorf("%+v %v %v", e, ok, err)
	}
	write("d", "x")
	if _, ok, err = m.ReadExit("d"); ok || err == nil {
		t.Errorf("garbage: %v %v", ok, err)
	}
	for range 2 {
		if err := m.RemoveExit("c"); err != nil {
			t.Error(err)
		}
	}
}

func TestAdopt(t *testing.T) {
	m := lying(t, "")
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	who, err := Identify(cmd.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	if err := m.Adopt("old", who); err != nil {
		t.Fatal(err)
	}
	cmd.Process.Kill()
	if h := hint(t, m); h != (Hint{Gone, "old"}) {
		t.Errorf("hint %+v", h)
	}
	cmd.Wait()
	if err := m.Adopt("old", who); !errors.Is(err, ErrGone) {
		t.Errorf("adopting the dead: %v", err)
	}
}

func TestIdentity(t *testing.T) {
	me, err := Identify(os.Getpid())
	if err != nil || !me.Alive() {
		t.Fatalf("%+v %v", me, err)
	}
	other := me
	other.Start++ // the same pid, another process
	if other.Alive() || !errors.Is(other.Signal(unix.SIGKILL), ErrGone) {
		t.Error("a pid was taken for its former owner")
	}
	if (Identity{}).Alive() || !errors.Is((Identity{}).Signal(unix.SIGKILL), ErrGone) {
		t.Error("nobody is alive")
	}
	zombie := exec.Command("true")
	if err := zombie.Start(); err != nil {
		t.Fatal(err)
	}
	z, err := Identify(zombie.Process.Pid)
	if err != nil {
		t.Fatal(err)
	}
	for end := time.Now().Add(5 * time.Second); z.Alive(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("a zombie counts as alive")
		}
	}
	zombie.Wait()
}

func TestControlWithoutMonitor(t *testing.T) {
	dir := t.TempDir()
	if err := ReopenLog(dir); !errors.Is(err, ErrGone) {
		t.Errorf("no pipe: %v", err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "ctl"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := Resize(dir, 24, 80); !errors.Is(err, ErrGone) {
		t.Errorf("no reader: %v", err)
	}
	if _, err := Attach(dir); err == nil {
		t.Error("attached to nothing")
	}
}

func TestParseInotify(t *testing.T) {
	b := make([]byte, 16+8)
	binary.NativeEndian.PutUint32(b[4:], unix.IN_MOVED_TO)
	binary.NativeEndian.PutUint32(b[12:], 8)
	copy(b[16:], "abc")
	if e := parseInotify(b); e.name != "abc" || e.length != 8 || e.mask != unix.IN_MOVED_TO {
		t.Errorf("%+v", e)
	}
	binary.NativeEndian.PutUint32(b[12:], 1<<30) // longer than what was read
	if e := parseInotify(b); e.length != 8 {
		t.Errorf("%+v", e)
	}
}

func TestMissingConmon(t *testing.T) {
	if _, err := Open(Config{Path: "/nonesuch/conmon", ExitDir: t.TempDir()}); err == nil || !strings.Contains(err.Error(), "apt-get install conmon") {
		t.Errorf("%v", err)
	}
}

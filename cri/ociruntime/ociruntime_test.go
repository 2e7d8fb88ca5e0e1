package ociruntime

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func TestParseVersion(t *testing.T) {
	for out, want := range map[string]string{
		"crun version 1.8.1\ncommit: x\nspec: 1.0.0\n+SYSTEMD +SECCOMP +YAJL\n": "crun 1.8.1 3",
		"runc version 1.1.5+ds1\ncommit: x\nlibseccomp: 2.5.4\n":                "runc 1.1.5+ds1 1",
		"runc version 1.2-rc.1\n":   "runc 1.2-rc.1 0",
		"crun version 1.0\n":        "",
		"runc version 1.0.0-rc93\n": "",
		"youki version 0.3.3\n":     "",
		"crun version unknown\n":    "",
		"":                          "",
	} {
		b, err := parseVersion(out)
		got := ""
		if err == nil {
			got = strings.Join([]string{b.Name, b.Version, string(rune('0' + len(b.Features)))}, " ")
		}
		if got != want {
			t.Errorf("%q: %q (%v), want %q", out, got, err, want)
		}
	}
}

// The texts are what crun 1.8 and runc 1.1 really print.
func TestClassify(t *testing.T) {
	for _, tc := range []struct {
		runtime, text string
		kind          Kind
		say           string
	}{
		{"crun", "executable file `nonesuch` not found in $PATH: No such file or directory", CommandNotFound, `the command "nonesuch" is not in the image`},
		{"runc", `time="2026-01-02T03:04:05Z" level=error msg="runc create failed: unable to start container process: exec: \"nonesuch\": executable file not found in $PATH"`, CommandNotFound, `the command "nonesuch" is not in the image`},
		{"runc", `time="2026-01-02T03:04:05Z" level=error msg="runc create failed: unable to start container process: exec: \"/bin/x\": stat /bin/x: no such file or directory"`, CommandNotFound, `"/bin/x"`},
		{"crun", "open executable: Operation not permitted", CommandDenied, "may not be executed"},
		{"runc", `level=error msg="runc create failed: unable to start container process: error during container init: mkdir /etc/passwd: not a directory"`, BadWorkingDir, `the working directory "/etc/passwd" cannot be entered`},
		{"runc", `level=error msg="runc create failed: unable to start container process: exec: \"/etc\": permission denied"`, CommandDenied, `the command "/etc" may not be executed`},
		{"crun", "mount `/tmp/file` to `etc`: Not a directory", BadMount, `mount of "/tmp/file"`},
		{"runc", `level=error msg="runc create failed: unable to start container process: error during container init: error mounting \"/tmp/file\" to rootfs at \"/etc\": mount /tmp/file:/etc (via /proc/self/fd/6), flags: 0x5000: not a directory"`, BadMount, `mount of "/tmp/file"`},
		{"crun", "error opening file `/run/x/c/status`: No such file or directory", NotFound, "does not know"},
		{"runc", `level=error msg="container does not exist"`, NotFound, "does not know"},
		{"crun", "container `t1` is not running", NotRunning, "not running"},
		{"crun", "2026-01-02T03:04:05.678Z: something else", Unknown, "crun create failed: something else"},
		{"runc", "", Unknown, "said nothing"},
		{"runc", `{"level":"warning","msg":"noise"}` + "\n" + `{"level":"error","msg":"runc create failed: last word"}` + "\n", Unknown, "last word"},
	} {
		e := Classify(tc.runtime, "create", tc.text)
		if e.Kind != tc.kind || !strings.Contains(e.Error(), tc.say) || strings.Contains(e.Error(), "%!") || strings.Contains(e.Error(), "level=") {
			t.Errorf("%q:\n%v %q, want %v %q", tc.text, e.Kind, e, tc.kind, tc.say)
		}
	}
}

func FuzzClassify(f *testing.F) {
	f.Add("exec: \"x\": permission denied")
	f.Fuzz(func(t *testing.T, s string) {
		if e := Classify("crun", "create", s); e.Message == "" || len(e.Message) > 4096+4*len("%") {
			t.Errorf("message of %d bytes for %q", len(e.Message), s)
		}
	})
}

// script makes an executable that behaves as the test says.
func script(t *testing.T, body string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "runtime")
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+body), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

func TestFind(t *testing.T) {
	good := script(t, "echo crun version 1.9; echo +SECCOMP")
	b, err := Find(t.Context(), good)
	if err != nil || b.Name != "crun" || b.Path != good || b.Why != "crun 1.9 is configured" {
		t.Errorf("%+v %v", b, err)
	}
	if _, err := Find(t.Context(), script(t, "echo crun version 0.1")); err == nil || !strings.Contains(err.Error(), "too old") {
		t.Errorf("old: %v", err)
	}
	dir := filepath.Dir(good)
	if err := os.Rename(good, filepath.Join(dir, "runc")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "runc"), []byte("#!/bin/sh\necho runc version 1.1.5\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	t.Setenv("PATH", dir)
	if b, err = Find(t.Context(), ""); err != nil || b.Name != "runc" || !strings.Contains(b.Why, "crun is not installed") {
		t.Errorf("%+v %v", b, err)
	}
	t.Setenv("PATH", t.TempDir())
	if _, err = Find(t.Context(), ""); err == nil || !strings.Contains(err.Error(), "apt-get install crun") {
		t.Errorf("none: %v", err)
	}
}

func TestCalls(t *testing.T) {
	lying := script(t, `
case "$2 $3" in
"start slow") sleep 60 ;;
"start loud") head -c 10000000 /dev/zero | tr '\0' x >&2; exit 1 ;;
"state good") echo '{"id":"good","status":"running","pid":7}' ;;
"state bad") echo '{' ;;
"delete gone") echo 'container does not exist' >&2; exit 1 ;;
"delete alive") echo 'container alive is not stopped' >&2; exit 1 ;;
"delete --force") echo "$4" > "$0.forced" ;;
"update --resources") cat > "$0.in" ;;
esac`)
	r := New(Binary{Name: "crun", Path: lying}, "/nowhere", false, Direct{})
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	began := time.Now()
	if err := r.Start(ctx, "slow"); !isKind(err, Timeout) || !errors.Is(err, context.DeadlineExceeded) || time.Since(began) > 10*time.Second {
		t.Errorf("slow: %v after %v", err, time.Since(began))
	}
	if err := r.Start(t.Context(), "loud"); err == nil || len(err.Error()) > 4096 {
		t.Errorf("loud: %d bytes", len(err.Error()))
	}
	if s, err := r.State(t.Context(), "good"); err != nil || s.Status != "running" || s.Pid != 7 {
		t.Errorf("%+v %v", s, err)
	}
	if _, err := r.State(t.Context(), "bad"); err == nil {
		t.Error("half an answer was accepted")
	}
	if err := r.Delete(t.Context(), "gone"); err != nil {
		t.Errorf("delete of what is gone: %v", err)
	}
	if err := r.Delete(t.Context(), "alive"); err != nil {
		t.Errorf("delete of what has not ended: %v", err)
	}
	if b, _ := os.ReadFile(lying + ".forced"); string(b) != "alive\n" {
		t.Errorf("force was used on %q", b)
	}
	limit := int64(5)
	if err := r.Update(t.Context(), "c", specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: &limit}}); err != nil {
		t.Error(err)
	}
	if b, _ := os.ReadFile(lying + ".in"); string(b) != `{"memory":{"limit":5}}` {
		t.Errorf("update was given %s", b)
	}
	missing := New(Binary{Name: "crun", Path: "/nonesuch"}, "/nowhere", true, Direct{})
	if err := missing.Start(t.Context(), "c"); !isKind(err, Unusable) {
		t.Errorf("missing runtime: %v", err)
	}
	if got := missing.GlobalArgs(); len(got) != 2 || got[1] != "--systemd-cgroup" {
		t.Errorf("arguments %v", got)
	}
}

// What is on this machine answers as the package expects.
func TestInstalled(t *testing.T) {
	for _, name := range []string{"crun", "runc"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Logf("%s is not installed: not tried", name)
			continue
		}
		b, err := Find(t.Context(), path)
		if err != nil || b.Name != name || len(b.Features) == 0 {
			t.Errorf("%+v %v", b, err)
		}
	}
}

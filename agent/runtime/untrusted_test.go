package runtime

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHostsFileWithoutEnd has a container make /etc/hosts a hole of a terabyte: the
// agent reads no more than what it would write itself.
func TestHostsFileWithoutEnd(t *testing.T) {
	b := newBench(t)
	dir := t.TempDir()
	path, err := b.writeHosts(b.pod, dir, []string{"10.0.0.1"})
	if err != nil {
		t.Fatal(err)
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Skipf("no file with holes here: %v", err)
	}
	if _, err := b.writeHosts(b.pod, dir, []string{"10.0.0.1"}); err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(path); err != nil || st.Size() != int64(len(want)) {
		t.Errorf("the file was not written again: %v, %v", st.Size(), err)
	}
}

// TestTerminationMessageOfUntrusted reads termination messages and logs that are
// links out of the pod's directory, pipes, or without end.
func TestTerminationMessageOfUntrusted(t *testing.T) {
	b := newBench(t)
	dir := filepath.Join(b.podDir("u"), "containers", "c")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	secret := filepath.Join(t.TempDir(), "secret")
	if err := os.WriteFile(secret, []byte("secret"), 0o644); err != nil {
		t.Fatal(err)
	}
	status := func(path, log string) *cri.ContainerStatus {
		return &cri.ContainerStatus{ExitCode: 1, LogPath: log, Mounts: []*cri.Mount{{ContainerPath: "/dev/termination-log", HostPath: path}}, Annotations: map[string]string{
			annotationTerminationPath: "/dev/termination-log", annotationTerminationPolicy: string(v1.TerminationMessageFallbackToLogsOnError),
		}}
	}
	for name, make := range map[string]func(string) error{
		"link": func(p string) error { return os.Symlink(secret, p) }, "relative": func(p string) error { return os.Symlink(strings.Repeat("../", 12)+secret[1:], p) },
		"pipe": func(p string) error { return unix.Mkfifo(p, 0o666) }, "directory": func(p string) error { return os.Mkdir(p, 0o755) },
	} {
		path := filepath.Join(dir, name)
		if err := make(path); err != nil {
			t.Fatal(err)
		}
		if got := b.message("u", status(path, filepath.Join(b.cfg.LogDir, "none"))); got != "" {
			t.Errorf("%s: %q", name, got)
		}
		log := filepath.Join(b.cfg.LogDir, name)
		if err := os.MkdirAll(b.cfg.LogDir, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := make(log); err != nil {
			t.Fatal(err)
		}
		if got := b.message("u", status("", log)); got != "" {
			t.Errorf("log as a %s: %q", name, got)
		}
	}
	for _, path := range []string{secret, "/etc/passwd", filepath.Join(dir, "../../../../"+secret), "relative"} {
		if got := b.message("u", status(path, path)); got != "" {
			t.Errorf("%s: %q", path, got)
		}
	}
	path := filepath.Join(dir, "endless")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, 1<<40); err != nil {
		t.Skipf("no file with holes here: %v", err)
	}
	if got := b.message("u", status(path, "")); len(got) > maxMessage {
		t.Errorf("a message of %d bytes", len(got))
	}
	if err := os.WriteFile(path, []byte(strings.Repeat("x", 9000)), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := b.message("u", status(path, "")); len(got) != maxMessage {
		t.Errorf("a message of %d bytes, want the last %d", len(got), maxMessage)
	}
}

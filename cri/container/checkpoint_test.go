package container

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/ociruntime"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

func TestCheckpointIsRefused(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	for _, location := range []string{"", "archive.tar", n.dir + "/../archive.tar", n.dir + "//archive.tar"} {
		if err := n.store.Checkpoint(t.Context(), id, location, 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("location %q: %v", location, err)
		}
	}
	if err := n.store.Checkpoint(t.Context(), "nonesuch", n.dir+"/a", 0); !errdefs.IsNotFound(err) {
		t.Errorf("no container: %v", err)
	}
	rt := n.store.cfg.Runtime
	if reason := rt.CanCheckpoint(t.Context()); reason != nil {
		err := n.store.Checkpoint(t.Context(), id, n.dir+"/a.tar", 0)
		if !errdefs.IsNotImplemented(err) || !strings.Contains(err.Error(), "CRIU") {
			t.Errorf("without CRIU: %v, want what is missing (%v)", err, reason)
		}
	}
	if left, _ := filepath.Glob(n.dir + "/.checkpoint-*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	ended := n.start(n.config("true"))
	n.exited(ended)
	if err := n.store.Checkpoint(t.Context(), ended, n.dir+"/a", 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("exited: %v", err)
	}
}

// With the real CRIU, where it works.
func TestCheckpoint(t *testing.T) {
	n := newNode(t, "runc")
	if err := n.store.cfg.Runtime.CanCheckpoint(t.Context()); err != nil {
		t.Skipf("not on this machine: %v", err)
	}
	id := n.start(n.config("sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; sleep 0.1; done"))
	to := filepath.Join(n.dir, "archive.tar")
	if err := n.store.Checkpoint(t.Context(), id, to, time.Minute); err != nil {
		t.Fatal(err)
	}
	parts := partsOf(t, to)
	if len(parts["checkpoint/inventory.img"]) == 0 || len(parts["dump.log"]) == 0 {
		t.Errorf("parts: %v", names(parts))
	}
	before := n.logOf(id)
	n.eventually("the container runs on", func() bool { return len(n.logOf(id)) > len(before) })
}

func names(parts map[string][]byte) (out []string) {
	for name := range parts {
		out = append(out, name)
	}
	return out
}

func partsOf(t *testing.T, path string) map[string][]byte {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if st, _ := f.Stat(); st.Mode().Perm() != 0o600 || !st.Mode().IsRegular() {
		t.Errorf("the archive's mode is %v", st.Mode())
	}
	return readTar(t, f)
}

func readTar(t *testing.T, r io.Reader) map[string][]byte {
	t.Helper()
	parts := map[string][]byte{}
	for tr := tar.NewReader(r); ; {
		h, err := tr.Next()
		if err == io.EOF {
			return parts
		}
		if err != nil {
			t.Fatal(err)
		}
		if parts[h.Name], err = io.ReadAll(tr); err != nil {
			t.Fatal(err)
		}
	}
}

// The archive of what CRIU left, without CRIU: its parts, a target that is a link,
// and a time that is over.
func TestCheckpointArchive(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	c := mustGet(n, id)
	work := t.TempDir()
	root, err := os.OpenRoot(work)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for name, body := range map[string]string{"images/inventory.img": "inventory", "images/pages-1.img": "pages", "dump.log": "log", "stats-dump": "stats"} {
		os.MkdirAll(filepath.Dir(filepath.Join(work, name)), 0o700)
		os.WriteFile(filepath.Join(work, name), []byte(body), 0o600)
	}
	os.Symlink("/etc/shadow", filepath.Join(work, "images/link"))
	var out bytes.Buffer
	if err := n.store.writeCheckpoint(t.Context(), c, root, &out); err != nil {
		t.Fatal(err)
	}
	parts := readTar(t, &out)
	for name, want := range map[string]string{"checkpoint/inventory.img": "inventory", "checkpoint/pages-1.img": "pages", "dump.log": "log", "stats-dump": "stats"} {
		if string(parts[name]) != want {
			t.Errorf("%s: %q, want %q", name, parts[name], want)
		}
	}
	if _, ok := parts["checkpoint/link"]; ok {
		t.Error("a link is followed")
	}
	var config checkpointConfig
	if err := json.Unmarshal(parts["config.dump"], &config); err != nil || config.ID != id || config.Name != "c" || config.Runtime != "crun" {
		t.Errorf("config.dump: %+v %v", config, err)
	}
	if !json.Valid(parts["spec.dump"]) || !json.Valid(parts["bind.mounts"]) {
		t.Errorf("spec.dump or bind.mounts: %v", names(parts))
	}
	over, cancel := context.WithCancel(t.Context())
	cancel()
	if err := n.store.writeCheckpoint(over, c, root, io.Discard); !errors.Is(err, context.Canceled) {
		t.Errorf("the time is over: %v", err)
	}
}

// What a container has changed: whiteouts are told, opaque directories marked,
// and nothing that it puts there is followed or waited for.
func TestCheckpointDiff(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root: whiteouts are devices")
	}
	dir := t.TempDir()
	os.MkdirAll(dir+"/d/opaque", 0o755)
	os.WriteFile(dir+"/d/file", []byte("content"), 0o640)
	os.Symlink("/etc/shadow", dir+"/d/link")
	if err := errors.Join(unix.Mknod(dir+"/d/gone", unix.S_IFCHR, 0), unix.Mkfifo(dir+"/d/fifo", 0o600)); err != nil {
		t.Fatal(err)
	}
	marked := unix.Setxattr(dir+"/d/opaque", "trusted.overlay.opaque", []byte("y"), 0) == nil
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	var out bytes.Buffer
	d := &diff{archive: &archive{Writer: tar.NewWriter(&out), ctx: t.Context()}, root: root}
	if err := errors.Join(fs.WalkDir(root.FS(), ".", d.add), d.Close()); err != nil {
		t.Fatal(err)
	}
	parts := readTar(t, &out)
	if string(parts["d/file"]) != "content" || len(parts["d/link"]) != 0 || len(d.deleted) != 1 || d.deleted[0] != "d/gone" {
		t.Errorf("%v, deleted %v", names(parts), d.deleted)
	}
	for _, name := range []string{"d/", "d/link", "d/fifo", "d/opaque/"} {
		if _, ok := parts[name]; !ok {
			t.Errorf("%s is missing in %v", name, names(parts))
		}
	}
	if _, ok := parts["d/opaque/.wh..wh..opq"]; ok != marked {
		t.Errorf("opaque: %v, want %v", ok, marked)
	}
}

// A file at the place of the archive, or a link there, is replaced. Fault
// injection: a false CRIU and runtime stand for the real ones.
func TestCheckpointReplacesALink(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	bin := n.store.cfg.Runtime.Binary()
	path := filepath.Join(n.dir, "false-runc")
	script := `#!/bin/sh
for a; do case $a in --image-path=*) i=${a#*=};; --work-path=*) w=${a#*=};; checkpoint) c=1;; esac; done
[ "$c" ] || exec ` + bin.Path + ` "$@"
case "$(cat ` + n.dir + `/fault 2>/dev/null)" in
hang) sleep 1000;;
fail) echo "(00.01) Error (criu/x.c:1): this fails" > $w/dump.log; echo "criu failed" >&2; exit 1;;
esac
echo inventory > $i/inventory.img; echo log > $w/dump.log
`
	if err := os.WriteFile(path, []byte(script), 0o700); err != nil {
		t.Fatal(err)
	}
	n.store.cfg.Runtime = ociruntime.New(ociruntime.Binary{Name: "runc", Path: path, Version: "1.5.2"}, filepath.Join(n.dir, "oci"), false, n.starter)
	dir, err := os.OpenRoot(n.dir)
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	victim := filepath.Join(n.dir, "victim")
	os.WriteFile(victim, []byte("untouched"), 0o644)
	os.Symlink(victim, filepath.Join(n.dir, "archive.tar"))
	c := mustGet(n, id)
	if err := n.store.checkpoint(t.Context(), c, dir, "archive.tar"); err != nil {
		t.Fatal(err)
	}
	if b, _ := os.ReadFile(victim); string(b) != "untouched" {
		t.Errorf("what the link led to was written: %q", b)
	}
	if parts := partsOf(t, filepath.Join(n.dir, "archive.tar")); string(parts["checkpoint/inventory.img"]) != "inventory\n" {
		t.Errorf("parts: %v", names(parts))
	}
	os.WriteFile(n.dir+"/fault", []byte("fail"), 0o600)
	if err := n.store.checkpoint(t.Context(), c, dir, "second.tar"); err == nil || !strings.Contains(err.Error(), "this fails") {
		t.Errorf("a failed dump: %v", err)
	}
	os.WriteFile(n.dir+"/fault", []byte("hang"), 0o600)
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := n.store.checkpoint(ctx, c, dir, "third.tar"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("a dump without end: %v", err)
	}
	for _, pattern := range []string{"/.checkpoint-*", "/second.tar", "/third.tar"} {
		if left, _ := filepath.Glob(n.dir + pattern); len(left) > 0 {
			t.Errorf("left: %v", left)
		}
	}
}

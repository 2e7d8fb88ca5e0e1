package snapshot

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/berthd/berth/cri/snapshot/layer"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) {
	if len(os.Args) > 1 && os.Args[1] == UnpackArg {
		UnpackMain()
	}
	os.Exit(m.Run())
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root, for overlay mounts")
	}
}

func dirs(t *testing.T, names ...string) map[string]string {
	t.Helper()
	out, root := map[string]string{}, t.TempDir()
	for _, n := range names {
		out[n] = filepath.Join(root, n)
		if err := os.Mkdir(out[n], 0o755); err != nil {
			t.Fatal(err)
		}
	}
	return out
}

func openRootfs(t *testing.T, dir string) *Rootfs {
	t.Helper()
	r, err := OpenRootfs(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// layerBlob writes a layer that removes "gone" and makes a device.
func layerBlob(t *testing.T) (path, diffID string, size int64) {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, h := range []*tar.Header{
		{Name: ".wh.gone", Typeflag: tar.TypeReg, Mode: 0o644},
		{Name: "dev/null", Typeflag: tar.TypeChar, Mode: 0o644, Devmajor: 1, Devminor: 3},
	} {
		if err := w.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	path = filepath.Join(t.TempDir(), "blob")
	if err := os.WriteFile(path, b.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	return path, fmt.Sprintf("sha256:%x", sha256.Sum256(b.Bytes())), int64(b.Len())
}

func TestUnpackOverLowerLayers(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := dirs(t, "lower", "upper", "work")
	if err := os.WriteFile(filepath.Join(d["lower"], "gone"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	blob, diffID, size := layerBlob(t)
	job := Job{Blob: blob, DiffID: diffID, Upper: d["upper"], Work: d["work"], Lower: []string{d["lower"]}, Mode: layer.Over}
	var read int64
	res, err := Unpack(t.Context(), job, func(n int64) { read = n })
	if err != nil || res.Entries != 2 || read != size {
		t.Fatalf("%+v, %d bytes read, %v", res, read, err)
	}
	// A whiteout in overlayfs is a character device 0/0.
	for _, name := range []string{"gone", "dev/null"} {
		if st, err := os.Lstat(filepath.Join(d["upper"], name)); err != nil || st.Mode()&os.ModeCharDevice == 0 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
	if mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(d["upper"])); err != nil || len(mounts) != 0 {
		t.Errorf("the child's mounts are seen here: %v, %v", mounts, err)
	}
	job.DiffID = "sha256:00"
	if _, err := Unpack(t.Context(), job, nil); FaultOf(err) != FaultDigest {
		t.Errorf("wrong digest: %v", err)
	}
}

// TestUnmountWorksOnEveryPrefix stops a Mount after each of its steps.
func TestUnmountWorksOnEveryPrefix(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := dirs(t, "rw", "lower")
	own := filepath.Join(d["rw"], "c")
	target := filepath.Join(t.TempDir(), "rootfs")
	ref := Ref{Container: "c", Image: "sha256:1", Chain: "sha256:2", Lower: []string{d["lower"]}, Target: target}
	steps := []func(r *Rootfs) error{
		func(*Rootfs) error { return nil },
		func(*Rootfs) error { return os.Mkdir(own, 0o700) },
		func(*Rootfs) error { return os.WriteFile(filepath.Join(own, "ref.tmp"), []byte("{"), 0o600) },
		func(r *Rootfs) error { return r.Pin(ref) },
		func(r *Rootfs) error { return r.prepare(own, ref, MountOptions{}) },
		func(r *Rootfs) error { return r.Mount("c", MountOptions{}) },
	}
	for last := range steps {
		for _, restart := range []bool{false, true} {
			r := openRootfs(t, d["rw"])
			for _, step := range steps[:last+1] {
				if err := step(r); err != nil {
					t.Fatal(err)
				}
			}
			if restart {
				r.Close()
				r = openRootfs(t, d["rw"])
			}
			for range 2 {
				if err := r.Unmount("c", target); err != nil {
					t.Errorf("after step %d: %v", last, err)
				}
			}
			r.Close()
			if mounted, err := mountinfo.Mounted(target); err == nil && mounted {
				t.Errorf("after step %d: still mounted", last)
			}
			if _, err := os.Lstat(own); err == nil || len(r.List()) != 0 {
				t.Errorf("after step %d: directory or ref is left", last)
			}
		}
	}
}

func TestKilledProbeIsUndone(t *testing.T) {
	t.Parallel()
	needRoot(t)
	rw := filepath.Join(t.TempDir(), "rw")
	dir := filepath.Join(rw, probeDir)
	for _, n := range []string{"lower", "upper", "work", "target"} {
		if err := os.MkdirAll(filepath.Join(dir, n), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	target := filepath.Join(dir, "target")
	if err := overlayMount(target, []string{filepath.Join(dir, "lower")}, filepath.Join(dir, "upper"), filepath.Join(dir, "work"), nil); err != nil {
		t.Fatal(err)
	}
	openRootfs(t, rw).Close()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(rw))
	if err != nil || len(mounts) != 0 {
		t.Errorf("mounts left: %v, %v", mounts, err)
	}
	if _, err := os.Lstat(dir); err == nil {
		t.Error("the probe's directory is left")
	}
}

func TestPin(t *testing.T) {
	t.Parallel()
	needRoot(t)
	r := openRootfs(t, filepath.Join(t.TempDir(), "rw"))
	defer r.Close()
	ref := Ref{Container: "c", Image: "sha256:1", Chain: "sha256:2", Target: "/t"}
	if err := r.Pin(ref); err != nil {
		t.Fatal(err)
	}
	if err := r.Pin(ref); err != nil {
		t.Errorf("again: %v", err)
	}
	ref.Image = "sha256:3"
	if err := r.Pin(ref); err == nil {
		t.Error("another image was pinned over the first")
	}
	r.Unpin("c")
	if err := r.Pin(ref); err != nil {
		t.Errorf("after giving up the pin: %v", err)
	}
	for _, id := range []string{"", "..", "a/b", ".trash", "-"} {
		if err := r.Pin(Ref{Container: id}); err == nil {
			t.Errorf("container ID %q was accepted", id)
		}
	}
}

// TestTornRef: a power cut leaves an empty ref. If nothing is mounted from it, it
// is of an earlier boot and must not keep layers for ever; if something is, it stays.
func TestTornRef(t *testing.T) {
	t.Parallel()
	needRoot(t)
	d := dirs(t, "rw", "lower", "targets")
	r := openRootfs(t, d["rw"])
	for _, id := range []string{"cut", "used"} {
		ref := Ref{Container: id, Image: "sha256:1", Chain: "sha256:2", Target: filepath.Join(d["targets"], id), Lower: []string{d["lower"]}}
		if err := r.Pin(ref); err != nil {
			t.Fatal(err)
		}
		if err := r.Mount(id, MountOptions{}); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(filepath.Join(d["rw"], id, "ref"), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() { unmountAll(filepath.Join(d["targets"], "used")) })
	if err := unmountAll(filepath.Join(d["targets"], "cut")); err != nil {
		t.Fatal(err)
	}
	r.Close()

	r = openRootfs(t, d["rw"])
	defer r.Close()
	if l := r.List(); len(l) != 1 || l[0].Container != "used" || !r.Damaged() {
		t.Errorf("kept %v, damaged %v; want only what is mounted", l, r.Damaged())
	}
	if _, err := os.Lstat(filepath.Join(d["rw"], "cut")); !os.IsNotExist(err) {
		t.Errorf("the root filesystem of an earlier boot is still there: %v", err)
	}
	if err := r.Unmount("used", filepath.Join(d["targets"], "used")); err != nil {
		t.Fatal(err)
	}
	if r.Damaged() {
		t.Error("still damaged when all is removed")
	}
}

// TestProbeIDMap: a file system that cannot be mounted with shifted IDs is named
// before the first pod needs it.
func TestProbeIDMap(t *testing.T) {
	t.Parallel()
	needRoot(t)
	cmd := exec.Command("sleep", "1000")
	ids := []syscall.SysProcIDMap{{HostID: 3 << 16, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER, UidMappings: ids, GidMappings: ids}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cmd.Process.Kill(); cmd.Wait() }()
	users, err := os.Open(fmt.Sprintf("/proc/%d/ns/user", cmd.Process.Pid))
	if err != nil {
		t.Fatal(err)
	}
	defer users.Close()
	r := openRootfs(t, t.TempDir())
	if err := r.ProbeIDMap(users); err != nil {
		t.Errorf("a file system that can: %v", err)
	}
	// An overlay cannot, as of Linux 6.18.
	d := dirs(t, "l", "u", "w", "over")
	if err := unix.Mount("overlay", d["over"], "overlay", 0, "lowerdir="+d["l"]+",upperdir="+d["u"]+",workdir="+d["w"]); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(d["over"], unix.MNT_DETACH)
	over := openRootfs(t, d["over"])
	defer over.Close()
	if err := over.ProbeIDMap(users); err == nil || !strings.Contains(err.Error(), "does not support idmapped mounts") {
		t.Errorf("a file system that cannot: %v", err)
	}
}

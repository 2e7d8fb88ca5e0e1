package csi

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/berthd/berth/csi/mount"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/types"
	"pgregory.net/rapid"
)

// deaf cannot unmount: the worst case for whoever deletes next.
type deaf struct{ mount.Kernel }

func (deaf) Unmount(string) error { return fmt.Errorf("unmount: %w", unix.EIO) }

// TestTeardownNeverDeletesLiveData puts live data anywhere inside a pod's
// directory, by bind mount or link, and takes the pod down, with a kernel that
// unmounts and with one that does not.
func TestTeardownNeverDeletesLiveData(t *testing.T) {
	base := scratch(t)
	live := filepath.Join(base, "live")
	must(t, os.MkdirAll(filepath.Join(live, "sub"), 0o755))
	files := []string{"one", "sub/two", recordName}
	for _, f := range files {
		must(t, os.WriteFile(filepath.Join(live, f), []byte(f), 0o644))
	}
	n := 0
	rapid.Check(t, func(t *rapid.T) {
		n++
		uid := fmt.Sprintf("pod-%d", n)
		pod := podOfEveryKind(t, base)
		pod.UID = types.UID(uid)
		pod.Spec.Volumes[2].HostPath.Path = live
		v := newVolumes(t, base, objects(), nil)
		must2(t)(v.Mount(context.Background(), pod))
		dir := filepath.Join(base, "pods", uid)
		mounts := 4 + invade(t, dir, live)
		check := func(after string) {
			for _, f := range files {
				if got, err := os.ReadFile(filepath.Join(live, f)); err != nil || string(got) != f {
					t.Fatalf("after %s live data %s is damaged: %q, %v", after, f, got, err)
				}
			}
		}
		down := []func(*Volumes) error{
			func(v *Volumes) error { return v.Unmount(context.Background(), uid) },
			func(v *Volumes) error { return v.Remove(context.Background(), uid) },
		}
		for _, f := range down {
			if err := f(newVolumes(t, base, objects(), deaf{})); err == nil && mounts > 0 {
				t.Fatal("a teardown that could not unmount called itself done")
			}
			check("a teardown that could not unmount")
		}
		for _, f := range down {
			must(t, f(v))
			check("a teardown")
		}
		checkGone(t, base, uid)
	})
}

// invade adds mounts and links of live data below dir, as a container with
// bidirectional propagation or a careless administrator would.
func invade(t *rapid.T, dir, live string) (mounts int) {
	var dirs []string
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		must(t, err)
		if e.IsDir() {
			dirs = append(dirs, p)
		}
		return nil
	}))
	slices.Sort(dirs)
	for i := range rapid.IntRange(1, 6).Draw(t, "invaders") {
		at := rapid.SampledFrom(dirs).Draw(t, "at")
		fresh := filepath.Join(at, fmt.Sprintf("invader-%d", i))
		switch rapid.SampledFrom([]string{"over", "inside", "deep", "stacked", "file", "link", "tmpfs"}).Draw(t, "how") {
		case "over": // an existing directory, the pod's own included
			must(t, unix.Mount(live, at, "", unix.MS_BIND, ""))
			mounts++
			return mounts // paths below at now lead into the live data
		case "inside":
			must(t, os.Mkdir(fresh, 0o755))
			must(t, unix.Mount(live, fresh, "", unix.MS_BIND, ""))
			mounts++
		case "deep": // behind directories that are to be removed
			fresh = filepath.Join(fresh, "a", "b")
			must(t, os.MkdirAll(fresh, 0o755))
			must(t, unix.Mount(live, fresh, "", unix.MS_BIND, ""))
			mounts++
		case "stacked": // comes to light when the mount over it is gone
			must(t, os.Mkdir(fresh, 0o755))
			must(t, unix.Mount(live, fresh, "", unix.MS_BIND, ""))
			must(t, unix.Mount("", fresh, "", unix.MS_PRIVATE, "")) // else it would cover the live data too
			must(t, unix.Mount("tmpfs", fresh, "tmpfs", 0, "size=64k"))
			mounts += 2
		case "file":
			must(t, os.WriteFile(fresh, nil, 0o600))
			must(t, unix.Mount(filepath.Join(live, "one"), fresh, "", unix.MS_BIND, ""))
			mounts++
		case "link":
			must(t, os.Symlink(live, fresh))
		case "tmpfs":
			must(t, os.Mkdir(fresh, 0o755))
			must(t, unix.Mount("tmpfs", fresh, "tmpfs", 0, "size=64k"))
			must(t, os.WriteFile(filepath.Join(fresh, "x"), nil, 0o600))
			mounts++
			dirs = append(dirs, fresh)
		}
	}
	return mounts
}

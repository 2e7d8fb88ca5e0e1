package csi

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"sigs.k8s.io/yaml"
)

func TestMountEveryKind(t *testing.T) {
	root := scratch(t)
	have := objects()
	v := newVolumes(t, root, have, nil)
	pod := podOfEveryKind(t, root)
	mounted, err := v.Mount(t.Context(), pod)
	must(t, err)
	base := filepath.Join(root, "pods", "uid-1", "volumes")
	want := map[string]Volume{
		"scratch": {base + "/kubernetes.io~empty-dir/scratch", false},
		"fast":    {base + "/kubernetes.io~empty-dir/fast", false},
		"host":    {root + "/outside", false},
		"conf":    {base + "/kubernetes.io~configmap/conf", true},
		"creds":   {base + "/kubernetes.io~secret/creds", true},
		"about":   {base + "/kubernetes.io~downward-api/about", true},
		"all":     {base + "/kubernetes.io~projected/all", true},
		"maybe":   {base + "/kubernetes.io~configmap/maybe", true},
	}
	if !maps.Equal(mounted, want) {
		t.Fatalf("mounted\n%v\nwant\n%v", mounted, want)
	}
	for name, want := range map[string]string{
		"conf/conf": "644 1234 one", "creds/key": "440 1234 hush", "about/labels": "644 1234 app=\"web\"",
		"all/key": "644 1234 hush", "all/conf": "644 1234 one",
	} {
		vol, file, _ := strings.Cut(name, "/")
		path := filepath.Join(mounted[vol].HostPath, file)
		content, err := os.ReadFile(path)
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Stat(path, &st))
		if got := fmt.Sprintf("%o %d %s", st.Mode&0o7777, st.Gid, content); got != want {
			t.Errorf("%s is %s, want %s", name, got, want)
		}
	}
	for vol, want := range map[string]string{
		"scratch": "42777 1234 disk", "fast": "43777 1234 tmpfs", "conf": "42777 1234 disk",
		"creds": "43777 1234 tmpfs", "about": "43777 1234 tmpfs", "all": "43777 1234 tmpfs", "host": "40755 0 disk",
	} {
		var st unix.Stat_t
		must(t, unix.Stat(mounted[vol].HostPath, &st))
		var fs unix.Statfs_t
		must(t, unix.Statfs(mounted[vol].HostPath, &fs))
		medium := map[bool]string{true: "tmpfs", false: "disk"}[fs.Type == unix.TMPFS_MAGIC]
		if got := fmt.Sprintf("%o %d %s", st.Mode, st.Gid, medium); got != want {
			t.Errorf("volume %s is %s, want %s", vol, got, want)
		}
		if vol == "fast" && int64(fs.Blocks)*fs.Bsize != 1<<20 {
			t.Errorf("volume fast has %d bytes", int64(fs.Blocks)*fs.Bsize)
		}
	}

	// Idle: nothing is written, also by an agent that has just started.
	before := inodes(t, filepath.Join(root, "pods"))
	for _, again := range []*Volumes{v, newVolumes(t, root, have, nil)} {
		if got, err := again.Mount(t.Context(), pod); err != nil || !maps.Equal(got, want) {
			t.Errorf("mounted again: %v, %v", got, err)
		}
	}
	if after := inodes(t, filepath.Join(root, "pods")); after != before {
		t.Errorf("an idle refresh wrote:\n%s\n%s", before, after)
	}

	// Refresh: only what changed.
	have.configMaps["cm"] = &v1.ConfigMap{Data: map[string]string{"conf": "two"}}
	creds := inodes(t, mounted["creds"].HostPath)
	must2(t)(v.Mount(t.Context(), pod))
	for _, path := range []string{mounted["conf"].HostPath, mounted["all"].HostPath} {
		if got, _ := os.ReadFile(filepath.Join(path, "conf")); string(got) != "two" {
			t.Errorf("%s not refreshed: %q", path, got)
		}
	}
	if inodes(t, mounted["creds"].HostPath) != creds {
		t.Error("the unchanged Secret was written again")
	}

	must(t, v.Unmount(t.Context(), "uid-1"))
	must(t, v.Unmount(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
	if st, err := os.Stat(filepath.Join(root, "outside")); err != nil || !st.IsDir() {
		t.Errorf("the host path is gone: %v", err)
	}
	if _, ok := v.Mounted("uid-1"); ok {
		t.Error("still called mounted")
	}
}

func must2(t failer) func(any, error) {
	return func(_ any, err error) { t.Helper(); must(t, err) }
}

func checkGone(t failer, root, uid string) {
	t.Helper()
	if _, err := os.Lstat(filepath.Join(root, "pods", uid)); !os.IsNotExist(err) {
		t.Fatal("the pod's directory is still there: ", err)
	}
	paths, err := mount.Kernel{}.Below(filepath.Join(root, "pods"))
	must(t, err)
	if len(paths) > 0 {
		t.Fatal("mounts are left: ", paths)
	}
}

func TestMountedAfterARestart(t *testing.T) {
	root := scratch(t)
	have := objects()
	pod := podOfEveryKind(t, root)
	want, err := newVolumes(t, root, have, nil).Mount(t.Context(), pod)
	must(t, err)
	record := filepath.Join(root, "pods", "uid-1", recordName)
	good, err := os.ReadFile(record)
	must(t, err)
	recall := func() (map[string]Volume, bool) { return newVolumes(t, root, &store{}, nil).Mounted("uid-1") }
	if got, ok := recall(); !ok || !maps.Equal(got, want) {
		t.Errorf("after a restart %v, %v; want %v", got, ok, want)
	}
	for name, change := range map[string]func(){
		"torn record":  func() { must(t, os.WriteFile(record, good[:len(good)/2], 0o600)) },
		"empty record": func() { must(t, os.WriteFile(record, nil, 0o600)) },
		"another boot": func() {
			must(t, os.WriteFile(record, []byte(strings.Replace(string(good), `"boot":"`, `"boot":"x`, 1)), 0o600))
		},
		"record missing": func() { must(t, os.Remove(record)) },
		"tmpfs lost":     func() { must(t, mount.Kernel{}.Unmount(want["creds"].HostPath)) },
		"memory lost":    func() { must(t, mount.Kernel{}.Unmount(want["fast"].HostPath)) },
		"directory lost": func() { must(t, os.RemoveAll(want["scratch"].HostPath)) },
		"content lost":   func() { must(t, os.Remove(filepath.Join(want["conf"].HostPath, "..data"))) },
	} {
		change()
		if got, ok := recall(); ok {
			t.Errorf("%s: still called mounted: %v", name, got)
		}
		again := newVolumes(t, root, have, nil)
		if got, err := again.Mount(t.Context(), pod); err != nil || !maps.Equal(got, want) {
			t.Errorf("%s: mounted again: %v, %v", name, got, err)
		}
		if _, ok := recall(); !ok {
			t.Errorf("%s: not healed", name)
		}
	}
	must(t, newVolumes(t, root, have, nil).Remove(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

func TestEmptyDirBelongsToThePod(t *testing.T) {
	root := scratch(t)
	v := newVolumes(t, root, objects(), nil)
	pod := podOfEveryKind(t, root)
	mounted, err := v.Mount(t.Context(), pod)
	must(t, err)
	for _, name := range []string{"scratch", "fast"} {
		path := mounted[name].HostPath
		must(t, os.WriteFile(filepath.Join(path, "work"), []byte("x"), 0o600))
		must(t, os.Chmod(path, 0o700))
		must2(t)(v.Mount(t.Context(), pod))
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode was changed back to %v", name, st.Mode())
		}
		if _, err := os.Stat(filepath.Join(path, "work")); err != nil {
			t.Errorf("%s: work is lost: %v", name, err)
		}
	}
}

func TestErrors(t *testing.T) {
	root := scratch(t)
	for name, tc := range map[string]struct {
		uid, volumes string
		code         volume.Code
		want         string
	}{
		"missing": {"u", `[{name: a, configMap: {name: nope}}]`, volume.NotFound,
			`MountVolume.SetUp failed for volume "a" : configmap "nope" not found`},
		"two": {"u", `[{name: a, configMap: {name: nope}}, {name: b, secret: {secretName: none}}, {name: c, emptyDir: {}}]`, volume.NotFound,
			`MountVolume.SetUp failed for volume "a" : configmap "nope" not found; MountVolume.SetUp failed for volume "b" : secret "none" not found`},
		"kind": {"u", `[{name: a, persistentVolumeClaim: {claimName: x}}]`, volume.Invalid,
			`MountVolume.SetUp failed for volume "a" : this kind of volume is not offered by this node; it has emptyDir, hostPath, configMap, secret, downwardAPI, projected and image`},
		"uid": {"../../etc", `[]`, volume.Invalid,
			`MountVolume.SetUp failed : "../../etc" cannot be the UID of a pod: it must be usable as the name of a directory`},
	} {
		t.Run(name, func(t *testing.T) {
			v := newVolumes(t, root, objects(), nil)
			pod := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{}}}}
			pod.UID = types.UID(tc.uid)
			must(t, yaml.UnmarshalStrict([]byte(tc.volumes), &pod.Spec.Volumes))
			for _, vol := range pod.Spec.Volumes {
				pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, v1.VolumeMount{Name: vol.Name})
			}
			_, err := v.Mount(t.Context(), pod)
			var e *volume.Error
			if !errors.As(err, &e) || e.Code != tc.code || err.Error() != tc.want {
				t.Errorf("%v: %v\nwant %v: %s", e.Code, err, tc.code, tc.want)
			}
			if _, ok := v.Mounted(tc.uid); ok {
				t.Error("called mounted")
			}
			if err := v.Unmount(t.Context(), tc.uid); (err != nil) != (name == "uid") {
				t.Errorf("unmount: %v", err)
			}
		})
	}
}

// limited fails every call after the first n.
type limited struct {
	mount.Kernel
	left *int
}

var errFull = fmt.Errorf("mount: %w", unix.ENOSPC)

func (l limited) Tmpfs(target string, size int64) error {
	if *l.left--; *l.left < 0 {
		return errFull
	}
	return l.Kernel.Tmpfs(target, size)
}

func TestHalfMadeIsTakenDownByUnmount(t *testing.T) {
	root := scratch(t)
	for n := range 5 {
		left := n
		v := newVolumes(t, root, objects(), limited{left: &left})
		_, err := v.Mount(t.Context(), podOfEveryKind(t, root))
		var e *volume.Error
		if n < 4 && (!errors.As(err, &e) || e.Code != volume.Exhausted) {
			t.Fatalf("after %d mounts: %v", n, err)
		}
		if n == 4 {
			must(t, err)
		}
		must(t, newVolumes(t, root, objects(), nil).Unmount(t.Context(), "uid-1"))
		checkGone(t, root, "uid-1")
	}
}

// stuck is a host that never answers until it is let go.
type stuck struct {
	mount.Kernel
	in, out chan struct{}
}

func (s stuck) Tmpfs(target string, size int64) error {
	s.in <- struct{}{}
	<-s.out
	return s.Kernel.Tmpfs(target, size)
}

func TestAStuckHostHoldsOneCallAndNoOtherPod(t *testing.T) {
	root := scratch(t)
	host := stuck{in: make(chan struct{}, 100), out: make(chan struct{})}
	v := newVolumes(t, root, objects(), host)
	pod := podOfEveryKind(t, root)
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-host.in; cancel() }()
	var e *volume.Error
	if _, err := v.Mount(ctx, pod); !errors.As(err, &e) || e.Code != volume.Canceled {
		t.Fatalf("stuck: %v", err)
	}
	if err := v.Unmount(ctx, "uid-1"); !errors.As(err, &e) || e.Code != volume.Canceled {
		t.Errorf("behind it: %v", err)
	}
	other := &v1.Pod{}
	other.UID = "uid-2"
	must2(t)(v.Mount(t.Context(), other))
	if err := v.Close(ctx); err == nil {
		t.Error("closed while a call was under way")
	}
	close(host.out)
	must(t, v.Close(t.Context()))
	must(t, v.Unmount(t.Context(), "uid-1"))
	must(t, v.Unmount(t.Context(), "uid-2"))
	checkGone(t, root, "uid-1")
}

func TestSubPathLifecycle(t *testing.T) {
	root := scratch(t)
	v := newVolumes(t, root, objects(), nil)
	pod := podOfEveryKind(t, root)
	if _, err := v.SubPath(t.Context(), pod, "main", "scratch", "a", 0); err == nil {
		t.Error("a subPath of a volume that is not set up")
	}
	mounted, err := v.Mount(t.Context(), pod)
	must(t, err)
	for i, tc := range []struct{ vol, sub string }{{"scratch", "logs/app"}, {"conf", "conf"}, {"fast", "x"}, {"creds", "key"}} {
		for range 2 {
			path, err := v.SubPath(t.Context(), pod, "main", tc.vol, tc.sub, i)
			must(t, err)
			if want := filepath.Join(root, "pods/uid-1/volume-subpaths", tc.vol, "main", fmt.Sprint(i)); path != want {
				t.Errorf("path %s, want %s", path, want)
			}
			a, err := os.Stat(path)
			must(t, err)
			b, err := os.Stat(filepath.Join(mounted[tc.vol].HostPath, tc.sub))
			must(t, err)
			if !os.SameFile(a, b) {
				t.Errorf("%s/%s shows another file", tc.vol, tc.sub)
			}
		}
	}
	var e *volume.Error
	if _, err := v.SubPath(t.Context(), pod, "../x", "scratch", "a", 0); !errors.As(err, &e) || e.Code != volume.Invalid {
		t.Errorf("container ../x: %v", err)
	}
	must(t, v.Unmount(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

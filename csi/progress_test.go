package csi

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func parsePod(t *testing.T, volumes string) *v1.Pod {
	t.Helper()
	pod := &v1.Pod{}
	pod.Name, pod.Namespace, pod.UID = "web", "default", "uid-1"
	must(t, yaml.UnmarshalStrict([]byte("volumes: "+volumes), &pod.Spec))
	pod.Spec.Containers = []v1.Container{{Name: "c"}}
	for _, v := range pod.Spec.Volumes {
		pod.Spec.Containers[0].VolumeMounts = append(pod.Spec.Containers[0].VolumeMounts, v1.VolumeMount{Name: v.Name})
	}
	return pod
}

// TestAMountThatHangsSaysOnWhat gives up a Mount while the host is stuck, and
// tries another behind it.
func TestAMountThatHangsSaysOnWhat(t *testing.T) {
	root := scratch(t)
	s := stuck{in: make(chan struct{}, 1), out: make(chan struct{})}
	v := newVolumes(t, root, objects(), s)
	pod := parsePod(t, `[{name: a, emptyDir: {}}, {name: b, configMap: {name: nope}}, {name: c, emptyDir: {medium: Memory}}, {name: d, emptyDir: {}}, {name: e, nfs: {server: x, path: /}}]`)
	for _, tc := range []struct {
		cause error
		want  string
	}{
		{context.DeadlineExceeded, `unmounted volumes=[e b c d], unattached volumes=[], failed to process volumes=[e]: context deadline exceeded; ` +
			`MountVolume.SetUp failed for volume "e" : this kind of volume is not offered by this node; it has emptyDir, hostPath, configMap, secret, downwardAPI, projected and image; ` +
			`MountVolume.SetUp failed for volume "b" : configmap "nope" not found; the host is still setting up volume "c"`},
		{context.Canceled, `unmounted volumes=[e a b c d], unattached volumes=[], failed to process volumes=[e]: context canceled; ` +
			`MountVolume.SetUp failed for volume "e" : this kind of volume is not offered by this node; it has emptyDir, hostPath, configMap, secret, downwardAPI, projected and image; ` +
			`earlier work on this pod's volumes has not ended (is a host path on a dead network file system?)`},
	} {
		ctx, cancel := context.WithCancel(t.Context())
		if tc.cause == context.DeadlineExceeded {
			ctx, cancel = context.WithTimeout(t.Context(), 200*time.Millisecond)
		} else {
			time.AfterFunc(50*time.Millisecond, cancel)
		}
		_, err := v.Mount(ctx, pod)
		cancel()
		var e *volume.Error
		want := map[error]volume.Code{context.DeadlineExceeded: volume.Timeout, context.Canceled: volume.Canceled}[tc.cause]
		if !errors.As(err, &e) || e.Code != want || !errors.Is(err, tc.cause) || err.Error() != tc.want {
			t.Errorf("%v\nwant %s", err, tc.want)
		}
	}
	<-s.in
	close(s.out)
	must(t, v.Close(t.Context()))
	must(t, v.Remove(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

// TestEveryFailureIsNamed: what the node does not offer keeps nobody from being
// told what else is wrong.
func TestEveryFailureIsNamed(t *testing.T) {
	v := newVolumes(t, scratch(t), objects(), nil)
	_, err := v.Mount(t.Context(), parsePod(t, `[{name: a, nfs: {server: x, path: /}}, {name: b, secret: {secretName: none}},
		{name: c, hostPath: {path: /no/such/place, type: Directory}}, {name: d, emptyDir: {medium: HugePages}}, {name: e, image: {reference: x}}]`))
	var all volume.Errors
	if !errors.As(err, &all) {
		t.Fatal(err)
	}
	var got []string
	for _, e := range all {
		got = append(got, fmt.Sprint(e.Volume, " ", e.Code))
	}
	if want := []string{"a Invalid", "b NotFound", "c NotFound", "d Invalid"}; !slices.Equal(got, want) {
		t.Errorf("named %v, want %v: %v", got, want, err)
	}
}

func TestScratch(t *testing.T) {
	root := scratch(t)
	v := newVolumes(t, root, objects(), nil)
	pod := parsePod(t, `[{name: a, emptyDir: {sizeLimit: 1Gi}}, {name: b, emptyDir: {medium: Memory, sizeLimit: 1Mi}}, {name: c, configMap: {name: cm}},
		{name: d, secret: {secretName: s}}, {name: e, emptyDir: {}}, {name: f, hostPath: {path: /tmp}}]`)
	if got := v.Scratch("uid-1"); got != nil {
		t.Errorf("before the volumes are set up: %v", got)
	}
	must2(t)(v.Mount(t.Context(), pod))
	base := filepath.Join(root, "pods", "uid-1", "volumes")
	want := []Scratch{
		{"a", base + "/kubernetes.io~empty-dir/a", false, 1 << 30},
		{"b", base + "/kubernetes.io~empty-dir/b", true, 1 << 20},
		{"c", base + "/kubernetes.io~configmap/c", false, 0},
		{"e", base + "/kubernetes.io~empty-dir/e", false, 0},
	}
	for when, now := range map[string]*Volumes{"now": v, "after a restart": newVolumes(t, root, &store{}, nil)} {
		if got := now.Scratch("uid-1"); !slices.Equal(got, want) {
			t.Errorf("%s %v, want %v", when, got, want)
		}
	}
	must(t, v.Remove(t.Context(), "uid-1"))
	if got := v.Scratch("uid-1"); got != nil || v.Scratch("../x") != nil {
		t.Errorf("after the removal: %v", got)
	}
}

// TestSlowChangeOfGroupIsAnEvent sets up a volume that has very many files, left
// by an agent that was killed before it called the volume set up.
func TestSlowChangeOfGroupIsAnEvent(t *testing.T) {
	root := scratch(t)
	var mu sync.Mutex
	var told []Event
	v, err := New(Config{Root: root, Objects: objects(), Logger: slog.New(slog.DiscardHandler), Event: func(e Event) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, e)
	}})
	must(t, err)
	v.slowAfter, v.slowEvery = time.Microsecond, 50*time.Microsecond
	dir := filepath.Join(root, "pods", "uid-1", "volumes", "kubernetes.io~empty-dir", "work")
	must(t, os.MkdirAll(dir, 0o750))
	for i := range 2000 {
		must(t, os.WriteFile(filepath.Join(dir, fmt.Sprint(i)), nil, 0o600))
	}
	pod := parsePod(t, `[{name: work, emptyDir: {}}]`)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(77))}
	must2(t)(v.Mount(t.Context(), pod))
	if len(told) < 2 {
		t.Fatalf("told only %v", told)
	}
	for i, want := range []string{
		"Setting volume ownership for uid-1/volumes/work is taking longer than expected, consider using OnRootMismatch - https://",
		"Setting volume ownership for uid-1/volumes/work, processed ",
	} {
		if e := told[i]; e.Pod != pod || !e.Warning || e.Reason != "VolumePermissionChangeInProgress" || !strings.HasPrefix(e.Message, want) {
			t.Errorf("told %+v, want %s", e, want)
		}
	}
	must(t, v.Remove(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

// TestADeadFileSystemIsNamed has a host path on a file system whose server never
// answers, as a dead NFS server does not.
func TestADeadFileSystemIsNamed(t *testing.T) {
	root := scratch(t)
	server, err := os.OpenFile("/dev/fuse", os.O_RDWR, 0)
	if err != nil {
		t.Skip("no file system can be made that does not answer: ", err)
	}
	dead := filepath.Join(root, "dead")
	must(t, os.Mkdir(dead, 0o755))
	if err := unix.Mount("dead", dead, "fuse", 0, fmt.Sprintf("fd=%d,rootmode=40000,user_id=0,group_id=0", server.Fd())); err != nil {
		t.Skip("no file system can be made that does not answer: ", err)
	}
	v := newVolumes(t, root, objects(), nil)
	pod := parsePod(t, `[{name: a, emptyDir: {}}, {name: net, hostPath: {path: `+dead+`/data, type: Directory}}, {name: b, emptyDir: {}}]`)
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	_, err = v.Mount(ctx, pod)
	want := `unmounted volumes=[net b], unattached volumes=[], failed to process volumes=[]: context deadline exceeded; ` +
		`the host has not answered for ` + dead + `/data of volume "net" (is it on a dead network file system?)`
	var e *volume.Error
	if !errors.As(err, &e) || e.Code != volume.Timeout || err.Error() != want {
		t.Errorf("%v\nwant %s", err, want)
	}
	other := parsePod(t, `[{name: a, emptyDir: {}}]`)
	other.UID = "uid-2"
	must2(t)(v.Mount(t.Context(), other)) // another pod is not held up
	must(t, server.Close())
	must(t, v.Close(t.Context()))
	must(t, v.Remove(t.Context(), "uid-1"))
	must(t, v.Remove(t.Context(), "uid-2"))
	checkGone(t, root, "uid-1")
}

// TestMemoryThatMayBeSwapped: one warning for the life of the agent, only on a
// node that swaps and cannot keep a tmpfs out of it.
func TestMemoryThatMayBeSwapped(t *testing.T) {
	warnings := 0
	v, err := New(Config{Root: scratch(t), Objects: objects(), Logger: slog.New(slog.DiscardHandler), Event: func(e Event) {
		if e.Pod == nil && e.Reason == "PossibleMemoryBackedVolumesOnDisk" {
			warnings++
		}
	}})
	must(t, err)
	for range 2 {
		must2(t)(v.Mount(t.Context(), parsePod(t, `[{name: a, emptyDir: {medium: Memory}}]`)))
	}
	must(t, v.Remove(t.Context(), "uid-1"))
	want := 0
	if mount.Swappable() {
		want = 1
	}
	if warnings != want {
		t.Errorf("%d warnings, want %d", warnings, want)
	}
}

// TestHugePageVolume needs no reserved pages: without them it is refused.
func TestHugePageVolume(t *testing.T) {
	root := scratch(t)
	sizes := mount.ReadHugePages()
	if len(sizes) == 0 {
		t.Skip("this kernel has no huge pages")
	}
	v := newVolumes(t, root, objects(), nil)
	size := volume.ByteSize(sizes[0].Size)
	pod := parsePod(t, `[{name: a, emptyDir: {medium: HugePages}}, {name: b, emptyDir: {medium: HugePages-`+size+`}}]`)
	pod.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: new(int64(77))}
	must(t, yaml.Unmarshal([]byte(`limits: {hugepages-`+size+`: `+size+`}`), &pod.Spec.Containers[0].Resources))
	all, err := v.Mount(t.Context(), pod)
	if sizes[0].Pages == 0 {
		var e *volume.Error
		if !errors.As(err, &e) || e.Code != volume.Exhausted || !strings.Contains(err.Error(), "no huge pages of "+size+" are reserved") {
			t.Errorf("without reserved pages: %v", err)
		}
	} else {
		must(t, err)
		for range 2 {
			must2(t)(v.Mount(t.Context(), pod))
		}
		for name, one := range all {
			if st, err := os.Stat(one.HostPath); err != nil || st.Mode().Perm() != 0o777 || st.Mode()&os.ModeSetgid == 0 {
				t.Errorf("%s: %v, %v", name, st, err)
			}
		}
	}
	must(t, v.Remove(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

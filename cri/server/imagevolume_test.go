package server

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// plainPod is a ready sandbox without a user namespace.
func (n *node) plainPod(name, handler string) (string, *runtimeapi.PodSandboxConfig) {
	n.t.Helper()
	pod := n.pod(name)
	r, err := n.server.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.PodSandboxId, pod
}

func imageMount(at, sub string) *runtimeapi.Mount {
	return &runtimeapi.Mount{ContainerPath: at, Image: &runtimeapi.ImageSpec{Image: busybox}, ImageSubPath: sub, Readonly: true}
}

func TestImageVolume(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, handler string) {
		for _, users := range []bool{false, true} {
			box, pod := "", (*runtimeapi.PodSandboxConfig)(nil)
			c := containerConfig("c", "sleep", "1000")
			if users {
				box, pod = n.usersPod("users", handler, runtimeapi.NamespaceMode_CONTAINER)
				c = usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "sleep", "1000")
			} else {
				box, pod = n.plainPod("plain", handler)
			}
			c.Mounts = []*runtimeapi.Mount{imageMount("/whole", ""), imageMount("/part", "bin"), imageMount("/file", "etc/passwd")}
			id := n.run(box, pod, c)
			for script, want := range map[string]string{
				"cat /whole/etc/passwd | head -c 4; head -c 4 /file": "rootroot",
				"ls /part | grep -c '^busybox$'":                     "1",
				"touch /whole/x /part/x 2>/dev/null || echo ro":      "ro",
				"/whole/bin/busybox true 2>/dev/null || echo noexec": "noexec",
				"stat -c %u /whole/bin /part/busybox":                "0\n0",
			} {
				if got := n.sh(id, script); got != want {
					t.Errorf("users %v: %s: %q, want %q", users, script, got, want)
				}
			}
			opts := n.sh(id, "grep ' /whole ' /proc/mounts")
			for _, o := range []string{"ro", "nosuid", "nodev", "noexec"} {
				if !strings.Contains(opts, o) {
					t.Errorf("mounted without %s: %s", o, opts)
				}
			}
			if refs := n.server.cfg.Images.Rootfs(); len(refs) != 2 {
				t.Errorf("pinned: %v, want the container's and its volume's", refs)
			}
			if _, err := n.server.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
				t.Fatal(err)
			}
			mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(n.dir, "containers")))
			if refs := n.server.cfg.Images.Rootfs(); err != nil || len(mounts)+len(refs) != 0 {
				t.Errorf("left: %v, %v, %v", mounts, refs, err)
			}
		}
	})
}

func TestImageVolumeRefused(t *testing.T) {
	n := newNode(t)
	n.haveBusybox()
	box, pod := n.plainPod("p", "")
	for _, tc := range []struct{ image, sub, want string }{
		{busybox, "no/such", `subPath "no/such" of image docker.io/library/busybox:latest: the image has no such file or directory`},
		{busybox, "../etc", "without .."},
		{busybox, "/etc", "without .."},
		{"docker.io/library/nonesuch:1", "", "not stored on this node"},
	} {
		c := containerConfig("c", "true")
		m := imageMount("/v", tc.sub)
		m.Image.Image = tc.image
		c.Mounts = []*runtimeapi.Mount{m}
		_, err := n.server.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: c, SandboxConfig: pod})
		contains(t, err, "ImageVolumeMountFailed: ")
		contains(t, err, tc.want)
		if left, err := os.ReadDir(filepath.Join(n.dir, "containers")); err != nil || len(left) != 0 {
			t.Errorf("left: %v, %v", left, err)
		}
	}
}

// TestImageVolumeOutlivesImage: what is mounted stays, whatever happens to the
// image's names meanwhile.
func TestImageVolumeOutlivesImage(t *testing.T) {
	n := newNode(t)
	n.haveBusybox()
	box, pod := n.plainPod("p", "")
	c := containerConfig("c", "sleep", "1000")
	c.Mounts = []*runtimeapi.Mount{imageMount("/v", "")}
	id := n.run(box, pod, c)
	if _, err := n.server.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: busybox}}); err != nil {
		t.Fatal(err)
	}
	if got := n.sh(id, "head -c 4 /v/etc/passwd"); got != "root" {
		t.Errorf("%q", got)
	}
	if st, err := n.server.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err != nil || st.Status.Mounts[0].Image.GetImage() != busybox {
		t.Errorf("status: %v, %v", st, err)
	}
}

// TestRuntimeHandler: a sandbox's handler runs its containers, and after a
// restart still does what is to be done to them.
func TestRuntimeHandler(t *testing.T) {
	n := newNode(t)
	n.haveBusybox()
	for _, handler := range []string{"", "crun", "runc"} {
		box, pod := n.plainPod("p"+handler, handler)
		id := n.run(box, pod, containerConfig("c", "sleep", "1000"))
		file := map[string]string{"runc": "state.json"}[handler]
		if file == "" {
			file = "status"
		}
		if _, err := os.Stat(filepath.Join(n.dir, "oci", id, file)); err != nil {
			t.Errorf("handler %q: %v", handler, err)
		}
		st, err := n.server.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: box})
		if err != nil || st.Status.RuntimeHandler != handler {
			t.Errorf("%v, %v", st, err)
		}
	}
	st, err := n.server.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, h := range st.RuntimeHandlers {
		got = append(got, fmt.Sprintf("%q %v", h.Name, h.Features.UserNamespaces))
	}
	if want := `"" true,"crun" true,"old" false,"runc" true`; strings.Join(got, ",") != want {
		t.Errorf("handlers %v, want %s", got, want)
	}
	contains(t, fmt.Errorf("%s", st.Info["info"]), `"noUserNamespaces":{"old":"it is too old"}`)
}

package server

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const hostRoot = 7 << 16 // the host's ID of the root in test user namespaces

func usersOption() *runtimeapi.UserNamespace {
	ids := []*runtimeapi.IDMapping{{HostId: hostRoot, Length: 1 << 16}}
	return &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
}

// usersPod is a ready sandbox with a user namespace.
func (n *node) usersPod(name, handler string, pid runtimeapi.NamespaceMode) (string, *runtimeapi.PodSandboxConfig) {
	n.t.Helper()
	pod := n.pod(name)
	pod.Linux.SecurityContext.NamespaceOptions.Pid = pid
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = usersOption()
	r, err := n.server.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.PodSandboxId, pod
}

// usersContainer is a container of such a pod.
func usersContainer(name string, pid runtimeapi.NamespaceMode, command ...string) *runtimeapi.ContainerConfig {
	c := containerConfig(name, command...)
	c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: pid, UsernsOptions: usersOption()}
	return c
}

// run makes and starts a container and returns its ID.
func (n *node) run(box string, pod *runtimeapi.PodSandboxConfig, c *runtimeapi.ContainerConfig) string {
	n.t.Helper()
	r, err := n.server.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: c, SandboxConfig: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.server.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.ContainerId}); err != nil {
		n.t.Fatal(err)
	}
	return r.ContainerId
}

// sh runs a script in a container; it has to succeed.
func (n *node) sh(id, script string) string {
	n.t.Helper()
	r, err := n.server.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 20})
	if err != nil {
		n.t.Fatalf("%s: %v", script, err)
	}
	if r.ExitCode != 0 {
		n.t.Fatalf("%s: exit code %d\n%s%s", script, r.ExitCode, r.Stdout, r.Stderr)
	}
	return strings.TrimSpace(string(r.Stdout))
}

// ended waits for a container's end and returns its status and log.
func (n *node) ended(id string) (*runtimeapi.ContainerStatus, string) {
	n.t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(n.t, "the container ends", func() bool {
		r, err := n.server.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
		if err != nil {
			n.t.Fatal(err)
		}
		st = r.Status
		return st.State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	log, err := os.ReadFile(st.LogPath)
	if err != nil {
		n.t.Fatal(err)
	}
	return st, string(log)
}

func owner(t *testing.T, path string) int {
	t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		t.Fatal(err)
	}
	return int(st.Sys().(*syscall.Stat_t).Uid)
}

func (n *node) haveBusybox() {
	n.t.Helper()
	if _, err := n.server.cfg.Images.Import(n.t.Context(), bytes.NewReader(busyboxArchive(n.t)), nil); err != nil {
		n.t.Fatal(err)
	}
}

// peerRunc is the runc that test/peer/build.sh builds: Debian's is years older,
// and what they do in user namespaces differs.
func peerRunc() string {
	dir := os.Getenv("PEER")
	if dir == "" {
		dir = filepath.Join(os.Getenv("HOME"), ".cache/berth-peer")
	}
	return filepath.Join(dir, "bin/runc")
}

func eachRuntime(t *testing.T, f func(t *testing.T, n *node, handler string)) {
	for _, handler := range []string{"crun", "runc", "runc-peer"} {
		t.Run(handler, func(t *testing.T) {
			more := map[string]string{}
			if handler == "runc-peer" {
				more[handler] = peerRunc()
				if _, err := os.Stat(peerRunc()); err != nil {
					t.Skipf("no newer runc to test with: %v; build it: sh test/peer/build.sh runc", err)
				}
			}
			n := newNodeWith(t, more)
			n.haveBusybox()
			f(t, n, handler)
		})
	}
}

func TestUserNamespace(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, handler string) {
		box, pod := n.usersPod("mapped", handler, runtimeapi.NamespaceMode_CONTAINER)
		vol := filepath.Join(n.dir, "vol")
		secret := filepath.Join(n.dir, "closed", "secret")
		for _, d := range []string{vol, secret} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				t.Fatal(err)
			}
		}
		os.Chmod(filepath.Dir(secret), 0o700)
		os.WriteFile(filepath.Join(vol, "roots"), []byte("r"), 0o600)
		os.WriteFile(filepath.Join(secret, "key"), []byte("k"), 0o400)
		c := usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "sleep", "1000")
		c.Mounts = []*runtimeapi.Mount{
			{ContainerPath: "/vol", HostPath: vol, UidMappings: usersOption().Uids, GidMappings: usersOption().Gids},
			{ContainerPath: "/secret", HostPath: secret, Readonly: true, UidMappings: usersOption().Uids, GidMappings: usersOption().Gids},
			{ContainerPath: "/plain", HostPath: vol},
			{ContainerPath: "/key", HostPath: secret + "/key", Readonly: true, RecursiveReadOnly: false, UidMappings: usersOption().Uids, GidMappings: usersOption().Gids},
		}
		c.Linux.SecurityContext.MaskedPaths = []string{"/proc/kcore", "/sys/firmware"}
		c.Linux.SecurityContext.ReadonlyPaths = []string{"/proc/sys"}
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/null", ContainerPath: "/dev/mine", Permissions: "rw"}}
		id := n.run(box, pod, c)
		want := map[string]string{
			"id -u; cat /proc/self/uid_map | tr -s ' '": fmt.Sprintf("0\n 0 %d 65536", hostRoot),
			"hostname": "mapped",
			"touch /new /vol/new && stat -c %u /new /vol/new /vol/roots /bin /": "0\n0\n0\n0\n0",
			"cat /secret/key /key; touch /secret/x 2>/dev/null || echo ro":      "kkro",
			"stat -c %u /plain/roots":                                "65534",
			"touch /dev/shm/x && echo '#' >> /etc/hosts && echo ok":  "ok",
			"ls /sys/class/net":                                      "lo",
			"echo x > /dev/mine && echo ok":                          "ok",
			"touch /proc/sys/kernel/hostname 2>/dev/null || echo ro": "ro",
			"chmod 600 /dev/null 2>/dev/null || echo denied":         "denied",
			"grep -c . /proc/net/dev > /dev/stdout":                  "3",
		}
		for script, out := range want {
			if got := n.sh(id, script); got != out {
				t.Errorf("%s: %q, want %q", script, got, out)
			}
		}
		if staged, err := os.ReadDir(filepath.Join(n.dir, "containers", id, "mounts")); err != nil || len(staged) != 0 {
			t.Errorf("mounts that keep the volumes busy: %v, %v", staged, err)
		}
		if o := owner(t, filepath.Join(vol, "new")); o != 0 {
			t.Errorf("what root wrote to a mapped volume belongs to %d on the host, want 0", o)
		}
		if o := owner(t, "/dev/null"); o != 0 {
			t.Errorf("the host's /dev/null belongs to %d now", o)
		}
		upper := filepath.Join(n.dir, "images", "rw", id, "upper")
		if o := owner(t, filepath.Join(upper, "new")); o != hostRoot {
			t.Errorf("a file of the container's own belongs to %d on the host, want %d", o, hostRoot)
		}
		r, err := n.server.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"cat"}, Timeout: 5})
		if err != nil || r.ExitCode != 0 {
			t.Errorf("an exec's standard input does not end: %v, %v", r, err)
		}
		if o := owner(t, "/dev/null"); o != 0 {
			t.Errorf("exec gave the host's /dev/null to %d", o)
		}
		if _, err := n.server.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
		if left, err := os.ReadFile(filepath.Join(secret, "key")); err != nil || string(left) != "k" {
			t.Errorf("the volume after the container's removal: %q, %v", left, err)
		}
		mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(n.dir, "containers")))
		if err != nil || len(mounts) != 0 {
			t.Errorf("mounts left: %v, %v", mounts, err)
		}
	})
}

// TestUserNamespaceStreams: a user other than root writes to its own streams by
// their names, and standard input ends at once.
func TestUserNamespaceStreams(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, handler string) {
		box, pod := n.usersPod("streams", handler, runtimeapi.NamespaceMode_POD)
		c := usersContainer("c", runtimeapi.NamespaceMode_POD, "sh", "-c", "cat; echo out > /dev/stdout; echo err > /dev/stderr; id -u")
		c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		st, log := n.ended(n.run(box, pod, c))
		for _, line := range []string{"stdout F out", "stderr F err", "stdout F 1000"} {
			if !strings.Contains(log, line) {
				t.Errorf("no %q in the log:\n%s", line, log)
			}
		}
		if st.ExitCode != 0 || st.User.GetLinux().GetUid() != 1000 {
			t.Errorf("status %v", st)
		}
		tty := usersContainer("tty", runtimeapi.NamespaceMode_POD, "sh", "-c", "tty; id -u; sleep 1000")
		tty.Tty, tty.Stdin = true, true
		id := n.run(box, pod, tty)
		if got := n.sh(id, "ps | grep -c '[s]leep 1000'"); got != "2" { // the other's shell is gone; sh and sleep are seen
			t.Logf("processes seen: %s", got)
		}
		if o := owner(t, "/dev/null"); o != 0 {
			t.Errorf("the host's /dev/null belongs to %d now", o)
		}
	})
}

// TestUserNamespacePrivileged: privileges are those over the namespace.
func TestUserNamespacePrivileged(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, handler string) {
		box, pod := n.usersPod("privileged", handler, runtimeapi.NamespaceMode_CONTAINER)
		c := usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "sleep", "1000")
		c.Linux.SecurityContext.Privileged = true
		id := n.run(box, pod, c)
		if got := n.sh(id, "mount -t tmpfs x /mnt 2>/dev/null || mount -t tmpfs x /tmp; touch /sys/kernel/mm 2>/dev/null || echo denied; dmesg -n 1 2>/dev/null || echo denied"); got != "denied\ndenied" {
			t.Errorf("%q", got)
		}
		unmasked := usersContainer("u", runtimeapi.NamespaceMode_CONTAINER, "sleep", "1000")
		unmasked.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN"}}
		id = n.run(box, pod, unmasked)
		if got := n.sh(id, "echo 1 > /proc/sys/net/ipv4/ip_forward && cat /proc/sys/net/ipv4/ip_forward"); got != "1" {
			t.Errorf("unmasked /proc: %q", got)
		}
	})
}

// TestUserNamespacePropagation: mounts that come later on the host reach a mapped
// volume, and another container's processes are seen by one that targets it.
func TestUserNamespacePropagation(t *testing.T) {
	eachRuntime(t, func(t *testing.T, n *node, handler string) {
		vol := filepath.Join(n.dir, "shared")
		check(t, os.MkdirAll(filepath.Join(vol, "later"), 0o755))
		check(t, unix.Mount(vol, vol, "", unix.MS_BIND, ""))
		defer unix.Unmount(vol, unix.MNT_DETACH)
		check(t, unix.Mount("", vol, "", unix.MS_SHARED, ""))
		box, pod := n.usersPod("shared", handler, runtimeapi.NamespaceMode_CONTAINER)
		c := usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "sleep", "1000")
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: vol, UidMappings: usersOption().Uids, GidMappings: usersOption().Gids,
			Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER}}
		id := n.run(box, pod, c)
		check(t, unix.Mount("later", filepath.Join(vol, "later"), "tmpfs", 0, ""))
		defer unix.Unmount(filepath.Join(vol, "later"), unix.MNT_DETACH)
		check(t, os.WriteFile(filepath.Join(vol, "later", "file"), nil, 0o644))
		if got := n.sh(id, "ls /vol/later"); got != "file" {
			t.Errorf("in the container: %q", got)
		}
		debug := usersContainer("debug", runtimeapi.NamespaceMode_TARGET, "sleep", "1000")
		debug.Linux.SecurityContext.NamespaceOptions.TargetId = id
		if got := n.sh(n.run(box, pod, debug), "tr '\\0' ' ' < /proc/1/cmdline"); got != "sleep 1000" {
			t.Errorf("process 1 seen by the debugger: %q", got)
		}
		both := usersContainer("both", runtimeapi.NamespaceMode_CONTAINER, "true")
		both.Mounts = []*runtimeapi.Mount{{ContainerPath: "/vol", HostPath: vol, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL}}
		_, err := n.server.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: both, SandboxConfig: pod})
		contains(t, err, "Bidirectional cannot work")
	})
}

func TestUserNamespaceRefused(t *testing.T) {
	n := newNode(t)
	n.haveBusybox()
	ctx := t.Context()
	run := func(handler string, change func(*runtimeapi.NamespaceOption)) error {
		pod := n.pod("refused")
		o := pod.Linux.SecurityContext.NamespaceOptions
		o.UsernsOptions = usersOption()
		change(o)
		_, err := n.server.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
		return err
	}
	contains(t, run("old", func(*runtimeapi.NamespaceOption) {}), "it is too old")
	contains(t, run("gone", func(*runtimeapi.NamespaceOption) {}), `runtime handler "gone": it is not installed`)
	contains(t, run("nonesuch", func(*runtimeapi.NamespaceOption) {}), `"nonesuch" is not configured`)
	contains(t, run("", func(o *runtimeapi.NamespaceOption) { o.Network = runtimeapi.NamespaceMode_NODE }), "host's network namespace")
	contains(t, run("", func(o *runtimeapi.NamespaceOption) { o.Pid = runtimeapi.NamespaceMode_NODE }), "host's PID namespace")
	contains(t, run("", func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Uids[0].HostId = 0 }), "host's ID 0")
	contains(t, run("", func(o *runtimeapi.NamespaceOption) {
		o.UsernsOptions.Uids[0].Length = 1 << 31
		o.UsernsOptions.Uids[0].HostId = 1 << 31
	}), "not a range")
	contains(t, run("", func(o *runtimeapi.NamespaceOption) { o.UsernsOptions.Gids = nil }), "exactly one mapping")
	box, pod := n.usersPod("box", "", runtimeapi.NamespaceMode_CONTAINER)
	create := func(change func(*runtimeapi.ContainerConfig)) error {
		c := usersContainer("c", runtimeapi.NamespaceMode_CONTAINER, "true")
		change(c)
		_, err := n.server.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: c, SandboxConfig: pod})
		return err
	}
	contains(t, create(func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions.Uids[0].Length = 5
	}), "another user namespace")
	// A mount whose file system cannot: an overlay, as of Linux 6.18.
	lower, over := filepath.Join(n.dir, "lower"), filepath.Join(n.dir, "over")
	for _, d := range []string{lower, over, over + "2"} {
		os.Mkdir(d, 0o755)
	}
	if err := unix.Mount("overlay", over, "overlay", 0, "lowerdir="+lower+":"+over+"2"); err != nil {
		t.Fatal(err)
	}
	defer unix.Unmount(over, unix.MNT_DETACH)
	contains(t, create(func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", HostPath: over, UidMappings: usersOption().Uids, GidMappings: usersOption().Gids}}
	}), "does not support idmapped mounts")
	if l, err := n.server.ListContainers(context.Background(), &runtimeapi.ListContainersRequest{}); err != nil || len(l.Containers) != 0 {
		t.Errorf("left: %v, %v", l, err)
	}
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

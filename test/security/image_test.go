package security

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// orders are what runtimes, monitors and device injectors take orders from, when
// it is an annotation or label. Each would leave a file behind, or a device.
func orders(c *canary) map[string]string {
	return map[string]string{
		"run.oci.handler": "krun", "run.oci.hooks.stderr": filepath.Join(c.empty(), "stderr"), "run.oci.keep_original_groups": "1",
		"run.oci.mount_context_type": "context", "run.oci.seccomp.receiver": filepath.Join(c.empty(), "socket"), "run.oci.delegate-cgroup": "/x", "run.oci.systemd.force_cgroup_v1": c.empty(),
		"run.oci.seccomp_bpf_data": "BgAAAAAA/38=", "run.oci.pidfd_receiver": filepath.Join(c.empty(), "pidfd"), "run.oci.hooks.stdout": filepath.Join(c.empty(), "stdout"),
		"krun.ram_mib": "1", "krun.cpus": "1", "run.wasm.compat": "true",
		"org.systemd.property.ExecStartPre": "'/bin/touch " + filepath.Join(c.empty(), "systemd") + "'", "org.systemd.property.TimeoutStopUSec": "uint64 999",
		"org.criu.config": c.secret, "com.github.containers.runtime.idmap": "x",
		"io.kubernetes.cri.sandbox-id": "other", "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.container-name": "other",
		"io.containerd.runc.v2.group": "other", "io.kubernetes.cri-o.Volumes": c.dir, "io.kubernetes.cri-o.TrySkipVolumeSELinuxLabel": "true",
		"cdi.k8s.io/vendor": "berth.test/none=all", "module.wasm.image/variant": "compat", "io.katacontainers.config.hypervisor.path": "/bin/sh",
	}
}

// TestImageSteersNothing builds an image whose labels, environment and everything
// else that it says of itself are orders to the runtime (CVE-2026-53488).
func TestImageSteersNothing(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		image := n.image(t, func(s *testimage.Spec) {
			s.Config.Labels = orders(c)
			for k, v := range orders(c) {
				s.Config.Env = append(s.Config.Env, k+"="+v)
			}
			s.Config.Env = append(s.Config.Env, "LD_PRELOAD=/evil.so", "_OCI_SYNCPIPE=3", "LISTEN_FDS=9", "NOTIFY_SOCKET="+c.secret, "=nothing", "nothing")
			s.Config.ExposedPorts = map[string]struct{}{"22/tcp": {}}
			s.Config.StopSignal = "SIGRTMAX+900"
		})
		cfg := p.container(image, forever)
		cfg.Labels, cfg.Annotations = map[string]string{"own": "1"}, map[string]string{"own": "2"}
		id := p.mustRun(cfg)
		st := p.status(id)
		if !maps.Equal(st.Labels, cfg.Labels) || !maps.Equal(st.Annotations, cfg.Annotations) {
			t.Errorf("an image has given its container labels %v and annotations %v", st.Labels, st.Annotations)
		}
		p.onlyOwn(id)
		if err := p.stop(id); err != nil {
			t.Error(err)
		}
		c.alive()
	})
}

// TestAnnotationsSteerNothing says the same orders in the annotations and labels of
// a pod and of a container (CVE-2024-3154, CVE-2025-24965).
func TestAnnotationsSteerNothing(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		say := orders(c)
		delete(say, "cdi.k8s.io/vendor") // of a container it is heard, and fails: TestDevicesOfCDI
		p := n.pod(t, handler, func(s *runtimeapi.PodSandboxConfig) { s.Annotations, s.Labels = orders(c), orders(c) })
		cfg := p.container(n.image(t, nil), forever)
		cfg.Annotations, cfg.Labels = say, say
		id := p.mustRun(cfg)
		p.onlyOwn(id)
		if err := p.stop(id); err != nil {
			t.Error(err)
		}
		c.alive()
	})
}

// onlyOwn sees that the specification has the annotations that Berth makes, and
// nothing else that could be an order.
func (p *pod) onlyOwn(id string) {
	p.t.Helper()
	spec := p.spec(id)
	delete(spec.Annotations, "run.oci.seccomp_bpf_data") // compiled of the same specification
	want := []string{
		"io.kubernetes.cri.container-name", "io.kubernetes.cri.container-type", "io.kubernetes.cri.sandbox-id",
		"io.kubernetes.cri.sandbox-name", "io.kubernetes.cri.sandbox-namespace", "io.kubernetes.cri.sandbox-uid",
	}
	if got := slices.Sorted(maps.Keys(spec.Annotations)); !slices.Equal(got, want) {
		p.t.Errorf("annotations of the specification: %v", got)
	}
	if spec.Annotations["io.kubernetes.cri.sandbox-id"] != p.id || spec.Annotations["io.kubernetes.cri.container-type"] != "container" {
		p.t.Errorf("annotations of the specification: %v", spec.Annotations)
	}
	if spec.Hooks != nil {
		p.t.Errorf("the specification has hooks: %+v", spec.Hooks)
	}
	if monitor := parentOf(p.t, p.pid(id)); monitor > 1 {
		env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", monitor))
		if err != nil || strings.Contains(string(env), "PRELOAD") {
			p.t.Errorf("environment of the monitor: %q, %v", env, err)
		}
	}
}

func (p *pod) stop(id string) error {
	_, err := p.n.cri.StopContainer(p.t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 0})
	return err
}

// TestAccountsOfImage resolves users and groups in images whose /etc/passwd and
// /etc/group are links out of them, devices, pipes, or without end.
func TestAccountsOfImage(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		if err := os.WriteFile(c.secret, []byte(c.text+"web:x:0:0::/:/bin/sh\n"), 0o644); err != nil {
			t.Fatal(err)
		}
		c.text += "web:x:0:0::/:/bin/sh\n"
		p := n.pod(t, handler, nil)
		for name, passwd := range map[string]testimage.File{
			"link out": {Link: c.secret}, "link up": {Link: up(c.secret)}, "link without end": {Link: "/etc/passwd"}, "zero by link": {Link: "/dev/zero"},
			"device":                {Mode: os.ModeDevice | os.ModeCharDevice | 0o666, Major: 1, Minor: 5},
			"zero of the container": {Link: "/dev/full"}, "terminal": {Link: "../dev/tty"}, "self": {Link: "/proc/self/fd/0"},
			"pipe":      {Mode: os.ModeNamedPipe | 0o666},
			"directory": {Mode: os.ModeDir | 0o755},
			"huge":      {Body: []byte("root:x:0:0::/:\n" + strings.Repeat("#", 5<<20) + "\nweb:x:5:5::/:\n"), Mode: 0o644},
		} {
			image := n.image(t, files(testimage.Layer{"/etc/passwd": passwd, "/etc/group": passwd, "/dev/zero": {Mode: os.ModeDevice | os.ModeCharDevice | 0o666, Major: 1, Minor: 5}}))
			cfg := p.container(image, "id")
			cfg.Linux.SecurityContext.RunAsUsername = "web"
			if _, err := p.create(cfg); err == nil {
				t.Errorf("%s: the user web was found", name)
			} else {
				refused(t, name, err)
			}
			cfg = p.container(image, "/bin/busybox id -u; /bin/busybox id -g")
			cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 7}
			if !strings.HasPrefix(name, "link") { // of nobody's account: a file that is not there
				_, err := p.create(cfg)
				refused(t, name, err)
			} else if out, _ := p.result(cfg); out != "7\n0\n" {
				t.Errorf("%s: user 7 runs as %q", name, out)
			}
		}
		volume := t.TempDir()
		pipe := filepath.Join(volume, "passwd")
		if err := unix.Mkfifo(pipe, 0o666); err != nil {
			t.Fatal(err)
		}
		for source, at := range map[string]string{pipe: "/etc/passwd", volume: "/etc"} {
			cfg := p.container(n.image(t, nil), "id")
			cfg.Mounts = []*runtimeapi.Mount{{HostPath: source, ContainerPath: at}}
			_, err := p.create(cfg)
			refused(t, "a pipe in a volume at "+at, err)
		}
		c.alive()
	})
}

// TestUsers sees who containers run as: numbers that no user can have, names that
// look like numbers (CVE-2024-40635), groups by both policies (CVE-2023-25173),
// and the same user at each restart (CVE-2019-11245).
func TestUsers(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		accounts := testimage.Layer{
			"/etc/passwd": {Body: []byte("root:x:0:0::/root:/bin/sh\n4294967296:x:0:0::/:\n-1:x:0:0::/:\n+7:x:0:0::/:\nweb:x:101:102::/:\nnogroup:x:8:4294967295::/:\n"), Mode: 0o644},
			"/etc/group":  {Body: []byte("root:x:0:web\nweb:x:102:\nextra:x:300:web\nbad:x:4294967295:web\n"), Mode: 0o644},
		}
		for _, user := range []string{"4294967296", "4294967295", "-1", "+7", "nogroup", "web:4294967296", "nobody-here"} {
			image := n.image(t, func(s *testimage.Spec) { s.Layers, s.Config.User = append(s.Layers, accounts), user })
			st, err := n.cri.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: image}})
			if err != nil {
				t.Fatal(err)
			}
			if uid := st.Image.GetUid(); uid != nil && uid.Value != 8 && !strings.HasPrefix(user, "web") {
				t.Errorf("image user %q is told as number %d", user, uid.Value)
			}
			_, err = p.create(p.container(image, "id"))
			if err == nil {
				t.Errorf("a container of user %q was made", user)
			} else {
				refused(t, user, err)
			}
		}
		image := n.image(t, func(s *testimage.Spec) { s.Layers, s.Config.User = append(s.Layers, accounts), "web" })
		for _, id := range []int64{-1, 1<<32 - 1, 1 << 32, 1<<32 + 5, -1 << 63} {
			cfg := p.container(image, "id")
			cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: id}
			_, err := p.create(cfg)
			refused(t, fmt.Sprint("user ", id), err)
			cfg = p.container(image, "id")
			cfg.Linux.SecurityContext.SupplementalGroups = []int64{id}
			_, err = p.create(cfg)
			refused(t, fmt.Sprint("group ", id), err)
		}
		for policy, want := range map[runtimeapi.SupplementalGroupsPolicy]string{
			runtimeapi.SupplementalGroupsPolicy_Merge: "102 0 300 400", runtimeapi.SupplementalGroupsPolicy_Strict: "102 400",
		} {
			for attempt := range uint32(3) { // a restart is a new container of the next attempt
				cfg := p.container(image, "id -u; id -G")
				cfg.Metadata.Attempt = attempt
				cfg.Linux.SecurityContext.SupplementalGroups, cfg.Linux.SecurityContext.SupplementalGroupsPolicy = []int64{400}, policy
				if out, _ := p.result(cfg); out != "101\n"+want+"\n" {
					t.Errorf("%s, attempt %d: %q, want user 101 and groups %s", policy, attempt, out, want)
				}
			}
		}
		exec := p.mustRun(p.container(image, forever))
		if out := p.sh(exec, "id -u; id -G"); out != "101\n102 0 300" {
			t.Errorf("a command is executed as %q", out)
		}
	})
}

// TestUsersOfANamespace refuses users that a pod's user namespace does not have.
func TestUsersOfANamespace(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.usersPod(t, handler)
		image := n.image(t, nil)
		for _, change := range []func(*runtimeapi.LinuxContainerSecurityContext){
			func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser = &runtimeapi.Int64Value{Value: 1 << 16}
			},
			func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{70000} },
			func(s *runtimeapi.LinuxContainerSecurityContext) {
				s.RunAsUser, s.RunAsGroup = &runtimeapi.Int64Value{Value: 1}, &runtimeapi.Int64Value{Value: 1 << 20}
			},
		} {
			cfg := p.container(image, "id")
			change(cfg.Linux.SecurityContext)
			_, err := p.create(cfg)
			refused(t, cfg.Linux.SecurityContext.String(), err)
		}
		id := p.mustRun(p.container(image, forever))
		if got := processStatus(t, p.pid(id), "Uid"); got != "458752 458752 458752 458752" {
			t.Errorf("root of a user namespace is %s on the host", got)
		}
	})
}

// usersPod is a pod with a user namespace of its own.
func (n *node) usersPod(t testing.TB, handler string) *pod {
	return n.pod(t, handler, func(s *runtimeapi.PodSandboxConfig) {
		ids := []*runtimeapi.IDMapping{{HostId: 7 << 16, Length: 1 << 16}}
		s.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	})
}

package security

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestMountDestinationsOfImage builds images in which every place that something
// is mounted on, or a file is made at, is a link out of the image (CVE-2021-30465,
// CVE-2024-5154, CVE-2025-52565).
func TestMountDestinationsOfImage(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		volume := t.TempDir()
		if err := os.WriteFile(filepath.Join(volume, "own"), []byte("volume"), 0o644); err != nil {
			t.Fatal(err)
		}
		for name, at := range map[string]struct {
			link string // what is a link in the image
			to   string
		}{
			"hosts": {"/etc/hosts", c.secret}, "hosts relative": {"/etc/hosts", up(c.secret)},
			"hostname": {"/etc/hostname", c.secret}, "resolv.conf": {"/etc/resolv.conf", c.secret},
			"mtab": {"/etc/mtab", c.secret}, "localtime": {"/etc/localtime", up(c.empty()) + "/localtime"},
			"etc": {"/etc", c.empty()}, "termination log": {"/dev/termination-log", c.secret},
			"dev": {"/dev", c.empty()}, "shm": {"/dev/shm", c.empty()}, "console": {"/dev/console", c.secret}, "null": {"/dev/null", c.secret},
			"proc": {"/proc", c.empty()}, "sys": {"/sys", up(c.empty())}, "cgroup": {"/sys/fs/cgroup", c.empty()},
			"destination": {"/data", c.empty()}, "destination relative": {"/data", up(c.empty())}, "destination parent": {"/mnt", c.empty()},
			"destination root": {"/data", "/"}, "run": {"/run", c.empty()}, "log": {"/var/log", c.empty()},
		} {
			layer := testimage.Layer{at.link: {Link: at.to}}
			image := n.image(t, func(s *testimage.Spec) {
				if at.link == "/etc" { // a layer over it would only hide what is below
					for path := range s.Layers[0] {
						if strings.HasPrefix(path, "/etc/") {
							delete(s.Layers[0], path)
						}
					}
				}
				s.Layers = append(s.Layers, layer)
			})
			cfg := p.container(image, "echo alive; for f in /etc/hosts /etc/hostname /etc/resolv.conf /dev/termination-log /data/new /mnt/in/new /run/x /var/log/x /dev/shm/x; do echo overwritten > $f; done 2>/dev/null; true")
			cfg.Tty = name == "console"
			message := filepath.Join(t.TempDir(), "message")
			if err := os.WriteFile(message, nil, 0o666); err != nil {
				t.Fatal(err)
			}
			cfg.Mounts = []*runtimeapi.Mount{
				{HostPath: volume, ContainerPath: "/data"}, {HostPath: volume, ContainerPath: "/mnt/in/here"}, {HostPath: message, ContainerPath: "/dev/termination-log"},
			}
			if name == "destination root" {
				cfg.Mounts = cfg.Mounts[:1]
			}
			id, err := p.run(cfg)
			if err == nil {
				p.output(id)
			}
			t.Logf("%s: %v", name, err)
			c.alive()
		}
	})
}

// TestVolumesLeadNowhere mounts volumes whose content is made of links: a mount
// below one goes where the link leads in the container, never on the host.
func TestVolumesLeadNowhere(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		image := n.image(t, nil)
		volume, other := t.TempDir(), t.TempDir()
		for _, link := range []string{c.empty(), up(c.empty()), "/proc/self/cwd", "/proc/1/root" + c.empty(), "/proc/self/root" + c.empty()} {
			at := filepath.Join(volume, "link")
			os.Remove(at)
			if err := os.Symlink(link, at); err != nil {
				t.Fatal(err)
			}
			cfg := p.container(image, "echo x > /data/link/new; true")
			cfg.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: "/data"}, {HostPath: other, ContainerPath: "/data/link/below"}}
			if id, err := p.run(cfg); err == nil {
				p.output(id)
			}
			c.alive()
		}
	})
}

// TestNothingIsMountedOverProc mounts a volume over parts of /proc, and at /dev
// one with devices of its own: masks and labels would be written where its owner
// likes (CVE-2025-31133, CVE-2025-52881).
func TestNothingIsMountedOverProc(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		volume := t.TempDir()
		image := n.image(t, files(testimage.Layer{"/p": {Link: "/proc"}, "/d": {Link: "dev"}}))
		for _, at := range []string{"/proc", "/proc/self", "/proc/self/attr", "/proc/sys", "/proc/sys/kernel", "/proc/1", "/proc/../proc", "proc", "/p", "/p/self", "/p/sys"} {
			cfg := p.container(image, "true")
			cfg.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: at}}
			if _, err := p.create(cfg); err == nil {
				t.Errorf("a volume was mounted at %s", at)
			}
		}
		// The kernel's switches of the host, by the name of a device.
		was := hostSwitches(t)
		for device, to := range map[string]string{"null": "/proc/sys/kernel/core_pattern", "console": "/proc/sysrq-trigger", "zero": "/proc/sys/kernel/core_pattern", "tty": "/proc/self/attr/exec"} {
			os.RemoveAll(filepath.Join(volume, device))
			if err := os.Symlink(to, filepath.Join(volume, device)); err != nil {
				t.Fatal(err)
			}
		}
		for _, at := range []string{"/dev", "/d", "dev/"} {
			cfg := p.container(image, "for f in /proc/kcore /proc/keys /proc/timer_list /proc/acpi /proc/scsi /sys/firmware /dev/null; do echo '|/evil' > $f; done 2>/dev/null; cat /proc/kcore | head -c 20; true")
			cfg.Tty = true
			cfg.Mounts = []*runtimeapi.Mount{{HostPath: volume, ContainerPath: at}}
			id, err := p.run(cfg)
			t.Logf("%s: %v", at, err)
			if err == nil {
				t.Logf("%s: %q", at, p.output(id))
			}
			if now := hostSwitches(t); now != was {
				restoreSwitches(t, was)
				t.Fatalf("a container with a volume at %s has changed the host: %q, was %q", at, now, was)
			}
		}
	})
}

const corePattern = "/proc/sys/kernel/core_pattern"

func hostSwitches(t testing.TB) string {
	t.Helper()
	b, err := os.ReadFile(corePattern)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func restoreSwitches(t testing.TB, was string) {
	if err := os.WriteFile(corePattern, []byte(was), 0); err != nil {
		t.Error(err)
	}
}

// TestImageVolumes builds images whose VOLUME leads out of them (CVE-2022-23648):
// nothing is made of VOLUME at all.
func TestImageVolumes(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		image := n.image(t, func(s *testimage.Spec) {
			s.Layers = append(s.Layers, testimage.Layer{"/v": {Link: c.dir}})
			s.Config.Volumes = map[string]struct{}{up(c.dir): {}, "/../../.." + c.dir: {}, "/v": {}, "/data": {}}
		})
		cfg := p.container(image, "cat "+c.secret+" /data/secret /v/secret 2>/dev/null; ls /data")
		out, _ := p.result(cfg)
		if strings.Contains(out, c.text) {
			t.Errorf("a VOLUME of an image shows a file of the host's: %q", out)
		}
		if id, err := p.create(p.container(image, "true")); err == nil {
			for _, m := range p.spec(id).Mounts {
				if m.Source != "" && strings.HasPrefix(m.Source, c.dir) || m.Destination == "/data" {
					t.Errorf("an image's VOLUME was mounted: %+v", m)
				}
			}
		}
		c.alive()
	})
}

// TestMountsOfAContainer sees what propagates, and that read-only mounts are so
// with all below them.
func TestMountsOfAContainer(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		volume := filepath.Join(n.dir, unique("volume"))
		if err := os.MkdirAll(filepath.Join(volume, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := unix.Mount("tmpfs", filepath.Join(volume, "sub"), "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Unmount(filepath.Join(volume, "sub"), unix.MNT_DETACH) })
		cfg := p.container(n.image(t, nil), forever)
		cfg.Mounts = []*runtimeapi.Mount{
			{HostPath: volume, ContainerPath: "/private"},
			{HostPath: volume, ContainerPath: "/ro", Readonly: true},
			{HostPath: volume, ContainerPath: "/rro", Readonly: true, RecursiveReadOnly: true},
		}
		id := p.mustRun(cfg)
		if out := p.sh(id, "touch /ro/x /rro/x /rro/sub/x 2>&1; touch /private/sub/ok && echo written"); strings.Count(out, "Read-only") != 3 || !strings.Contains(out, "written") {
			t.Errorf("read-only mounts: %s", out)
		}
		if err := unix.Mount("tmpfs", volume, "tmpfs", 0, ""); err != nil {
			t.Fatal(err)
		}
		defer unix.Unmount(volume, unix.MNT_DETACH)
		if err := os.WriteFile(filepath.Join(volume, "late"), nil, 0o644); err != nil {
			t.Fatal(err)
		}
		if out := p.sh(id, "ls /private /ro /rro"); strings.Contains(out, "late") {
			t.Errorf("a mount made later came into the container: %s", out)
		}
		mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.pid(id)))
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(mounts)) {
			if slices.ContainsFunc(strings.Fields(line), func(f string) bool { return strings.HasPrefix(f, "shared:") }) {
				t.Errorf("a mount of the container is shared with others: %s", line)
			}
		}
	})
}

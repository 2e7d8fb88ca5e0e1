package security

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestConfinement sees how the first process of a container, and a command
// executed in it, are confined.
func TestConfinement(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		image := n.image(t, nil)
		type sec = runtimeapi.LinuxContainerSecurityContext
		for name, tc := range map[string]struct {
			change func(*sec)
			want   map[string]string // of /proc/1/status
			not    string            // a set of capabilities that may not be had
		}{
			"default":         {func(*sec) {}, map[string]string{"Seccomp": "2", "CapAmb": "0000000000000000", "CapInh": "0000000000000000", "NoNewPrivs": "0"}, "CapBnd"},
			"no_new_privs":    {func(s *sec) { s.NoNewPrivs = true }, map[string]string{"NoNewPrivs": "1"}, ""},
			"drop all":        {func(s *sec) { s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}} }, map[string]string{"CapBnd": none, "CapEff": none, "CapPrm": none, "CapAmb": none, "CapInh": none}, ""},
			"drop all, add":   {func(s *sec) { s.Capabilities = caps([]string{"CHOWN"}, []string{"all"}) }, map[string]string{"CapBnd": "0000000000000001", "CapEff": "0000000000000001", "CapAmb": none}, ""},
			"add, drop":       {func(s *sec) { s.Capabilities = caps([]string{"CAP_CHOWN", "KILL"}, []string{"chown"}) }, map[string]string{"CapAmb": none}, "CapBnd 0"},
			"unconfined":      {func(s *sec) { s.Seccomp.ProfileType = runtimeapi.SecurityProfile_Unconfined }, map[string]string{"Seccomp": "0"}, ""},
			"user drops caps": {func(s *sec) { s.RunAsUser = &runtimeapi.Int64Value{Value: 99} }, map[string]string{"CapEff": none, "CapPrm": none, "CapAmb": none}, ""},
			"ambient": {func(s *sec) {
				s.RunAsUser = &runtimeapi.Int64Value{Value: 99}
				s.Capabilities = &runtimeapi.Capability{DropCapabilities: []string{"ALL"}, AddAmbientCapabilities: []string{"CAP_CHOWN"}}
			}, map[string]string{"CapBnd": "0000000000000001", "CapEff": "0000000000000001", "CapAmb": "0000000000000001"}, ""},
		} {
			cfg := p.container(image, forever)
			tc.change(cfg.Linux.SecurityContext)
			id := p.mustRun(cfg)
			keys := append([]string{"Seccomp"}, "NoNewPrivs", "CapBnd", "CapEff", "CapPrm", "CapAmb", "CapInh")
			beside := p.sh(id, "cat /proc/self/status")
			for _, k := range keys {
				got := processStatus(t, p.pid(id), k)
				if want, ok := tc.want[k]; ok && got != want {
					t.Errorf("%s: %s is %s, want %s", name, k, got, want)
				}
				if !strings.Contains(beside, k+":\t"+got+"\n") {
					t.Errorf("%s: of a command executed beside, %s is not %s", name, k, got)
				}
			}
			if mask := processStatus(t, p.pid(id), "CapBnd"); tc.not == "CapBnd" && bit(t, mask, unix.CAP_SYS_ADMIN) || tc.not == "CapBnd 0" && bit(t, mask, unix.CAP_CHOWN) {
				t.Errorf("%s: capabilities %s", name, mask)
			}
		}
		for _, c := range []string{"CAP_EVERYTHING", "", "CAP_CHOWN,CAP_SYS_ADMIN", "CHOWN\n"} {
			cfg := p.container(image, "true")
			cfg.Linux.SecurityContext.Capabilities = caps([]string{c}, nil)
			_, err := p.create(cfg)
			refused(t, "capability "+c, err)
		}
	})
}

const none = "0000000000000000"

func caps(add, drop []string) *runtimeapi.Capability {
	return &runtimeapi.Capability{AddCapabilities: add, DropCapabilities: drop}
}

func bit(t testing.TB, mask string, n int) bool {
	t.Helper()
	var v uint64
	if _, err := fmt.Sscanf(mask, "%x", &v); err != nil {
		t.Fatal(err)
	}
	return v&(1<<n) != 0
}

// TestKernelFilesAreHidden sees that the kernel's private files are hidden or
// read-only, in images that put links and devices of their own where runtimes
// look for what to hide them with (CVE-2025-31133, CVE-2025-52565).
func TestKernelFilesAreHidden(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		was := hostSwitches(t)
		for name, layer := range map[string]testimage.Layer{
			"plain": {}, "null is a link": {"/dev/null": {Link: corePattern}, "/dev/console": {Link: "/proc/sysrq-trigger"}},
			"null is a file": {"/dev/null": {Body: []byte("x"), Mode: 0o666}}, "proc is full": {"/proc/kcore": {Body: []byte("x"), Mode: 0o666}, "/proc/sys/kernel/core_pattern": {Body: []byte("x"), Mode: 0o666}, "/proc/keys": {Link: corePattern}},
			"masked is a link": {"/sys/firmware": {Link: "/proc/sys"}, "/proc/acpi": {Link: "/proc/sys"}},
		} {
			for _, tty := range []bool{false, true} {
				cfg := p.container(n.image(t, files(layer)), `
for f in /proc/kcore /proc/keys /proc/timer_list /proc/interrupts /proc/sched_debug /proc/latency_stats; do [ -e $f ] && [ -n "$(head -c 1 $f 2>/dev/null)" ] && echo READ $f; done
for d in /proc/acpi /proc/scsi /proc/asound /sys/firmware /sys/devices/virtual/powercap; do [ -d $d ] && [ -n "$(ls -A $d)" ] && echo LISTED $d; done
for f in /proc/sys/kernel/core_pattern /proc/sysrq-trigger /proc/sys/kernel/hostname /proc/irq/default_smp_affinity /proc/kcore /proc/keys /sys/kernel/uevent_helper /sys/kernel/mm/ksm/run; do (echo '|/evil' > $f) 2>/dev/null && [ "$(stat -c %t:%T $f)" != 1:3 ] && echo WRITTEN $f; done
mount -o remount,rw /proc/sys 2>/dev/null && echo REMOUNTED; umount /proc/kcore 2>/dev/null && echo UNMOUNTED; true`)
				cfg.Tty = tty
				id, err := p.run(cfg)
				if err != nil {
					t.Logf("%s: %v", name, err)
					continue
				}
				if out := strings.TrimSpace(p.output(id)); out != "" {
					t.Errorf("%s, terminal %v: %s", name, tty, out)
				}
				if now := hostSwitches(t); now != was {
					restoreSwitches(t, was)
					t.Fatalf("%s: the host's %s is %q", name, corePattern, now)
				}
			}
		}
	})
}

// TestDevicesAreDenied sees that a container reaches no device but its own, even
// by a node that its image brings or that it makes.
func TestDevicesAreDenied(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		image := n.image(t, files(testimage.Layer{"/kmsg": {Mode: os.ModeDevice | os.ModeCharDevice | 0o666, Major: 1, Minor: 11}}))
		script := `for d in "/kmsg" "/made"; do [ $d = /made ] && { mknod /made c 1 11 2>/dev/null || continue; }; (head -c 1 $d >/dev/null) 2>/dev/null && echo OPENED $d; done; ls -l /dev/null /dev/zero >/dev/null && echo fine; for d in /dev/kmsg /dev/mem /dev/fuse /dev/loop-control /dev/kvm /dev/net/tun; do [ -e $d ] && echo THERE $d; done; true`
		for name, p := range map[string]*pod{"plain": n.pod(t, handler, nil), "user namespace": n.usersPod(t, handler)} {
			if out, _ := p.result(p.container(image, script)); out != "fine\n" {
				t.Errorf("%s: %s", name, out)
			}
		}
		p := n.pod(t, handler, nil)
		for what, d := range map[string]*runtimeapi.Device{
			"no device": {HostPath: "/etc/passwd", ContainerPath: "/dev/x"}, "missing": {HostPath: "/dev/berth-none", ContainerPath: "/dev/x"},
			"unclean": {HostPath: "/dev/null", ContainerPath: "/dev/../../x"}, "permissions": {HostPath: "/dev/null", ContainerPath: "/dev/x", Permissions: "rwx"},
			"relative": {HostPath: "/dev/null", ContainerPath: "x"},
		} {
			cfg := p.container(image, "true")
			cfg.Devices = []*runtimeapi.Device{d}
			if _, err := p.create(cfg); err == nil {
				t.Errorf("%s: the device %v was taken", what, d)
			}
		}
	})
}

// TestCgroupOfEveryCombination sees that the processes of a container are below
// the pod's cgroup, whatever else is asked for (CVE-2025-47291).
func TestCgroupOfEveryCombination(t *testing.T) {
	modes := map[string]runtimeapi.NamespaceMode{"own": runtimeapi.NamespaceMode_CONTAINER, "pod": runtimeapi.NamespaceMode_POD, "host": runtimeapi.NamespaceMode_NODE}
	each(t, func(t *testing.T, n *node, handler string) {
		image := n.image(t, nil)
		for pid, pidMode := range modes {
			for _, host := range []bool{false, true} {
				for _, users := range []bool{false, true} {
					if users && (host || pid == "host") {
						continue // refused: see TestUserNamespaceRefused of cri/server
					}
					change := func(s *runtimeapi.PodSandboxConfig) {
						o := s.Linux.SecurityContext.NamespaceOptions
						o.Pid = pidMode
						if host {
							o.Network, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
						}
						if users {
							ids := []*runtimeapi.IDMapping{{HostId: 7 << 16, Length: 1 << 16}}
							o.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
						}
					}
					p := n.pod(t, handler, change)
					for _, privileged := range []bool{false, true} {
						name := fmt.Sprintf("pid %s, host %v, users %v, privileged %v", pid, host, users, privileged)
						cfg := p.container(image, "/bin/busybox sleep 1001 & "+forever)
						cfg.Linux.SecurityContext.Privileged = privileged
						id := p.mustRun(cfg)
						for _, pid := range []int{p.pid(id)} {
							p.placed(name, pid)
						}
						// A command executed: it looks itself, where the tree is shown; the host sees its cgroup by its parent otherwise.
						if out := p.sh(id, "cat /proc/self/cgroup"); !privileged && !users && !strings.Contains(out, id) && !strings.Contains(out, "/\n") {
							t.Errorf("%s: a command is executed in %s", name, out)
						}
					}
				}
			}
		}
	})
}

// placed sees that pid is below the pod's cgroup in every hierarchy.
func (p *pod) placed(what string, pid int) {
	p.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		p.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if f[0] == "0" && len(strings.Split(string(b), "\n")) > 2 {
			continue // the empty unified hierarchy of a hybrid host
		}
		if !strings.HasPrefix(f[2], p.cgroup+"/") {
			p.t.Errorf("%s: process %d is in %s of %s, want below %s", what, pid, f[2], f[1], p.cgroup)
		}
	}
}

// TestCgroupParents refuses parents that are no path below the root, and limits
// that are no file of a controller.
func TestCgroupParents(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		for _, parent := range []string{"../../x", "/a/../../x", "/a\n/b", "/..", "/a\x00"} {
			cfg := n.configOf(unique("pod"))
			cfg.Linux.CgroupParent = parent
			_, err := n.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
			refused(t, parent, err)
		}
		p := n.pod(t, handler, nil)
		for _, key := range []string{"../cgroup.procs", "cgroup.procs", "cgroup.subtree_control", "/memory.max", "a/b", "", "memory.max\n", "cgroup.kill", "noslash"} {
			cfg := p.container(n.image(t, nil), "true")
			cfg.Linux.Resources.Unified = map[string]string{key: "1"}
			_, err := p.create(cfg)
			refused(t, "unified "+key, err)
		}
		cfg := p.container(n.image(t, nil), "true")
		cfg.Linux.Resources.HugepageLimits = []*runtimeapi.HugepageLimit{{PageSize: "../2MB", Limit: 1 << 20}}
		_, err := p.create(cfg)
		refused(t, "huge pages of no size", err)
	})
}

// TestStateIsClosed sees that nobody but root can open what the runtime keeps, nor
// its sockets, none of which is abstract (CVE-2020-15257, CVE-2024-25621).
func TestStateIsClosed(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		cfg := p.container(n.image(t, nil), forever)
		cfg.Tty, cfg.Stdin = true, true
		id := p.mustRun(cfg)
		eventually(t, "the socket is there", func() bool { _, err := os.Lstat(n.state("cri.sock")); return err == nil })
		for _, root := range []string{n.state("cri.sock"), n.state("oci"), n.state("exits"), n.state("ns"), filepath.Join(n.state("containers"), id), filepath.Join(n.state("sandboxes"), p.id)} {
			p.closed(root, true)
		}
		for _, open := range []string{n.state("containers"), n.state("sandboxes"), filepath.Join(n.dir, "images")} {
			if st, err := os.Stat(open); err != nil || st.Mode().Perm()&0o066 != 0 {
				t.Errorf("%s has mode %v, %v", open, st.Mode(), err)
			}
		}
		sockets, err := os.ReadFile("/proc/net/unix")
		if err != nil {
			t.Fatal(err)
		}
		for line := range strings.Lines(string(sockets)) {
			if f := strings.Fields(line); len(f) == 8 && strings.HasPrefix(f[7], "@") && (strings.Contains(f[7], id) || strings.Contains(f[7], n.dir) || strings.Contains(f[7], "berth")) {
				t.Errorf("an abstract socket: %s", f[7])
			}
		}
	})
}

// closed sees that nobody else can look into path, and if he could, that nobody
// could write there.
func (p *pod) closed(path string, first bool) {
	p.t.Helper()
	st, err := os.Lstat(path)
	if err != nil {
		p.t.Error(err)
		return
	}
	if first && st.Mode().Perm()&0o077 != 0 {
		p.t.Errorf("%s lets others in: %v", path, st.Mode())
	}
	if st.Mode()&os.ModeSymlink == 0 && st.Mode().Perm()&0o022 != 0 && filepath.Base(path) != "shm" && st.Mode()&os.ModeNamedPipe == 0 { // runc's pipe lies in a closed directory
		p.t.Errorf("%s lets others write: %v", path, st.Mode())
	}
	if !st.IsDir() || filepath.Base(path) == "rootfs" || filepath.Base(path) == "shm" {
		return
	}
	entries, err := os.ReadDir(path)
	if err != nil {
		p.t.Error(err)
	}
	for _, e := range entries {
		p.closed(filepath.Join(path, e.Name()), false)
	}
}

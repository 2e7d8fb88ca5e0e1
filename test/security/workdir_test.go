package security

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	testimage "github.com/berthd/berth/test/image"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// escape is a script that reads the canary by every relative path that leads out
// of a root filesystem whose working directory is one of the host's.
func escape(c *canary) string {
	return fmt.Sprintf(`p=.%s; for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cat $p 2>/dev/null && echo ESCAPED; p=../$p; done; ls /proc/self/cwd/../../../..%s 2>/dev/null && echo ESCAPED; true`, c.secret, c.secret)
}

// TestWorkingDirectoryOfImage builds images whose WORKDIR is a descriptor that
// the OCI runtime might have left open (CVE-2024-21626).
func TestWorkingDirectoryOfImage(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		links := testimage.Layer{
			"/relative": {Link: "proc/self/cwd"}, "/indirect": {Link: "/hop"}, "/hop": {Link: "/proc/1/root"}, "/up": {Link: up(c.dir)}, "/host": {Link: c.dir},
			"/deep/real": {Mode: os.ModeDir | 0o755}, "/thread": {Link: "/proc/thread-self/fd/7"}, "/dots": {Link: "/proc/./self/../self/fd/8"},
		}
		dirs := []string{"/proc/self/fd/8", "/proc/self/fd/../fd/7", "/proc/1/root", "proc/self/fd/9", "/proc/thread-self/cwd", "/x/../proc/self/fd/8", "/proc/self", "/proc/8/fd/3", "/relative", "/indirect", "/up", "/host", "/deep/real/../../proc/self/fd/7", "/thread", "/dots"}
		for fd := 3; fd < 16; fd++ {
			name := fmt.Sprintf("/fd%d", fd)
			links[name] = testimage.File{Link: fmt.Sprintf("/proc/self/fd/%d", fd)}
			dirs = append(dirs, name)
		}
		// By the image, and by the container: both are resolved by the same code, so
		// the image is built anew only for some.
		image := n.image(t, files(links))
		for i, dir := range dirs {
			cfg := p.container(image, escape(c))
			if i%4 == 0 {
				cfg.Image.Image = n.image(t, func(s *testimage.Spec) { s.Layers, s.Config.WorkingDir = append(s.Layers, links), dir })
			} else {
				cfg.WorkingDir = dir
			}
			id, err := p.create(cfg)
			if err != nil { // ours to refuse where it leads to descriptors, the runtime's where it is outside or nowhere
				if dir != "/up" && dir != "/host" {
					refused(t, dir, err)
				}
				continue
			}
			p.n.cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}) // may fail; then there is no output
			if out := p.output(id); strings.Contains(out, "ESCAPED") {
				t.Errorf("working directory %s is one of the host's: %s", dir, out)
			}
		}
		c.alive()
	})
}

// TestWorkingDirectoryOfExec replaces a running container's working directory by
// links to descriptors, and has commands executed there (CVE-2024-21626, the
// second way).
func TestWorkingDirectoryOfExec(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		cfg := p.container(n.image(t, files(testimage.Layer{"/work": {Mode: os.ModeDir | 0o755}})), "mv /work /moved; ln -s /proc/self/fd/3 /work; touch /tmp/ready; "+forever)
		cfg.WorkingDir = "/work"
		id := p.mustRun(cfg)
		root := fmt.Sprintf("/proc/%d/root", p.pid(id))
		eventually(t, "the link is there", func() bool { _, err := os.Lstat(filepath.Join(root, "tmp/ready")); return err == nil })
		for fd := 3; fd < 16; fd++ {
			if err := os.Remove(filepath.Join(root, "work")); err != nil {
				t.Fatal(err)
			}
			if err := os.Symlink(fmt.Sprintf("/proc/self/fd/%d", fd), filepath.Join(root, "work")); err != nil {
				t.Fatal(err)
			}
			if out, _, _ := p.exec(id, escape(c)); strings.Contains(out, "ESCAPED") {
				t.Errorf("exec with the working directory /proc/self/fd/%d is on the host: %s", fd, out)
			}
		}
		c.alive()
	})
}

// TestDescriptors sees that neither a container nor a command executed in it has
// a descriptor that it should not have, nor its monitor one of the agent's.
func TestDescriptors(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		id := p.mustRun(p.container(n.image(t, nil), "ls -l /proc/self/fd; "+forever))
		list := func() string { return p.sh(id, "ls -l /proc/1/fd; echo exec; ls -l /proc/self/fd/") }
		for line := range strings.Lines(list()) {
			if _, to, ok := strings.Cut(line, " -> "); ok {
				to = strings.TrimSpace(to)
				if !strings.HasPrefix(to, "pipe:") && to != "/dev/null" && !strings.HasPrefix(to, "/proc/") {
					t.Errorf("a descriptor of a container leads to %s", to)
				}
			}
		}
		monitor := parentOf(t, p.pid(id))
		fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", monitor))
		if err != nil {
			t.Fatal(err)
		}
		for _, fd := range fds {
			to, _ := os.Readlink(fmt.Sprintf("/proc/%d/fd/%s", monitor, fd.Name()))
			own := strings.HasPrefix(to, n.state("containers/"+id)) || strings.HasPrefix(to, n.state("exits")) || strings.HasPrefix(to, filepath.Join(n.dir, "logs"))
			if strings.HasPrefix(to, "/") && !own && to != "/dev/null" && !strings.HasPrefix(to, "/sys/fs/cgroup") && !strings.HasPrefix(to, "/proc/") {
				t.Errorf("descriptor %s of a monitor leads to %s", fd.Name(), to)
			}
		}
	})
}

// TestRuntimeIsNotOverwritten lets a container be executed as the OCI runtime's
// own program, and write to it (CVE-2019-5736).
func TestRuntimeIsNotOverwritten(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		before := programs(t)
		p := n.pod(t, handler, nil)
		image := n.image(t, files(testimage.Layer{
			"/evil": {Link: "/proc/self/exe"},
			"/x":    {Body: []byte("#!/proc/self/exe\n"), Mode: 0o755},
		}))
		for _, command := range [][]string{{"/evil"}, {"/x"}, {"/proc/self/exe", "--version"}} {
			cfg := p.container(image, "")
			cfg.Command = command
			if id, err := p.create(cfg); err == nil {
				n.cri.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}) // whatever comes of it
			}
		}
		// A second command, run by the runtime: the first watches for the runtime's
		// process in the container and tries to open its program for writing.
		id := p.mustRun(p.container(image, `while :; do for e in /proc/[0-9]*/exe; do case $e in /proc/1/exe|/proc/self/exe) continue;; esac; case $(readlink $e) in *busybox*) ;; *) (echo evil > $e) 2>/dev/null && echo WRITTEN $(readlink $e) >> /tmp/written;; esac; done; done`))
		for range 5 {
			p.n.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/x"}, Timeout: 10})
			p.n.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/evil"}, Timeout: 10})
		}
		if out, _, _ := p.exec(id, "cat /tmp/written"); strings.Contains(out, "WRITTEN") {
			t.Errorf("a runtime's program was written to: %s", out)
		}
		if after := programs(t); after != before {
			t.Errorf("the programs of the host have changed: %s, before %s", after, before)
		}
	})
}

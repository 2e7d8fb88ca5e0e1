package security

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	testimage "github.com/berthd/berth/test/image"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// each runs a test on every OCI runtime, beside the other tests.
func each(t *testing.T, f func(t *testing.T, n *node, handler string)) {
	t.Parallel()
	if shared == nil {
		t.Skip(absent)
	}
	for _, h := range handlers {
		t.Run(h, func(t *testing.T) {
			t.Parallel()
			f(t, shared, h)
		})
	}
}

var serial atomic.Int64

func unique(prefix string) string { return fmt.Sprintf("%s-%d", prefix, serial.Add(1)) }

// canary is a directory of the host's that nobody in a container may read or
// change: a secret, an empty directory, and links of the same names to try.
type canary struct {
	t      testing.TB
	dir    string
	secret string // path of a file
	text   string // its content
}

func newCanary(t testing.TB, n *node) *canary {
	t.Helper()
	c := &canary{t: t, dir: filepath.Join(n.dir, unique("canary"))}
	c.secret, c.text = filepath.Join(c.dir, "secret"), "text of "+filepath.Base(c.dir)+"\n"
	if err := os.MkdirAll(filepath.Join(c.dir, "empty"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(c.secret, []byte(c.text), 0o666); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(c.secret, 0o666); err != nil { // nothing but the runtime keeps them from it
		t.Fatal(err)
	}
	return c
}

func (c *canary) empty() string { return filepath.Join(c.dir, "empty") }

// up is path as a relative path from anywhere not too deep.
func up(path string) string { return strings.Repeat("../", 12) + strings.TrimPrefix(path, "/") }

// alive sees that nothing has changed.
func (c *canary) alive() {
	c.t.Helper()
	if b, err := os.ReadFile(c.secret); err != nil || string(b) != c.text {
		c.t.Errorf("a file of the host's has been written: %q, %v", b, err)
	}
	for dir, want := range map[string]int{c.dir: 2, c.empty(): 0} {
		if left, err := os.ReadDir(dir); err != nil || len(left) != want {
			c.t.Errorf("a directory of the host's has been changed: %v, %v", left, err)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), " "+c.dir) {
		c.t.Errorf("something was mounted on the host: %v\n%s", err, mounts)
	}
}

// image imports busybox, changed, and returns its name.
func (n *node) image(t testing.TB, change func(*testimage.Spec)) string {
	t.Helper()
	name := "docker.io/test/" + unique("image") + ":1"
	spec, err := testimage.BusyboxSpec(name)
	if err != nil {
		t.Skip(err)
	}
	if change != nil {
		change(&spec)
	}
	var b bytes.Buffer
	if err := testimage.WriteOCI(&b, spec); err != nil {
		t.Fatal(err)
	}
	if _, err := n.images.Import(t.Context(), &b, nil); err != nil {
		t.Fatal(err)
	}
	return name
}

// files adds a layer.
func files(l testimage.Layer) func(*testimage.Spec) {
	return func(s *testimage.Spec) { s.Layers = append(s.Layers, l) }
}

// pod is a ready sandbox.
type pod struct {
	t      testing.TB
	n      *node
	id     string
	config *runtimeapi.PodSandboxConfig
	cgroup string
}

// configOf is the sandbox of a pod named so.
func (n *node) configOf(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name}, Hostname: name,
		LogDirectory: filepath.Join(n.dir, "logs", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    n.parent + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}
}

func (n *node) pod(t testing.TB, handler string, change func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	cfg := n.configOf(unique("pod"))
	if change != nil {
		change(cfg)
	}
	r, err := n.cri.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		t.Fatal(err)
	}
	p := &pod{t: t, n: n, id: r.PodSandboxId, config: cfg, cgroup: cfg.GetLinux().GetCgroupParent()}
	t.Cleanup(p.remove)
	return p
}

func (p *pod) remove() {
	ctx := context.Background()
	if _, err := p.n.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	if _, err := p.n.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.t.Error(err)
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*" + p.cgroup)
	for _, d := range append(dirs, "/sys/fs/cgroup"+p.cgroup) {
		os.Remove(d) // the agent's to make and remove; here it comes with the container
	}
}

// container is the configuration of one that runs a shell script.
func (p *pod) container(image, script string) *runtimeapi.ContainerConfig {
	name := unique("c")
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: image},
		Command: []string{"/bin/busybox", "sh", "-c", script}, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Pid:           p.config.Linux.SecurityContext.NamespaceOptions.Pid,
					Network:       p.config.Linux.SecurityContext.NamespaceOptions.Network,
					Ipc:           p.config.Linux.SecurityContext.NamespaceOptions.Ipc,
					UsernsOptions: p.config.Linux.SecurityContext.NamespaceOptions.UsernsOptions,
				},
				Seccomp: &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
			},
		},
	}
}

const forever = "exec /bin/busybox sleep 1000"

func (p *pod) create(c *runtimeapi.ContainerConfig) (string, error) {
	r, err := p.n.cri.CreateContainer(p.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: c, SandboxConfig: p.config})
	return r.GetContainerId(), err
}

// run creates and starts; the error is of either.
func (p *pod) run(c *runtimeapi.ContainerConfig) (string, error) {
	id, err := p.create(c)
	if err == nil {
		_, err = p.n.cri.StartContainer(p.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	return id, err
}

// mustRun is run without an error.
func (p *pod) mustRun(c *runtimeapi.ContainerConfig) string {
	p.t.Helper()
	id, err := p.run(c)
	if err != nil {
		p.t.Fatal(err)
	}
	return id
}

// result runs a container to its end and returns its log's text and exit code.
func (p *pod) result(c *runtimeapi.ContainerConfig) (string, int32) {
	p.t.Helper()
	id := p.mustRun(c)
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		st := p.status(id)
		if st.State == runtimeapi.ContainerState_CONTAINER_EXITED {
			return said(p.t, st.LogPath), st.ExitCode
		}
		if time.Now().After(end) {
			p.t.Fatalf("container %s does not end", id)
		}
	}
}

// said is what a container wrote, without the log's own words.
func said(t testing.TB, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		if f := strings.SplitN(line, " ", 4); len(f) == 4 {
			if f[2] == "P" {
				f[3] = strings.TrimSuffix(f[3], "\n")
			}
			out.WriteString(f[3])
		}
	}
	return out.String()
}

func (p *pod) status(id string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	r, err := p.n.cri.ContainerStatus(p.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.Status
}

// exec runs a script beside a container and returns what it wrote and its exit code.
func (p *pod) exec(id, script string) (string, int32, error) {
	r, err := p.n.cri.ExecSync(p.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/bin/busybox", "sh", "-c", script}, Timeout: 20})
	return string(r.GetStdout()) + string(r.GetStderr()), r.GetExitCode(), err
}

// sh is exec that has to succeed.
func (p *pod) sh(id, script string) string {
	p.t.Helper()
	out, code, err := p.exec(id, script)
	if err != nil || code != 0 {
		p.t.Fatalf("%s: %d, %v\n%s", script, code, err, out)
	}
	return strings.TrimSpace(out)
}

// refused sees that err says no, of what was asked for.
func refused(t testing.TB, what string, err error) {
	t.Helper()
	switch c := status.Code(err); c {
	case codes.InvalidArgument, codes.FailedPrecondition, codes.NotFound:
	default:
		t.Errorf("%s: want a refusal, got %v: %v", what, c, err)
	}
}

package handlers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/patience"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ways are the misbehaviours: where an error comes out, what it says and within
// which time.
var ways = []struct {
	way    string
	call   string // the CRI call that fails; empty: none
	says   string
	within time.Duration
}{
	{"create:hang", "create", "did not end create in time", 75 * time.Second},
	{"create:nothing", "create", "", 20 * time.Second},
	{"create:garbage", "create", "did not end create in time", 75 * time.Second}, /* conmon takes no more than a pipe holds */
	{"create:crash", "create", "", 20 * time.Second},
	{"create:silent", "create", "", 20 * time.Second},
	{"create:leave", "", "", 20 * time.Second},
	{"create:elsewhere", "create", "says that process 1 is container", 20 * time.Second},
	{"start:hang", "start", "did not end start within 30s and was killed", 45 * time.Second},
	{"start:nothing", "start", "says that it has started", 20 * time.Second},
	{"start:garbage", "start", "start failed", 20 * time.Second},
	{"start:crash", "start", "said nothing (signal: killed)", 20 * time.Second},
	{"start:silent", "start", "said nothing (exit status 3)", 20 * time.Second},
	{"start:leave", "", "", 20 * time.Second},
	{"state:hang", "start", "did not end state within 5s", 20 * time.Second},
	{"state:nonsense", "start", "something that is no state", 20 * time.Second},
	{"state:garbage", "start", "state failed", 20 * time.Second},
	{"exec:hang", "exec", "was killed after 2s", 20 * time.Second},
	{"exec:nothing", "exec", "has not run it", 20 * time.Second},
	{"exec:crash", "", "", 20 * time.Second}, // as if the command had been killed, which it has been
	{"delete:hang", "", "", 20 * time.Second},
	{"delete:nothing", "", "", 20 * time.Second},
	{"delete:silent", "", "", 20 * time.Second},
	{"delete:leave", "", "", 20 * time.Second},
}

func handlerOf(way string) string { return "bad-" + strings.ReplaceAll(way, ":", "-") }

// bad builds the misbehaving runtime.
func bad(t *testing.T, dir string) string {
	t.Helper()
	if _, err := exec.LookPath("crun"); err != nil {
		t.Skip("needs crun, which the misbehaving runtime is otherwise")
	}
	path := filepath.Join(dir, "bad")
	if out, err := exec.Command("go", "build", "-o", path, "github.com/berthd/berth/test/handlers/bad").CombinedOutput(); err != nil {
		t.Fatalf("building the misbehaving runtime: %v\n%s", err, out)
	}
	return path
}

// start starts an agent with a handler for each misbehaviour.
func start(t *testing.T) *node.Agent {
	t.Helper()
	node.NotOver(t, node.Containerd, "the handlers are those of the embedded runtime's configuration")
	a := node.New(t, node.Binary(t, "BERTH"))
	path := bad(t, a.Dir)
	config := "apiVersion: berth.dev/v1alpha1\nkind: Configuration\nruntime:\n  handlers:\n    seeing: {path: /usr/bin/crun, annotations: [\"test.berth.dev/*\"]}\n"
	for _, w := range ways {
		config += fmt.Sprintf("    %s: {path: %s, args: [\"--bad=%s\"]}\n", handlerOf(w.way), path, w.way)
	}
	slow := filepath.Join(a.Dir, "slow")
	if err := os.WriteFile(slow, []byte("#!/bin/sh\nsleep 100000\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	config += "    slow: " + slow + "\n    missing: " + slow + "er\n"
	file := filepath.Join(a.Dir, "config.yaml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	a.Flags = append(a.Flags, "--config", file)
	a.Start()
	a.ImportBusybox()
	return a
}

// pod is one pod with one container, made through CRI.
type pod struct {
	cri            runtimeapi.RuntimeServiceClient
	dir, name      string
	box, container string
	config         *runtimeapi.PodSandboxConfig
}

func (p *pod) run(ctx context.Context, handler string) error {
	p.config = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: p.name, Namespace: "handlers", Uid: p.name}, LogDirectory: filepath.Join(p.dir, "log", p.name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + filepath.Base(p.dir) + "/" + p.name, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: runtimeapi.NamespaceMode_NODE, Pid: runtimeapi.NamespaceMode_CONTAINER},
		}},
		Annotations: map[string]string{"test.berth.dev/a": "1", "run.oci.handler": "krun"},
	}
	r, err := p.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: p.config, RuntimeHandler: handler})
	p.box = r.GetPodSandboxId()
	return err
}

// live creates, starts and looks into the container; failed is the call that did not work.
func (p *pod) live(ctx context.Context) (failed string, err error) {
	c, err := p.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.box, SandboxConfig: p.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "main"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, Command: []string{"sleep", "1000"}, LogPath: "main.log",
		Linux: &runtimeapi.LinuxContainerConfig{Resources: &runtimeapi.LinuxContainerResources{}, SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions,
		}},
	}})
	if err != nil {
		return "create", err
	}
	p.container = c.ContainerId
	if _, err := p.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: p.container}); err != nil {
		return "start", err
	}
	r, err := p.cri.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: p.container, Cmd: []string{"echo", "there"}, Timeout: 2})
	if err != nil {
		return "exec", err
	}
	if string(r.Stdout) != "there\n" && r.ExitCode == 0 {
		return "exec", fmt.Errorf("printed %q", r.Stdout)
	}
	return "", nil
}

func (p *pod) remove(ctx context.Context) error {
	if p.box == "" {
		return nil
	}
	_, err := p.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.box})
	_, rerr := p.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.box})
	return errors.Join(err, rerr)
}

// neighbours runs pods of the default handler, one after another, until ctx ends,
// and returns how many there were and how long the slowest took.
func neighbours(ctx context.Context, t *testing.T, a *node.Agent, cri runtimeapi.RuntimeServiceClient) (n int, slowest time.Duration) {
	for ctx.Err() == nil {
		p := &pod{cri: cri, dir: a.Dir, name: fmt.Sprintf("neighbour-%d", n)}
		began := time.Now()
		err := p.run(t.Context(), "")
		if err == nil {
			_, err = p.live(t.Context())
		}
		if rerr := p.remove(t.Context()); err != nil || rerr != nil {
			t.Errorf("a pod beside the misbehaving ones: %v, %v", err, rerr)
			return n, slowest
		}
		slowest = max(slowest, time.Since(began))
		n++
		time.Sleep(500 * time.Millisecond)
	}
	return n, slowest
}

func TestMisbehaviour(t *testing.T) {
	a := start(t)
	cri, _ := a.CRI()
	ctx, end := context.WithCancel(t.Context())
	defer end()
	var beside sync.WaitGroup
	beside.Go(func() {
		n, slowest := neighbours(ctx, t, a, cri)
		t.Logf("%d pods beside the misbehaving ones, the slowest took %v", n, slowest.Round(time.Millisecond))
		if n == 0 || slowest > patience.For(15*time.Second) {
			t.Errorf("pods beside the misbehaving ones are held up: %d, the slowest took %v", n, slowest)
		}
	})
	t.Run("all", func(t *testing.T) {
		for _, w := range ways {
			t.Run(w.way, func(t *testing.T) {
				t.Parallel()
				p := &pod{cri: cri, dir: a.Dir, name: handlerOf(w.way)}
				if err := p.run(t.Context(), handlerOf(w.way)); err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				failed, err := p.live(t.Context())
				took := time.Since(began)
				t.Logf("%v: %v", took.Round(time.Millisecond), err)
				if failed != w.call {
					t.Errorf("%q fails, want %q: %v", failed, w.call, err)
				}
				if err != nil && (!strings.Contains(err.Error(), w.says) || w.call != "exec" && !strings.Contains(err.Error(), fmt.Sprintf("runtime handler %q", handlerOf(w.way)))) {
					t.Errorf("the error does not name the handler, or not what it did (%q): %v", w.says, err)
				}
				if took > patience.For(w.within) {
					t.Errorf("took %v, %v are allowed", took, w.within)
				}
				began = time.Now()
				if err := p.remove(t.Context()); err != nil {
					t.Errorf("removal: %v", err)
				}
				if took := time.Since(began); took > patience.For(75*time.Second) {
					t.Errorf("removal took %v", took)
				}
			})
		}
	})
	end()
	beside.Wait()
	nothingLeft(t, a)
}

// nothingLeft sees that no process, state or cgroup of a container is left.
func nothingLeft(t *testing.T, a *node.Agent) {
	t.Helper()
	for _, dir := range []string{"run/oci", "run/containers", "run/sandboxes", "run/exits"} {
		left, err := os.ReadDir(filepath.Join(a.Dir, dir))
		if err != nil && !errors.Is(err, os.ErrNotExist) || len(left) > 0 {
			t.Errorf("left in %s: %v %v", dir, left, err)
		}
	}
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		b, _ := os.ReadFile(p)
		line := strings.ReplaceAll(string(b), "\x00", " ")
		if strings.Contains(line, a.Dir) && strings.Contains(line, "/bad") || strings.Contains(line, "left-by-") {
			t.Errorf("process %s is left: %s", filepath.Base(filepath.Dir(p)), line)
		}
	}
	dirs, _ := filepath.Glob("/sys/fs/cgroup/*/" + filepath.Base(a.Dir) + "/bad-*/*")
	for _, d := range dirs {
		if st, err := os.Stat(d); err == nil && st.IsDir() {
			t.Errorf("the cgroup of a container is left: %s", d)
		}
	}
}

// A handler sees those annotations of a pod that it may see, and no others.
func TestAnnotations(t *testing.T) {
	a := start(t)
	cri, _ := a.CRI()
	for handler, want := range map[string]bool{"seeing": true, "crun": false} {
		p := &pod{cri: cri, dir: a.Dir, name: "sees-" + handler}
		err := p.run(t.Context(), handler)
		if err == nil {
			_, err = p.live(t.Context())
		}
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(filepath.Join(a.Dir, "run/containers", p.container, "bundle/config.json"))
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Contains(string(b), `"test.berth.dev/a":"1"`); got != want {
			t.Errorf("%s sees the annotation: %v, want %v", handler, got, want)
		}
		if strings.Contains(string(b), "krun") {
			t.Errorf("%s sees an annotation that steers it", handler)
		}
		if err := p.remove(t.Context()); err != nil {
			t.Error(err)
		}
	}
	for handler, says := range map[string]string{"missing": "slower", "nonesuch": "is not configured"} {
		p := &pod{cri: cri, dir: a.Dir, name: "no-" + handler}
		if err := p.run(t.Context(), handler); err == nil || !strings.Contains(err.Error(), says) || !strings.Contains(err.Error(), handler) {
			t.Errorf("%s: %v", handler, err)
		}
	}
}

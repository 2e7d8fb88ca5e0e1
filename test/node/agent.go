// Package node starts real agents for tests: each on directories, a cgroup root
// and a socket of its own, driven through the command line and the CRI socket
// as a user would, and checked for what it leaves behind on the host.
package node

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/patience"
)

// Busybox is the image that examples and tests use.
const Busybox = "docker.io/library/busybox:1.36"

// Agent is one agent under test.
type Agent struct {
	T         testing.TB
	Binary    string
	Dir       string // everything of this agent is below it
	Manifests string
	Env       []string // added to the agent's environment at the next Start
	Flags     []string // added to its command line at the next Start
	// Patience bounds one run of the command line; 90 s if zero.
	Patience time.Duration

	log     *os.File
	running *running
}

// running is the agent's process, and the runtime's below it if that is another;
// the copies that For makes share it.
type running struct {
	mu    sync.Mutex
	cmd   *exec.Cmd
	below *below // nil: the agent has its runtime in its process
}

// For returns a's double that reports to t: for subtests on one agent.
func (a *Agent) For(t testing.TB) *Agent {
	double := *a
	double.T = t
	return &double
}

// New makes an agent's directories below a short path (socket paths are
// limited to 107 bytes). The agent is not started. When the test ends, the agent is
// stopped, everything it left is purged, and its log is shown if the test failed.
func New(t testing.TB, binary string) *Agent {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: it makes namespaces, mounts and cgroups")
	}
	dir, err := os.MkdirTemp("/tmp", "berth-t-")
	if err != nil {
		t.Fatal(err)
	}
	// As /run and /var/lib are: root users of user namespaces pass through.
	if err := os.Chmod(dir, 0o711); err != nil {
		t.Fatal(err)
	}
	a := &Agent{T: t, Binary: binary, Dir: dir, Manifests: filepath.Join(dir, "manifests"), running: &running{}}
	if err := os.Mkdir(a.Manifests, 0o755); err != nil {
		t.Fatal(err)
	}
	if a.log, err = os.Create(filepath.Join(dir, "agent.log")); err != nil {
		t.Fatal(err)
	}
	a.running.below = newBelow(a)
	t.Cleanup(a.cleanup)
	return a
}

// Binary returns the binary to test: $env, else built from the source once a test process.
func Binary(t testing.TB, env string, tags ...string) string {
	t.Helper()
	if path := os.Getenv(env); path != "" {
		return path
	}
	path := filepath.Join(os.TempDir(), fmt.Sprintf("berth-test-%s-%d", env, os.Getpid()))
	old, _ := filepath.Glob(filepath.Join(os.TempDir(), "berth-test-"+env+"-*")) // the pattern is valid
	for _, o := range old {                                                      // of test processes that have ended
		if pid, err := strconv.Atoi(o[strings.LastIndex(o, "-")+1:]); err == nil && syscall.Kill(pid, 0) == syscall.ESRCH {
			_ = os.Remove(o)
		}
	}
	args := []string{"build", "-o", path, "-tags", strings.Join(tags, ","), "github.com/berthd/berth/cmd/berth"}
	if msg, err := exec.Command("go", args...).CombinedOutput(); err != nil {
		t.Fatalf("build berth: %v\n%s", err, msg)
	}
	return path
}

func (a *Agent) cleanup() {
	if a.T.Failed() {
		a.end(syscall.SIGQUIT) // its log ends with what every goroutine was doing
		a.T.Logf("the agent's log:\n%s", a.Log(600))
		if a.running.below != nil {
			a.T.Logf("the runtime's log:\n%s", a.runtimeLog())
		}
	}
	a.Stop()
	a.Purge()
	a.log.Close()
	if msg, err := exec.Command("umount", "-R", a.Dir).CombinedOutput(); err == nil {
		a.T.Errorf("%s was still a mount point after purge: %s", a.Dir, msg)
	}
	if err := os.RemoveAll(a.Dir); err != nil {
		a.T.Errorf("remove %s: %v", a.Dir, err)
	}
}

// dirFlags place everything below a.Dir.
func (a *Agent) dirFlags() []string {
	return []string{"--root-dir", a.Dir + "/root", "--state-dir", a.Dir + "/run", "--log-dir", a.Dir + "/log", "--cgroup-root", a.cgroupRoot()}
}

func (a *Agent) cgroupRoot() string { return "/" + filepath.Base(a.Dir) }

// Socket is the agent's API socket, CRISocket the runtime's.
func (a *Agent) Socket() string { return a.Dir + "/run/berth.sock" }
func (a *Agent) CRISocket() string {
	if b := a.running.below; b != nil {
		return b.socket(a)
	}
	return a.Dir + "/run/cri.sock"
}

// Spawn starts the agent process, and the runtime below it if that is another and
// does not run, and does not wait for the agent.
func (a *Agent) Spawn() {
	a.T.Helper()
	a.StartRuntime()
	a.SpawnAlone()
}

// SpawnAlone starts the agent process, whatever the runtime below it does.
func (a *Agent) SpawnAlone() {
	a.T.Helper()
	args := append([]string{"agent", "--manifest-dir", a.Manifests, "--log-level", "info"}, a.dirFlags()...)
	args = append(args, a.endpointFlags()...)
	cmd := exec.Command(a.Binary, append(args, a.Flags...)...)
	cmd.Env = append(os.Environ(), a.Env...)
	cmd.Stdout, cmd.Stderr = a.log, a.log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		a.T.Fatal(err)
	}
	a.running.mu.Lock()
	a.running.cmd = cmd
	a.running.mu.Unlock()
}

// Start starts the agent and waits until it answers.
func (a *Agent) Start() {
	a.T.Helper()
	a.Spawn()
	Eventually(a.T, 30*time.Second, func() error {
		_, err := a.Berth("get", "pods")
		return err
	})
}

// Marks are what everything of this agent on the host is recognized by: its
// directory, which names its mounts, processes and cgroups, and the bridge and
// address ranges of its default network. Call it while the agent runs.
func (a *Agent) Marks() []string {
	a.T.Helper()
	marks := []string{filepath.Base(a.Dir)}
	if b := a.running.below; b != nil {
		if c, ok := b.runtime.(*containerd); ok {
			return append(marks, c.marks()...)
		}
	}
	body, err := os.ReadFile(a.Dir + "/root/cni/default.json")
	if err != nil {
		a.T.Fatalf("the agent has no default network: %v", err)
	}
	var network struct {
		Bridge  string   `json:"bridge"`
		Subnets []string `json:"subnets"`
	}
	if err := json.Unmarshal(body, &network); err != nil || network.Bridge == "" {
		a.T.Fatalf("default.json: %v: %s", err, body)
	}
	return append(marks, append(network.Subnets, network.Bridge, strings.ToUpper(network.Bridge))...)
}

// Pid is the agent's process ID, 0 when it does not run.
func (a *Agent) Pid() int {
	a.running.mu.Lock()
	defer a.running.mu.Unlock()
	if a.running.cmd == nil {
		return 0
	}
	return a.running.cmd.Process.Pid
}

// Kill9 kills the agent without warning and reaps it.
func (a *Agent) Kill9() { a.end(syscall.SIGKILL) }

// Stop asks the agent to end; its pods stay.
func (a *Agent) Stop() { a.end(syscall.SIGTERM) }

// Terminate asks the agent to end and does not wait.
func (a *Agent) Terminate() {
	if pid := a.Pid(); pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGTERM) // it may have ended already
	}
}

// Running tells whether the agent's process is there and not a zombie.
func (a *Agent) Running() bool {
	body, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", a.Pid()))
	return err == nil && !strings.Contains(string(body), ") Z ")
}

func (a *Agent) end(sig syscall.Signal) {
	a.running.mu.Lock()
	cmd := a.running.cmd
	a.running.cmd = nil
	a.running.mu.Unlock()
	if cmd == nil {
		return
	}
	_ = cmd.Process.Signal(sig)
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-done
		a.T.Logf("the agent's log:\n%s", a.Log(600))
		a.T.Errorf("the agent did not end within 30 s of %v", sig)
	}
}

// Log returns the last lines of the agent's log.
func (a *Agent) Log(lines int) string {
	body, _ := os.ReadFile(a.log.Name())
	all := strings.Split(string(body), "\n")
	return strings.Join(all[max(0, len(all)-lines):], "\n")
}

// Berth runs the command line against this agent and returns its standard output.
func (a *Agent) Berth(args ...string) (string, error) {
	limit := a.Patience
	if limit == 0 {
		limit = patience.For(90 * time.Second)
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	cmd := exec.CommandContext(ctx, a.Binary, append([]string{"--socket", a.Socket()}, args...)...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("berth %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// Must is Berth that has to succeed.
func (a *Agent) Must(args ...string) string {
	a.T.Helper()
	out, err := a.Berth(args...)
	if err != nil {
		a.T.Fatal(err)
	}
	return out
}

// ImportBusybox gives the agent's runtime the busybox image.
func (a *Agent) ImportBusybox() {
	a.T.Helper()
	spec, err := image.BusyboxSpec(Busybox)
	if err != nil {
		a.T.Fatal(err)
	}
	path := a.Dir + "/busybox.tar"
	f, err := os.Create(path)
	if err != nil {
		a.T.Fatal(err)
	}
	if err := errors.Join(image.WriteOCI(f, spec), f.Close()); err != nil {
		a.T.Fatal(err)
	}
	if err := a.Load(path); err != nil {
		a.T.Fatal(err)
	}
}

// Place renames a manifest into the manifest directory.
func (a *Agent) Place(name, manifest string) {
	a.T.Helper()
	temporary := filepath.Join(a.Dir, name+".tmp")
	if err := os.WriteFile(temporary, []byte(manifest), 0o600); err != nil {
		a.T.Fatal(err)
	}
	if err := os.Rename(temporary, filepath.Join(a.Manifests, name)); err != nil {
		a.T.Fatal(err)
	}
}

// Unplace removes a manifest.
func (a *Agent) Unplace(name string) {
	a.T.Helper()
	if err := os.Remove(filepath.Join(a.Manifests, name)); err != nil {
		a.T.Fatal(err)
	}
}

// Pods lists the agent's pods through the command line.
func (a *Agent) Pods() ([]v1.Pod, error) {
	out, err := a.Berth("get", "pods", "-A", "-o", "json")
	if err != nil {
		return nil, err
	}
	var l v1.PodList
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		return nil, fmt.Errorf("get pods -o json: %w: %.300s", err, out)
	}
	return l.Items, nil
}

// Pod returns the pod called name in namespace default.
func (a *Agent) Pod(name string) (*v1.Pod, error) {
	pods, err := a.Pods()
	if err != nil {
		return nil, err
	}
	for i := range pods {
		if pods[i].Name == name {
			return &pods[i], nil
		}
	}
	return nil, fmt.Errorf("no pod %s", name)
}

// Wait waits until check holds for the pod called name.
func (a *Agent) Wait(name string, within time.Duration, check func(*v1.Pod) error) *v1.Pod {
	a.T.Helper()
	var p *v1.Pod
	Eventually(a.T, within, func() error {
		var err error
		if p, err = a.Pod(name); err != nil {
			return err
		}
		if err := check(p); err != nil {
			status, _ := json.Marshal(p.Status)
			return fmt.Errorf("pod %s: %w; its status: %s", name, err, status)
		}
		return nil
	})
	return p
}

// WaitGone waits until the agent no longer knows the pod.
func (a *Agent) WaitGone(name string, within time.Duration) {
	a.T.Helper()
	Eventually(a.T, within, func() error {
		p, err := a.Pod(name)
		if err != nil {
			if strings.HasPrefix(err.Error(), "no pod ") {
				return nil
			}
			return err
		}
		status, _ := json.Marshal(p.Status)
		return fmt.Errorf("pod %s is still there: %s", name, status)
	})
}

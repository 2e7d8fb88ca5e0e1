package node

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Over is what runs the containers of the agents under test.
type Over string

// The runtimes that $BERTH_TEST_RUNTIME chooses among.
const (
	Embedded   Over = "embedded"   // in the agent's process; the default
	Socket     Over = "socket"     // berth runtime, over its socket
	Containerd Over = "containerd" // containerd, over its socket
)

// Chosen is the runtime that the tests run over.
func Chosen(t testing.TB) Over {
	t.Helper()
	switch o := Over(os.Getenv("BERTH_TEST_RUNTIME")); o {
	case "":
		return Embedded
	case Embedded, Socket, Containerd:
		return o
	default:
		t.Fatalf("BERTH_TEST_RUNTIME=%s: want embedded, socket or containerd", o)
		return ""
	}
}

// NotOver skips a test that cannot hold over a runtime, and says why: the reason
// stands in the table of docs/results/containerd.md.
func NotOver(t testing.TB, o Over, reason string) {
	t.Helper()
	if Chosen(t) == o {
		t.Skip(Exempt(o, reason))
	}
}

// Exempt is what the skip of a test says that cannot hold over o.
func Exempt(o Over, reason string) string { return fmt.Sprintf("not over %s: %s", o, reason) }

// runtime is a CRI runtime in a process of its own, below one agent.
type runtime interface {
	// command is the runtime's process for an agent with these flags.
	command(a *Agent) (*exec.Cmd, error)
	// ready is called once the socket answers, after every start.
	ready(a *Agent) error
	socket(a *Agent) string
	// load gives the runtime the images of an archive.
	load(a *Agent, archive string) error
	// clear takes off the host what the runtime has left, after its end.
	clear(a *Agent)
}

// below is the runtime below an agent and its process.
type below struct {
	runtime
	cmd  *exec.Cmd
	args []string
	log  *os.File
}

func newBelow(a *Agent) *below {
	switch Chosen(a.T) {
	case Socket:
		return &below{runtime: berthRuntime{}}
	case Containerd:
		return &below{runtime: newContainerd(a)}
	}
	return nil
}

// StartRuntime starts the runtime below the agent and waits until it answers. One
// that runs goes on, unless the agent's flags want another.
func (a *Agent) StartRuntime() {
	a.T.Helper()
	b := a.running.below
	if b == nil {
		return
	}
	cmd, err := b.command(a)
	if err != nil {
		a.T.Fatal(err)
	}
	if b.cmd != nil {
		if slices.Equal(b.args, cmd.Args) {
			return
		}
		a.StopRuntime()
	}
	if b.log == nil {
		if b.log, err = os.Create(a.Dir + "/runtime.log"); err != nil {
			a.T.Fatal(err)
		}
	}
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = b.log, b.log, &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		a.T.Fatal(err)
	}
	b.cmd, b.args = cmd, cmd.Args
	Eventually(a.T, time.Minute, func() error { return answers(b.socket(a)) })
	if err := b.ready(a); err != nil {
		a.T.Fatalf("%v\n%s", err, a.runtimeLog())
	}
}

func answers(socket string) error {
	conn, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return err
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	_, err = runtimeapi.NewRuntimeServiceClient(conn).Version(ctx, &runtimeapi.VersionRequest{})
	return err
}

// StopRuntime asks the runtime below the agent to end; containers stay.
func (a *Agent) StopRuntime() { a.endRuntime(syscall.SIGTERM) }

// KillRuntime kills it without warning.
func (a *Agent) KillRuntime() { a.endRuntime(syscall.SIGKILL) }

func (a *Agent) endRuntime(sig syscall.Signal) {
	b := a.running.below
	if b == nil || b.cmd == nil {
		return
	}
	cmd := b.cmd
	b.cmd = nil
	_ = cmd.Process.Signal(sig)
	done := make(chan struct{})
	go func() { _ = cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(30 * time.Second):
		_ = cmd.Process.Signal(syscall.SIGQUIT)
		<-done
		a.T.Errorf("the runtime did not end within 30 s of %v:\n%s", sig, a.runtimeLog())
	}
}

func (a *Agent) runtimeLog() string {
	body, _ := os.ReadFile(a.Dir + "/runtime.log")
	all := strings.Split(string(body), "\n")
	return strings.Join(all[max(0, len(all)-200):], "\n")
}

// endpointFlags point the agent at the runtime below it.
func (a *Agent) endpointFlags() []string {
	if b := a.running.below; b != nil {
		return []string{"--container-runtime-endpoint", "unix://" + b.socket(a)}
	}
	return nil
}

// Load gives the agent's runtime the images of an archive, as its user would.
func (a *Agent) Load(archive string) error {
	if b := a.running.below; b != nil {
		return b.load(a, archive)
	}
	_, err := a.Berth("images", "import", archive)
	return err
}

// berthRuntime is `berth runtime`, with the agent's own directories.
type berthRuntime struct{}

// runtimeFlags are the agent's flags that `berth runtime` has too.
var runtimeFlags = []string{"--config", "--cgroup-driver", "--oci-runtime", "--conmon", "--cni-conf-dir", "--cni-bin-dir", "--certs-dir"}

// flagsOf are those among flags that are wanted, each as --name=value.
func flagsOf(flags, wanted []string) []string {
	var out []string
	for i := 0; i < len(flags); i++ {
		name, value, joined := strings.Cut(flags[i], "=")
		if !joined && i+1 < len(flags) && !strings.HasPrefix(flags[i+1], "--") {
			i++
			value = flags[i]
		}
		if slices.Contains(wanted, name) {
			out = append(out, name+"="+value)
		}
	}
	return out
}

func (berthRuntime) command(a *Agent) (*exec.Cmd, error) {
	args := []string{"runtime", "--log-level", "info", "--root-dir", a.Dir + "/root", "--state-dir", a.Dir + "/run", "--cgroup-root", a.cgroupRoot()}
	return exec.Command(a.Binary, append(args, flagsOf(a.Flags, runtimeFlags)...)...), nil
}
func (berthRuntime) ready(*Agent) error     { return nil }
func (berthRuntime) socket(a *Agent) string { return a.Dir + "/run/cri.sock" }
func (berthRuntime) clear(*Agent)           {}
func (berthRuntime) load(a *Agent, archive string) error {
	_, err := a.Berth("images", "import", archive)
	return err
}

// Bundle is the directory of a container's OCI specification.
func (a *Agent) Bundle(id string) string {
	if Chosen(a.T) == Containerd {
		return a.Dir + "/ctd/state/io.containerd.runtime.v2.task/k8s.io/" + id
	}
	return a.Dir + "/run/containers/" + id + "/bundle"
}

package cni

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("CNI_TEST_AGENT"); dir != "" {
		if err := agent(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	code := m.Run()
	os.RemoveAll(agentDir)
	os.Exit(code)
}

// agentConfig is that of all agents of one directory.
func agentConfig(dir string) Config {
	return Config{ConfDirs: []string{filepath.Join(dir, "net.d")}, BinDirs: strings.Split(os.Getenv("CNI_TEST_BIN"), ":"),
		Dir: filepath.Join(dir, "cni"), BootDir: filepath.Join(dir, "boot"), Subnets: []string{"10.216.9.0/24", "fd09:beef::/64"}}
}

// agent attaches a sandbox and detaches it.
func agent(dir string) error {
	n, err := Open(agentConfig(dir))
	if err != nil {
		return err
	}
	r := agentRequest()
	if _, err := n.Add(context.Background(), r); err != nil {
		return err
	}
	return n.Delete(context.Background(), r)
}

func agentRequest() Request {
	ns := os.Getenv("CNI_TEST_NETNS")
	return Request{SandboxID: ns, Namespace: "default", Name: "victim", UID: "u", NetNS: "/var/run/netns/" + ns,
		PortMappings: []PortMapping{{HostPort: 18382, ContainerPort: 80, Protocol: "tcp"}}, Bandwidth: &Bandwidth{IngressRate: 1e6, IngressBurst: 1e6}}
}

// victim is a host on which agents are killed.
type victim struct {
	dir, binary string
	env         []string
	rules       string // of a host on which nothing is left
}

// start runs an agent until it ends, stops at a failpoint, or limit passes, and
// then kills it; it says whether it ended by itself.
func (v *victim) start(t *testing.T, limit time.Duration, env ...string) (ended bool) {
	t.Helper()
	signal := filepath.Join(t.TempDir(), "signal")
	cmd := exec.Command(v.binary)
	cmd.Env = append(append(os.Environ(), v.env...), append(env, "CNI_TEST_AGENT="+v.dir, "BERTH_FAILPOINT_SIGNAL="+signal)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for end := time.Now().Add(limit); time.Now().Before(end) && !exists(signal); time.Sleep(time.Millisecond) {
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("the agent failed: %v\n%s", err, &out)
			}
			return true
		default:
		}
	}
	cmd.Process.Kill()
	<-done
	return false
}

var counters = regexp.MustCompile(`(?m)^#.*\n| \[\d+:\d+\]$`)

func rulesNow(t *testing.T) string {
	t.Helper()
	lines := strings.Split(counters.ReplaceAllString(run(t, "iptables-save")+run(t, "ip6tables-save"), ""), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// left says what an agent of v's directory has left behind; empty: nothing.
func (v *victim) left(t *testing.T, n *Network) string {
	t.Helper()
	var what []string
	for _, glob := range []string{"cni/attachments/*", "boot/attachments/*", "cni/attachments/.*.tmp", "boot/attachments/.*.tmp", "cni/cache/results/*", "boot/cache/results/*", "boot/leases/*/[0-9f]*", "leases/*/[0-9f]*"} {
		paths, _ := filepath.Glob(filepath.Join(v.dir, glob))
		what = append(what, paths...)
	}
	if leaks, err := n.Audit(t.Context(), nil); err != nil || len(leaks) > 0 {
		what = append(what, fmt.Sprint(leaks, err))
	}
	if links := run(t, "ip", "-o", "link"); strings.Contains(links, "veth") || strings.Contains(links, "bwp") {
		what = append(what, links)
	}
	if now := rulesNow(t); v.rules != "" && now != v.rules {
		what = append(what, "rules:\n"+now+"\ninstead of\n"+v.rules)
	}
	return strings.Join(what, "\n")
}

// recover starts the next agent, which collects; after a removal of the sandbox,
// or without one, as after a sandbox whose record is gone.
func (v *victim) recover(t *testing.T, after string, remove bool, ns string) {
	t.Helper()
	n, err := Open(agentConfig(v.dir))
	if err != nil {
		t.Fatalf("after %s: %v", after, err)
	}
	if remove {
		if err := n.Delete(t.Context(), Request{SandboxID: ns, NetNS: "/var/run/netns/" + ns}); err != nil {
			t.Errorf("after %s: delete: %v", after, err)
		}
	} else {
		run(t, "ip", "netns", "delete", ns)
		run(t, "ip", "netns", "add", ns)
	}
	var left string
	for end := time.Now().Add(5 * time.Second); ; time.Sleep(20 * time.Millisecond) {
		err := n.GC(t.Context(), nil)
		if left = v.left(t, n); err == nil && left == "" {
			return
		}
		if time.Now().After(end) { // a plugin's child may have outlived it for a moment
			t.Fatalf("after %s: left behind: %s (%v)", after, left, err)
		}
	}
}

// killAnywhere kills agents at all failpoints of an ADD and a DEL, and at random
// moments (3, or CNI_TEST_KILLS), and sees that the next one leaves nothing of
// them. With gone, every
// other time the network namespace is gone by then too, and only GC cleans up.
func killAnywhere(t *testing.T, conf, bin string, gone bool) {
	run(t, "ip", "link", "set", "lo", "up")
	dir := t.TempDir()
	ns := fmt.Sprintf("cnik-%d", os.Getpid())
	run(t, "ip", "netns", "add", ns)
	t.Cleanup(func() { exec.Command("ip", "netns", "delete", ns).Run() })
	if err := os.Mkdir(filepath.Join(dir, "net.d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if conf != "" {
		put(t, filepath.Join(dir, "net.d", "10.conflist"), strings.ReplaceAll(conf, "LEASES", filepath.Join(dir, "leases")))
	}
	t.Setenv("CNI_TEST_BIN", bin)
	v := &victim{dir: dir, binary: os.Getenv("CNI_TEST_BINARY"), env: []string{"CNI_TEST_NETNS=" + ns}}
	trace := filepath.Join(t.TempDir(), "trace")
	v.start(t, time.Minute) // makes what stays: bridges, plugins' own chains
	began := time.Now()
	if !v.start(t, time.Minute, "BERTH_FAILPOINT_TRACE="+trace) {
		t.Fatal("the agent hangs")
	}
	whole := time.Since(began)
	v.recover(t, "nothing", true, ns)
	v.rules = rulesNow(t)
	body, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	places := strings.Fields(string(body))
	t.Logf("%d places in %s", len(places), whole)
	if len(places) < 15 {
		t.Fatalf("only %d places were passed: %v", len(places), places)
	}
	for i, p := range places {
		if v.start(t, time.Minute, "BERTH_FAILPOINT_STOP="+p) {
			t.Errorf("%s was not passed again", p)
		}
		v.recover(t, p, !gone || i%2 == 0, ns)
	}
	seed := uint64(time.Now().UnixNano())
	random := rand.New(rand.NewPCG(seed, 0))
	kills := 3
	if more, err := strconv.Atoi(os.Getenv("CNI_TEST_KILLS")); err == nil {
		kills = more
	}
	for i := range kills {
		after := time.Duration(random.Int64N(int64(whole)))
		v.start(t, after)
		v.recover(t, fmt.Sprintf("%s (seed %d)", after, seed), !gone || i%2 == 0, ns)
	}
}

// agentDir is where agentBinary is, until all tests have ended.
var agentDir string

// agentBinary is this test with failpoints in it.
var agentBinary = sync.OnceValues(func() (path string, err error) {
	if agentDir, err = os.MkdirTemp("", "cni-agent-"); err != nil {
		return "", err
	}
	path = filepath.Join(agentDir, "agent")
	if b, err := exec.Command("go", "test", "-c", "-tags", "failpoints", "-o", path, ".").CombinedOutput(); err != nil {
		return "", fmt.Errorf("building with failpoints: %w: %s", err, b)
	}
	return path, nil
})

// aloneToKill is alone with an agent to kill in CNI_TEST_BINARY.
func aloneToKill(t *testing.T) bool {
	t.Helper()
	if os.Getuid() != 0 || os.Getenv("CNI_TEST_ALONE") != "" {
		return alone(t)
	}
	path, err := agentBinary()
	if err != nil {
		t.Fatal(err)
	}
	return alone(t, "CNI_TEST_BINARY="+path)
}

// TestKilledAnywhere: of an agent that is killed anywhere in an ADD or a DEL of
// the default network, nothing is left.
func TestKilledAnywhere(t *testing.T) {
	if aloneToKill(t) {
		killAnywhere(t, "", "/usr/lib/cni", true)
	}
}

// TestKilledInAChain: neither of a chain of third-party plugins, as long as the
// network namespace is there: between the end of a plugin and the moment that its
// answer is on the disk only the namespace knows the address, and with it which
// rules the bridge plugin has made to masquerade it.
func TestKilledInAChain(t *testing.T) {
	if aloneToKill(t) {
		conf := strings.NewReplacer("VERSION", "1.1.0", "THIRD", "9", "NAME", "chained", "BRIDGE", "chained0").Replace(chainConf)
		killAnywhere(t, conf, newest(t), false)
	}
}

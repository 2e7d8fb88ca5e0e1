package node

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/registry"
)

// TestCommandLine uses one agent as a person would, with the commands that the
// examples' tests do not use.
func TestCommandLine(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	for name, test := range map[string]func(*testing.T, *Agent){
		"run and stop": testRunAndStop, "run --rm": testRunRm, "port-forward": testPortForward, "attach": testAttach, "exec with a terminal": testExecTTY,
		"logs -f": testLogsFollow, "events": testEvents, "outputs": testOutputs, "propagation": testPropagation, "killed": testKilled, "refused fields": testRefused,
	} {
		t.Run(name, func(t *testing.T) { test(t, a.For(t)) })
	}
}

// command prepares a run of the command line with a deadline.
func (a *Agent) command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, a.Binary, append([]string{"--socket", a.Socket()}, args...)...)
}

func testRunAndStop(t *testing.T, a *Agent) {
	cmd := a.command(t.Context(), "run", "-f", "-", "--timeout", "30s")
	cmd.Stdin = strings.NewReader(podOf("typed", "", ""))
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("berth run -f -: %v\n%s", err, out)
	}
	a.Wait("typed", time.Second, Ready)
	if _, err := a.Berth("stop", "typed"); err != nil {
		t.Fatal(err)
	}
	a.WaitGone("typed", time.Second) // stop has waited
	if _, err := a.Berth("stop", "typed"); err == nil || !strings.Contains(err.Error(), "typed") {
		t.Errorf("a second stop: %v", err)
	}
	a.Place("filed.yaml", podOf("filed", "", ""))
	a.Wait("filed", 20*time.Second, Ready)
	if _, err := a.Berth("stop", "filed"); err == nil || !strings.Contains(err.Error(), "filed.yaml") {
		t.Errorf("stop of a pod from a manifest must name the manifest: %v", err)
	}
	a.Unplace("filed.yaml")
	a.WaitGone("filed", 20*time.Second)
}

func testRunRm(t *testing.T, a *Agent) {
	file := filepath.Join(a.Dir, "once.yaml")
	body := strings.Replace(podOf("once", "", "  restartPolicy: Never"), `[sh, -c, 'trap "exit 0" TERM; while :; do sleep 1 & wait $!; done']`, "[echo, said]", 1)
	if err := os.WriteFile(file, []byte(body), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Berth("run", "-f", file, "--rm", "--timeout", "30s"); err != nil {
		t.Fatal(err)
	}
	a.WaitGone("once", 5*time.Second)
}

func testPortForward(t *testing.T, a *Agent) {
	a.Place("pf.yaml", strings.Replace(podOf("pf", "", ""), "while :;", "echo pong > /tmp/index.html; httpd -p 127.0.0.1:8099 -h /tmp; while :;", 1))
	defer a.Unplace("pf.yaml")
	a.Wait("pf", 20*time.Second, Ready)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	l.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := a.command(ctx, "port-forward", "pf", port+":8099")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	Eventually(t, 10*time.Second, func() error {
		body, err := get("http://127.0.0.1:" + port + "/")
		if err == nil && body != "pong\n" {
			err = fmt.Errorf("the pod's loopback serves %q", body)
		}
		return err
	})
}

func testAttach(t *testing.T, a *Agent) {
	body := fmt.Sprintf("apiVersion: v1\nkind: Pod\nmetadata: {name: at}\nspec:\n  terminationGracePeriodSeconds: 1\n  containers:\n  - {name: c, image: %s, stdin: true, command: [sh, -c, 'while read x; do echo \"got $x\"; done']}\n", Busybox)
	a.Place("at.yaml", body)
	defer a.Unplace("at.yaml")
	a.Wait("at", 20*time.Second, Ready)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	cmd := a.command(ctx, "attach", "-i", "at")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() { cancel(); _ = cmd.Wait() }()
	lines := bufio.NewReader(out)
	for _, word := range []string{"one", "two"} {
		fmt.Fprintln(in, word)
		line, err := lines.ReadString('\n')
		if err != nil || line != "got "+word+"\n" {
			t.Fatalf("attach answers %q, %v", line, err)
		}
	}
	a.Wait("at", time.Second, Ready) // leaving does not end it
}

func testExecTTY(t *testing.T, a *Agent) {
	a.Place("tty.yaml", podOf("tty", "", ""))
	defer a.Unplace("tty.yaml")
	a.Wait("tty", 20*time.Second, Ready)
	if _, err := exec.LookPath("script"); err != nil {
		t.Skip("needs script(1) for a terminal")
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	line := fmt.Sprintf("stty rows 33 cols 99; %s --socket %s exec -it tty -- sh -c 'sleep 0.5; stty size; exit 7'", a.Binary, a.Socket())
	cmd := exec.CommandContext(ctx, "script", "-qec", line, "/dev/null")
	out, err := cmd.CombinedOutput()
	if !strings.Contains(string(out), "33 99") {
		t.Errorf("the terminal's size in the container: %q", out)
	}
	if e, ok := err.(*exec.ExitError); !ok || e.ExitCode() != 7 {
		t.Errorf("exit code 7 became %v", err)
	}
}

func testLogsFollow(t *testing.T, a *Agent) {
	a.Place("lf.yaml", strings.Replace(podOf("lf", "", ""), "while :; do", "i=0; while :; do i=$((i+1)); echo n$i;", 1))
	defer a.Unplace("lf.yaml")
	a.Wait("lf", 20*time.Second, Ready)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	cmd := a.command(ctx, "logs", "-f", "lf")
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	s := bufio.NewScanner(out)
	for want := 1; want <= 3; want++ {
		if !s.Scan() || s.Text() != fmt.Sprintf("n%d", want) {
			t.Errorf("line %d is %q", want, s.Text())
		}
	}
	cancel()
	_ = cmd.Wait()
}

func testEvents(t *testing.T, a *Agent) {
	a.Place("ev.yaml", podOf("ev", "", ""))
	a.Wait("ev", 20*time.Second, Ready)
	a.Unplace("ev.yaml")
	a.WaitGone("ev", 20*time.Second)
	out := a.Must("get", "events", "-o", "json")
	var l v1.EventList
	if err := json.Unmarshal([]byte(out), &l); err != nil {
		t.Fatal(err)
	}
	seen := map[string]bool{}
	for _, e := range l.Items {
		if e.InvolvedObject.Name == "ev" {
			seen[e.Reason] = true
		}
	}
	for _, want := range []string{"Pulled", "Created", "Started", "Killing"} {
		if !seen[want] {
			t.Errorf("no event %s: %v", want, seen)
		}
	}
}

func testOutputs(t *testing.T, a *Agent) {
	a.Place("o.yaml", podOf("o", "", ""))
	defer a.Unplace("o.yaml")
	a.Wait("o", 20*time.Second, Ready)
	for args, want := range map[string]string{
		"get pods": "NAME", "get pods -o wide": "IP", "get pods -o yaml": "kind:", "get pods -o name": "pod/o", "get pod o -o json": `"kind": "Pod"`,
		"get images": "busybox", "describe pod o": "Restart Count", "version -o json": "{", "config default": "berth.dev/v1alpha1", "completion bash": "complete",
	} {
		if out := a.Must(strings.Fields(args)...); !strings.Contains(out, want) {
			t.Errorf("berth %s does not show %q:\n%.400s", args, want, out)
		}
	}
}

// testPropagation sees that a Bidirectional mount of a container reaches the
// host, and one of the host the container, though the OCI runtime may run in a
// mount namespace of its own.
func testPropagation(t *testing.T, a *Agent) {
	dir := filepath.Join(a.Dir, "shared")
	for _, d := range []string{dir, dir + "/fromhost", dir + "/frompod"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	a.Place("prop.yaml", podOf("prop", "    securityContext: {privileged: true}\n    volumeMounts: [{name: s, mountPath: /s, mountPropagation: Bidirectional}]", "  volumes: [{name: s, hostPath: {path: "+dir+"}}]"))
	a.Wait("prop", 20*time.Second, Ready)
	a.Must("exec", "prop", "--", "mount", "-t", "tmpfs", "tmpfs", "/s/frompod")
	a.Must("exec", "prop", "--", "touch", "/s/frompod/seen")
	if _, err := os.Stat(dir + "/frompod/seen"); err != nil {
		t.Errorf("the container's mount is not seen on the host: %v", err)
	}
	if err := syscall.Mount("tmpfs", dir+"/fromhost", "tmpfs", 0, ""); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/fromhost/seen", nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Berth("exec", "prop", "--", "ls", "/s/fromhost/seen"); err != nil {
		t.Errorf("the host's mount is not seen in the container: %v", err)
	}
	a.Unplace("prop.yaml")
	a.WaitGone("prop", 20*time.Second)
	for _, m := range []string{dir + "/frompod", dir + "/fromhost"} {
		if err := syscall.Unmount(m, 0); err != nil {
			t.Errorf("unmount %s: %v", m, err)
		}
	}
}

// testKilled kills the agent with pods running and sees that they are as they were.
func testKilled(t *testing.T, a *Agent) {
	a.Place("alive.yaml", podOf("alive", "    readinessProbe: {exec: {command: [\"true\"]}, periodSeconds: 1}", ""))
	defer a.Unplace("alive.yaml")
	before := a.Wait("alive", 20*time.Second, Ready)
	pid := a.Must("exec", "alive", "--", "cat", "/proc/1/stat")
	a.Kill9()
	a.Start()
	after, err := a.Pod("alive")
	if err != nil {
		t.Fatal(err)
	}
	was, is := before.Status.ContainerStatuses[0], after.Status.ContainerStatuses[0]
	if was.ContainerID != is.ContainerID || is.RestartCount != 0 || !is.Ready {
		t.Errorf("before %+v\nafter %+v", was, is)
	}
	if again := a.Must("exec", "alive", "--", "cat", "/proc/1/stat"); strings.Fields(again)[21] != strings.Fields(pid)[21] {
		t.Error("the container's process is another one")
	}
}

func testRefused(t *testing.T, a *Agent) {
	cmd := a.command(t.Context(), "run", "-f", "-", "--timeout", "10s")
	cmd.Stdin = strings.NewReader(podOf("pvc", "", "  volumes: [{name: d, persistentVolumeClaim: {claimName: data}}]"))
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err == nil || !strings.Contains(out.String(), "persistentVolumeClaim") {
		t.Errorf("a claim on a node without a cluster: %v\n%s", err, out.String())
	}
}

// TestRegistry pulls from a real registry, by tag and by digest, through a hosts.toml mirror.
func TestRegistry(t *testing.T) {
	reg := registry.Start(t)
	addr := reg.Address
	a := New(t, Binary(t, "BERTH_BIN"))
	layer, err := image.Busybox()
	if err != nil {
		t.Fatal(err)
	}
	digest := reg.Push(t, "tools/busybox", "1", image.Spec{Layers: []image.Layer{layer}})
	certs := filepath.Join(a.Dir, "certs.d/registry.example.test")
	if err := os.MkdirAll(certs, 0o755); err != nil {
		t.Fatal(err)
	}
	hosts := fmt.Sprintf("server = \"https://registry.example.test\"\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", addr)
	if err := os.WriteFile(certs+"/hosts.toml", []byte(hosts), 0o644); err != nil {
		t.Fatal(err)
	}
	a.Flags = []string{"--certs-dir", filepath.Dir(certs)}
	a.Start()
	a.Place("tag.yaml", strings.Replace(podOf("tag", "", ""), Busybox, "registry.example.test/tools/busybox:1", 1))
	a.Place("digest.yaml", strings.Replace(podOf("digest", "", ""), Busybox, "registry.example.test/tools/busybox@"+digest, 1))
	a.Wait("tag", 30*time.Second, Ready)
	p := a.Wait("digest", 30*time.Second, Ready)
	if id := p.Status.ContainerStatuses[0].ImageID; !strings.Contains(id, "sha256:") {
		t.Errorf("imageID %q", id)
	}
	for _, name := range []string{"tag", "digest"} {
		a.Unplace(name + ".yaml")
		a.WaitGone(name, 20*time.Second)
	}
	a.Must("images", "pull", addr+"/tools/busybox:1") // loopback registries speak plain HTTP
	if _, err := a.Berth("images", "pull", addr+"/tools/busybox:no"); err == nil || !strings.Contains(err.Error(), "no") {
		t.Errorf("pull of a missing tag: %v", err)
	}
}

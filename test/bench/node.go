package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// node is one side of the comparison.
type node interface {
	name() string
	// up starts the node on empty directories and imports the archive's images.
	up(archive string) error
	// place renames a pod's manifest into the manifest directory.
	place(name, stamps string) error
	manifests() string
	// home is the directory below which everything of the node lies.
	home() string
	// programs matches the node's own programs by their base name.
	programs() *regexp.Regexp
	// down ends every pod and process it started.
	down()
}

const manifest = `apiVersion: v1
kind: Pod
metadata:
  name: %[1]s
  namespace: default
spec:
  terminationGracePeriodSeconds: 1
  containers:
  - name: c
    image: ` + imageName + `
    imagePullPolicy: Never
    command: [/stamp, /stamps/%[1]s]
    volumeMounts: [{name: stamps, mountPath: /stamps}]
  volumes:
  - name: stamps
    hostPath: {path: %[2]s}
`

// place writes the manifest beside dir and renames it in, so that the node sees it whole.
func place(dir, name, stamps string) error {
	temporary := filepath.Join(filepath.Dir(dir), name+".tmp")
	if err := os.WriteFile(temporary, fmt.Appendf(nil, manifest, name, stamps), 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, filepath.Join(dir, name+".yaml"))
}

// started is a process of the bench's own, ended by its id.
type started struct{ cmd *exec.Cmd }

func start(log string, program string, args ...string) (*started, error) {
	f, err := os.Create(log)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = f, f
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s: %w", program, err)
	}
	return &started{cmd}, nil
}

func (s *started) end(within time.Duration) {
	if s == nil {
		return
	}
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	done := make(chan struct{})
	go func() { _ = s.cmd.Wait(); close(done) }()
	select {
	case <-done:
	case <-time.After(within):
		_ = s.cmd.Process.Kill()
		<-done
	}
}

func tail(path string) string {
	body, _ := os.ReadFile(path)
	lines := strings.Split(strings.TrimSpace(string(body)), "\n")
	return strings.Join(lines[max(0, len(lines)-15):], "\n")
}

type berthNode struct {
	binary, work string
	agent        *started
}

func (b *berthNode) name() string      { return "berth" }
func (b *berthNode) manifests() string { return filepath.Join(b.work, "manifests") }
func (b *berthNode) home() string      { return b.work }
func (b *berthNode) programs() *regexp.Regexp {
	return regexp.MustCompile(`^(berth|conmon|pause|init)$`)
}
func (b *berthNode) place(name, stamps string) error {
	return place(b.manifests(), name, stamps)
}

func (b *berthNode) flags() []string {
	return []string{"--root-dir", b.work + "/root", "--state-dir", b.work + "/run", "--log-dir", b.work + "/log", "--cgroup-root", "/berth-bench"}
}

func (b *berthNode) run(args ...string) ([]byte, error) {
	return exec.Command(b.binary, append([]string{"--socket", b.work + "/run/berth.sock"}, args...)...).CombinedOutput()
}

func (b *berthNode) up(archive string) error {
	if err := os.MkdirAll(b.manifests(), 0o755); err != nil {
		return err
	}
	log := b.work + "/berth.log"
	var err error
	if b.agent, err = start(log, b.binary, append([]string{"agent", "--manifest-dir", b.manifests()}, b.flags()...)...); err != nil {
		return err
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(100 * time.Millisecond) {
		msg, err := b.run("get", "pods")
		if err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("the agent did not come up: %s\n%s", msg, tail(log))
		}
	}
	if msg, err := b.run("images", "import", archive); err != nil {
		return fmt.Errorf("import: %w: %s", err, msg)
	}
	return nil
}

func (b *berthNode) down() {
	b.agent.end(20 * time.Second)
	b.agent = nil
	if msg, err := exec.Command(b.binary, append([]string{"purge", "--yes"}, b.flags()...)...).CombinedOutput(); err != nil {
		fmt.Fprintf(os.Stderr, "berth purge: %v: %s\n", err, msg)
	}
}

// usage is the sum over a node's own processes.
type usage struct {
	pssMiB float64
	cpu    time.Duration
}

// cost adds up PSS and CPU time (that of reaped children included) of a node's own processes.
func cost(n node) usage {
	var u usage
	for pid, p := range processes(n.home()) {
		if !n.programs().MatchString(filepath.Base(p.argv[0])) {
			continue
		}
		for _, x := range p.stat[11:15] {
			ticks, _ := strconv.ParseInt(x, 10, 64)
			u.cpu += time.Duration(ticks) * 10 * time.Millisecond
		}
		rollup, _ := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
		for _, line := range strings.Split(string(rollup), "\n") {
			if g := strings.Fields(line); len(g) > 1 && g[0] == "Pss:" {
				kib, _ := strconv.ParseFloat(g[1], 64)
				u.pssMiB += kib / 1024
			}
		}
	}
	return u
}

package security

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(30 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not in time: %s", what)
		}
	}
}

// pid is a running container's first process.
func (p *pod) pid(id string) int {
	p.t.Helper()
	f, err := p.n.conts.Facts(id)
	if err != nil || f.PID == 0 {
		p.t.Fatalf("container %s has no process: %v", id, err)
	}
	return f.PID
}

// parentOf is the process that pid was started by: its monitor.
func parentOf(t testing.TB, pid int) int {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		t.Fatal(err)
	}
	f := strings.Fields(string(b)[strings.LastIndex(string(b), ")")+1:])
	parent, err := strconv.Atoi(f[1])
	if err != nil {
		t.Fatal(err)
	}
	return parent
}

// processStatus is a line of /proc/PID/status.
func processStatus(t testing.TB, pid int, key string) string {
	t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if k, v, _ := strings.Cut(line, ":"); k == key {
			return strings.Join(strings.Fields(v), " ")
		}
	}
	t.Fatalf("no %s in the status of %d", key, pid)
	return ""
}

// spec is the specification that the OCI runtime was given.
func (p *pod) spec(id string) *specs.Spec {
	p.t.Helper()
	b, err := os.ReadFile(filepath.Join(p.n.state("containers"), id, "bundle/config.json"))
	if err != nil {
		p.t.Fatal(err)
	}
	var s specs.Spec
	if err := json.Unmarshal(b, &s); err != nil {
		p.t.Fatal(err)
	}
	return &s
}

// output waits for a container's end, where it has begun, and tells what it wrote.
func (p *pod) output(id string) string {
	p.t.Helper()
	var st *runtimeapi.ContainerStatus
	eventually(p.t, "the container ends", func() bool {
		st = p.status(id)
		return st.State != runtimeapi.ContainerState_CONTAINER_RUNNING
	})
	return said(p.t, st.LogPath)
}

// programs are the digests of what runs containers.
func programs(t testing.TB) string {
	t.Helper()
	var out []string
	for _, name := range []string{"crun", "runc", "conmon"} {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Fatal(err)
		}
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		out = append(out, fmt.Sprintf("%s %x", name, sha256.Sum256(b)))
	}
	return strings.Join(out, ", ")
}

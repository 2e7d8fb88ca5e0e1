package container

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/cri/apparmor"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// A profile that is asked for and cannot be had fails the container, in a sentence.
func TestSeccompFailsClosed(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		path := filepath.Join(dir, name)
		must(t, os.WriteFile(path, []byte(text), 0o600))
		return path
	}
	fifo := filepath.Join(dir, "fifo")
	must(t, unix.Mkfifo(fifo, 0o600))
	for path, say := range map[string]string{
		"relative":                   "not an absolute path",
		filepath.Join(dir, "absent"): "is not on this node",
		write("torn", `{"defaultAction": "SCMP_ACT_ERRNO"`): "is not valid JSON",
		write("empty", `{}`): "has no defaultAction",
		write("big", strings.Repeat(" ", maxSeccomp)+`{"a":1}`): "more than the 4194304 bytes",
		dir:  "it is not a file",
		fifo: "it is not a file",
	} {
		if _, err := loadSeccomp(path); err == nil || !strings.Contains(err.Error(), say) || !errdefs.IsInvalidArgument(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("%s: %v, want %q", path, err, say)
		}
	}
	p, err := loadSeccomp("localhost/" + write("good", `{"defaultAction": "SCMP_ACT_ALLOW"}`))
	if err != nil || p.DefaultAction != "SCMP_ACT_ALLOW" {
		t.Errorf("%v, %v", p, err)
	}
}

// Localhost profiles take effect in the container, with both runtimes.
func TestSeccompLocalhost(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		profile := filepath.Join(n.dir, "no-mkdir.json")
		must(t, os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]}`), 0o600))
		cfg := n.config("busybox", "mkdir", "/tmp/never")
		cfg.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: profile}
		id := n.start(cfg)
		if st := n.exited(id); st.ExitCode == 0 || !strings.Contains(n.logOf(id), "not implemented") {
			t.Errorf("exit code %d, log %q", st.ExitCode, n.logOf(id))
		}
	})
}

func TestAppArmorFailsClosed(t *testing.T) {
	n := newNode(t, "crun")
	n.store.cfg.AppArmor = (*apparmor.Profiles)(nil)
	cfg := n.config("true")
	cfg.Linux.SecurityContext.Apparmor = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "mine"}
	_, err := n.store.Create(t.Context(), n.request(cfg))
	if !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), `AppArmor profile "mine"`) {
		t.Errorf("%v", err)
	}
	if left, err := os.ReadDir(filepath.Join(n.dir, "containers")); err != nil || len(left) != 0 || errors.Is(err, os.ErrNotExist) {
		t.Errorf("left: %v, %v", left, err)
	}
}

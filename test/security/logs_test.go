package security

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/logfile"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestLogPaths writes logs to paths that lead out of the pod's log directory, and
// to what is no file (CVE-2026-53489).
func TestLogPaths(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		p := n.pod(t, handler, nil)
		image := n.image(t, nil)
		dir := p.config.LogDirectory
		if err := os.MkdirAll(filepath.Join(dir, "real"), 0o755); err != nil {
			t.Fatal(err)
		}
		for name, to := range map[string]string{"file": c.secret, "dir": c.dir, "up": up(c.dir), "new": c.empty() + "/new", "zero": "/dev/zero"} {
			if err := os.Symlink(to, filepath.Join(dir, name)); err != nil {
				t.Fatal(err)
			}
		}
		if err := unix.Mkfifo(filepath.Join(dir, "pipe"), 0o666); err != nil {
			t.Fatal(err)
		}
		for _, path := range []string{"file", "dir/secret", "dir/x.log", "up/x.log", "new", "zero", "pipe", "real", "../x.log", c.empty() + "/x.log", "real/../../x.log", "real/../dir/x.log", "file/x.log", "."} {
			cfg := p.container(image, "echo evil")
			cfg.LogPath = path
			if id, err := p.run(cfg); err == nil {
				t.Errorf("a container logs to %s: %s", path, p.status(id).LogPath)
			}
		}
		// Between its creation and the next opening.
		id := p.mustRun(p.container(image, "while :; do echo evil; sleep 0.01; done"))
		log := p.status(id).LogPath
		if err := os.Rename(log, log+".1"); err != nil {
			t.Fatal(err)
		}
		if err := os.Symlink(c.secret, log); err != nil {
			t.Fatal(err)
		}
		_, err := n.cri.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id})
		refused(t, "a link where the log was", err)
		if err := logfile.Read(t.Context(), log, logfile.Options{Tail: -1}, io.Discard, io.Discard); err == nil {
			t.Error("a log was read through a link")
		}
		time.Sleep(50 * time.Millisecond) // the container writes on
		c.alive()
		if _, err := os.Lstat(filepath.Join(n.dir, "logs/x.log")); err == nil {
			t.Error("a log was written outside of the pod's log directory")
		}
	})
}

// TestLogDirectories refuses log directories that are no absolute path, or no
// directory.
func TestLogDirectories(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		c := newCanary(t, n)
		image := n.image(t, nil)
		for _, dir := range []string{"relative/logs", c.secret, c.secret + "/x"} {
			p := n.pod(t, handler, func(s *runtimeapi.PodSandboxConfig) { s.LogDirectory = dir })
			if _, err := p.create(p.container(image, "true")); err == nil {
				t.Errorf("a container logs below %s", dir)
			}
		}
		c.alive()
	})
}

// endless is how much a container writes without ending a line.
const endless = 96 << 20

// TestEndlessLine has a container write one line without an end: the monitor cuts
// it, and who reads the log holds none of it.
func TestEndlessLine(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		cfg := p.container(n.image(t, nil), fmt.Sprintf("head -c %d /dev/zero; "+forever, endless))
		cfg.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1}
		id := p.mustRun(cfg)
		log := p.status(id).LogPath
		monitor, peak := parentOf(t, p.pid(id)), 0
		eventually(t, "all is written", func() bool {
			peak = max(peak, kilobytes(t, processStatus(t, monitor, "VmRSS")))
			st, err := os.Stat(log)
			return err == nil && st.Size() > endless
		})
		if peak > 24<<10 {
			t.Errorf("the monitor held %d KiB", peak)
		}
		f, err := os.Open(log)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		defer os.Remove(log)
		longest := 0
		for r := bufio.NewReaderSize(f, 1<<20); ; {
			line, err := r.ReadSlice('\n')
			longest = max(longest, len(line))
			if err == io.EOF {
				break
			}
			if err != nil {
				t.Fatalf("a line of the log is longer than %d: %v", 1<<20, err)
			}
		}
		if longest > 64<<10 {
			t.Errorf("the longest line of the log has %d bytes", longest)
		}
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		if err := logfile.Read(t.Context(), log, logfile.Options{Tail: 1}, io.Discard, io.Discard); err != nil {
			t.Error(err)
		}
		runtime.ReadMemStats(&after)
		if grown := int64(after.HeapSys) - int64(before.HeapSys); grown > 64<<20 {
			t.Errorf("reading the log has taken %d MiB", grown>>20)
		}
	})
}

func kilobytes(t testing.TB, s string) int {
	t.Helper()
	var n int
	if _, err := fmt.Sscanf(s, "%d kB", &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestWritableFilesOfAPod fills every file of the pod's that a container can write:
// none may take more of the node than is counted against the container, or a few
// MiB (CVE-2020-8557).
func TestWritableFilesOfAPod(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		image := n.image(t, nil)
		for name, p := range map[string]*pod{"plain": n.pod(t, handler, nil), "user namespace": n.usersPod(t, handler)} {
			id := p.mustRun(p.container(image, forever))
			for file, most := range map[string]int64{"/etc/hosts": 4 << 20, "/etc/hostname": 4 << 20, "/etc/resolv.conf": 4 << 20, "/dev/shm/x": 64 << 20, "/dev/x": 64 << 20} {
				out, _, err := p.exec(id, "dd if=/dev/zero of="+file+" bs=1M count=80 2>&1; stat -c %s "+file)
				if err != nil {
					t.Fatal(err)
				}
				var size int64
				if _, err := fmt.Sscanf(out[strings.LastIndex(strings.TrimSpace(out), "\n")+1:], "%d", &size); err != nil || size > most {
					t.Errorf("%s: %s grew to %d bytes, %d are allowed: %v\n%s", name, file, size, most, err, out)
				}
				p.exec(id, ": > "+file)
			}
		}
	})
}

// TestExecOutput executes commands that write without end, and some whose client
// has long gone (CVE-2022-23471, CVE-2022-31030).
func TestExecOutput(t *testing.T) {
	each(t, func(t *testing.T, n *node, handler string) {
		p := n.pod(t, handler, nil)
		id := p.mustRun(p.container(n.image(t, nil), forever))
		r, err := n.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "head -c 30000000 /dev/zero; head -c 30000000 /dev/zero >&2; exit 7"}, Timeout: 60})
		if err != nil {
			t.Fatal(err)
		}
		if got := len(r.Stdout) + len(r.Stderr); got > 16<<20 || got < 15<<20 || r.ExitCode != 7 {
			t.Errorf("%d bytes, exit code %d", got, r.ExitCode)
		}
		if !bytes.Equal(r.Stdout[:8], make([]byte, 8)) {
			t.Errorf("output %q", r.Stdout[:8])
		}
		begin := time.Now()
		if _, err := n.cri.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"yes"}, Timeout: 1}); err == nil {
			t.Error("a command without end has ended")
		}
		if took := time.Since(begin); took > 10*time.Second {
			t.Errorf("a command of one second took %v", took)
		}
		if out := p.sh(id, "ps | grep -c '[y]es' || true"); out != "0" {
			t.Errorf("%s commands are left", out)
		}
	})
}

package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRunToCompletion(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh", "-c", "echo out; echo err >&2; id -u; exit 0")
		cfg.Linux.SecurityContext.RunAsUsername = "web"
		id := n.start(cfg)
		st := n.exited(id)
		if st.ExitCode != 0 || st.Reason != "Completed" || st.StartedAt == 0 || st.FinishedAt < st.StartedAt-int64(time.Second) {
			t.Errorf("status %+v", st)
		}
		if u := st.User.GetLinux(); u.GetUid() != 101 || u.GetGid() != 102 || len(u.GetSupplementalGroups()) != 2 {
			t.Errorf("user %+v", u)
		}
		log := n.logOf(id)
		for _, want := range []string{" stdout F out\n", " stderr F err\n", " stdout F 101\n"} {
			if !strings.Contains(log, want) {
				t.Errorf("log lacks %q:\n%s", want, log)
			}
		}
		var kinds []EventKind
		for len(kinds) < 3 {
			select {
			case e := <-n.events:
				kinds = append(kinds, e.Kind)
			case <-time.After(5 * time.Second):
				t.Fatalf("events %v, want created, started, stopped", kinds)
			}
		}
	})
}

func TestExitCodesAndSignals(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		if st := n.exited(n.start(n.config("sh", "-c", "exit 7"))); st.ExitCode != 7 || st.Reason != "Error" {
			t.Errorf("exit 7: %d %s", st.ExitCode, st.Reason)
		}
		id := n.start(n.config("sleep", "100"))
		f, err := n.store.Facts(id)
		if err != nil || f.PID == 0 {
			t.Fatalf("facts %+v, %v", f, err)
		}
		unix.Kill(f.PID, unix.SIGKILL)
		if st := n.exited(id); st.ExitCode != 137 || st.Reason != "Error" {
			t.Errorf("killed: %d %s", st.ExitCode, st.Reason)
		}
	})
}

func TestStop(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		obeys := n.start(n.config("sh", "-c", "trap 'exit 9' TERM; echo ready; while :; do sleep 0.05; done"))
		n.eventually("trap set", func() bool { return strings.Contains(n.logOf(obeys), "ready") })
		began := time.Now()
		if err := n.store.Stop(t.Context(), obeys, 20*time.Second); err != nil {
			t.Fatal(err)
		}
		if st := n.status(obeys); st.ExitCode != 9 || time.Since(began) > 10*time.Second {
			t.Errorf("obedient: %d after %v", st.ExitCode, time.Since(began))
		}
		deaf := n.start(n.config("sleep", "1000")) // as PID 1 it ignores SIGTERM
		began = time.Now()
		if err := n.store.Stop(t.Context(), deaf, 300*time.Millisecond); err != nil {
			t.Fatal(err)
		}
		if st := n.status(deaf); st.ExitCode != 137 || time.Since(began) < 300*time.Millisecond {
			t.Errorf("deaf: %d after %v", st.ExitCode, time.Since(began))
		}
		quit := n.config("sh", "-c", "trap 'exit 3' QUIT; echo ready; while :; do sleep 0.05; done")
		req := n.request(quit)
		req.ImageConfig.StopSignal = "SIGQUIT"
		id, err := n.store.Create(t.Context(), req)
		must(t, err)
		must(t, n.store.Start(t.Context(), id))
		n.eventually("trap set", func() bool { return strings.Contains(n.logOf(id), "ready") })
		for range 2 {
			if err := n.store.Stop(t.Context(), id, 10*time.Second); err != nil {
				t.Fatal(err)
			}
		}
		if st := n.status(id); st.ExitCode != 3 {
			t.Errorf("SIGQUIT: %d", st.ExitCode)
		}
		if err := n.store.Stop(t.Context(), "nonesuch", 0); err != nil {
			t.Errorf("stop of nothing: %v", err)
		}
		created := n.create(n.config("sleep", "10"))
		if err := n.store.Stop(t.Context(), created, 5*time.Second); err != nil {
			t.Errorf("stop before start: %v", err)
		}
		if err := n.store.Start(t.Context(), created); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("start after stop: %v", err)
		}
	})
}

func TestStopWithLessGraceIsHeeded(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	first := make(chan error, 1)
	go func() { first <- n.store.Stop(t.Context(), id, time.Minute) }()
	time.Sleep(50 * time.Millisecond)
	if err := n.store.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-first:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Error("the first stop still waits")
	}
}

func TestOOM(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1; exit $?")
		cfg.Command = []string{"dd", "if=/dev/zero", "of=/dev/null", "bs=100M", "count=1"}
		cfg.Linux.Resources.MemoryLimitInBytes = 32 << 20
		if st := n.exited(n.start(cfg)); st.Reason != "OOMKilled" || st.ExitCode != 137 {
			t.Errorf("status %d %s %q", st.ExitCode, st.Reason, st.Message)
		}
	})
}

// A child that the kernel killed is not the container: its end is its own.
func TestOOMOfChild(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1; exit 3")
		cfg.Linux.Resources.MemoryLimitInBytes = 32 << 20
		id := n.start(cfg)
		if st := n.exited(id); st.Reason != "Error" || st.ExitCode != 3 {
			t.Errorf("status %d %s %q", st.ExitCode, st.Reason, st.Message)
		}
		if f, err := n.store.Facts(id); err != nil || f.OOMKills == 0 {
			t.Errorf("facts %+v, %v: the kill is not counted", f, err)
		}
	})
}

func TestStartErrors(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		file := filepath.Join(n.dir, "file")
		if err := os.WriteFile(file, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		onto := n.config("true")
		onto.Mounts = []*runtimeapi.Mount{{HostPath: file, ContainerPath: "/etc"}}
		for _, tc := range []struct {
			name string
			cfg  *runtimeapi.ContainerConfig
			say  string
			code int32
			why  string
		}{
			{"missing", n.config("/bin/nonesuch"), "is not in the image", 127, "ContainerCannotRun"},
			{"not on path", n.config("nonesuch"), "is not in the image", 127, "ContainerCannotRun"},
			{"denied", n.config("/bin/notexec"), "may not be executed", 126, "ContainerCannotRun"},
			{"directory", n.config("/etc"), "may not be executed", 126, "ContainerCannotRun"},
			{"mount", onto, "is a directory, the other is a file", 128, "StartError"},
		} {
			t.Run(tc.name, func(t *testing.T) {
				id := n.create(tc.cfg)
				err := n.store.Start(t.Context(), id)
				if err == nil || !strings.Contains(err.Error(), tc.say) {
					t.Errorf("start: %v, want %q", err, tc.say)
				}
				st := n.status(id)
				if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != tc.code || st.Reason != tc.why || !strings.Contains(st.Message, tc.say) {
					t.Errorf("status %v %d %s %q", st.State, st.ExitCode, st.Reason, st.Message)
				}
			})
		}
	})
}

func TestCreateErrorsLeaveNothing(t *testing.T) {
	n := newNode(t, "crun")
	bad := n.config("true")
	bad.Mounts = []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/x"}}
	if _, err := n.store.Create(t.Context(), n.request(bad)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("relative mount: %v", err)
	}
	local := n.config("true")
	local.Linux.SecurityContext.Seccomp = &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: "/nonesuch"}
	if _, err := n.store.Create(t.Context(), n.request(local)); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("missing seccomp profile: %v", err)
	}
	log := n.config("true")
	log.LogPath = "../../escape.log"
	if _, err := n.store.Create(t.Context(), n.request(log)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("log path: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(n.dir, "logs"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc", filepath.Join(n.dir, "logs/link")); err != nil {
		t.Fatal(err)
	}
	log.LogPath = "link/berth-escape.log"
	if _, err := n.store.Create(t.Context(), n.request(log)); err == nil {
		t.Error("a symbolic link below the log directory was followed")
	}
	cfg := n.config("sleep", "100")
	id := n.create(cfg)
	var taken interface{ Error() string }
	if _, err := n.store.Create(t.Context(), n.request(cfg)); !errdefs.IsAlreadyExists(err) || !errors.As(err, &taken) {
		t.Errorf("same name: %v", err)
	}
	if got := n.store.List(Filter{}); len(got) != 1 || got[0].Id != id {
		t.Errorf("list %v", got)
	}
	if left, _ := os.ReadDir(filepath.Join(n.dir, "containers")); len(left) != 1 {
		t.Errorf("left behind: %v", left)
	}
}

func TestReopenLog(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sh", "-c", "while :; do echo x; sleep 0.02; done"))
	path := n.status(id).LogPath
	n.eventually("output", func() bool { return len(n.logOf(id)) > 0 })
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	if err := n.store.ReopenLog(id); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); err != nil {
		t.Errorf("ReopenLog returned before there was a new file: %v", err)
	}
	n.eventually("output in the new file", func() bool {
		b, _ := os.ReadFile(path)
		return len(b) > 0
	})
	if err := n.store.Stop(t.Context(), id, 0); err != nil {
		t.Fatal(err)
	}
	if err := n.store.ReopenLog(id); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("reopen after exit: %v", err)
	}
}

// A container that says nothing of namespaces has those of its sandbox.
func TestNamespacesOfSandbox(t *testing.T) {
	n := newNode(t, "crun")
	cfg := n.config("sleep", "1000")
	options := cfg.Linux.SecurityContext.NamespaceOptions
	for name, linux := range map[string]*runtimeapi.LinuxContainerConfig{"no context": nil, "empty context": {SecurityContext: &runtimeapi.LinuxContainerSecurityContext{}}} {
		t.Run(name, func(t *testing.T) {
			cfg := n.config("sleep", "1000")
			cfg.Linux = linux
			req := n.request(cfg)
			req.Pod.Linux = &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: options}}
			id, err := n.store.Create(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			own, err := os.Readlink("/proc/self/ns/net")
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", mustGet(n, id).rec.Init.PID)); err != nil || got != own {
				t.Errorf("network %s, want the host's %s, as the sandbox has it (%v)", got, own, err)
			}
			if linux != nil && linux.SecurityContext.NamespaceOptions != nil {
				t.Error("the caller's configuration was changed")
			}
		})
	}
}

func TestNoLogWanted(t *testing.T) {
	n := newNode(t, "crun")
	cfg := n.config("sh", "-c", "head -c1000000 /dev/zero; exit 7")
	cfg.LogPath = ""
	id := n.start(cfg)
	if st := n.exited(id); st.ExitCode != 7 || st.LogPath != "" {
		t.Errorf("exit code %d, log path %q", st.ExitCode, st.LogPath)
	}
	cfg = n.config("sleep", "1000")
	cfg.LogPath = ""
	if err := n.store.ReopenLog(n.start(cfg)); err != nil {
		t.Errorf("reopening what is not kept: %v", err)
	}
}

func TestUpdateResources(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sleep", "1000")
		cfg.Linux.Resources.MemoryLimitInBytes = 64 << 20
		cfg.Linux.Resources.CpuShares = 200
		id := n.start(cfg)
		want := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 96 << 20}
		if err := n.store.UpdateResources(t.Context(), id, want); err != nil {
			t.Fatal(err)
		}
		file, exp := "memory.limit_in_bytes", "100663296"
		if n.store.cfg.Host.CgroupV2 {
			file = "memory.max"
		}
		b, err := os.ReadFile(filepath.Join(cgroupDirs(n.store.cfg.Host, mustGet(n, id).rec.CgroupsPath)[0], file))
		if err != nil || strings.TrimSpace(string(b)) != exp {
			t.Errorf("%s = %q, %v", file, b, err)
		}
		r := n.status(id).Resources.Linux
		if r.MemoryLimitInBytes != 96<<20 || r.CpuShares != 200 {
			t.Errorf("status %+v", r)
		}
	})
}

func TestRemoveRunningAndTwice(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sh", "-c", "sleep 1000 & sleep 1000"))
		rec, _ := mustGet(n, id).snapshot()
		for range 2 {
			if err := n.store.Remove(t.Context(), id); err != nil {
				t.Fatal(err)
			}
		}
		if rec.Init.Alive() || rec.Monitor.Alive() {
			t.Error("something still runs")
		}
		if _, err := n.store.Status(id); !errdefs.IsNotFound(err) {
			t.Errorf("status: %v", err)
		}
	})
}

func BenchmarkCreateStart(b *testing.B) {
	for _, rt := range []string{"crun", "runc"} {
		b.Run(rt, func(b *testing.B) {
			n := newNode(b, rt)
			go func() {
				for range n.events {
				}
			}()
			var took []time.Duration
			for b.Loop() {
				began := time.Now()
				id := n.start(n.config("sleep", "1000"))
				took = append(took, time.Since(began))
				b.StopTimer()
				if err := n.store.Remove(b.Context(), id); err != nil {
					b.Fatal(err)
				}
				b.StartTimer()
			}
			b.ReportMetric(float64(median(took).Microseconds())/1000, "p50-ms")
		})
	}
}

// TestOOMOfChildThenStopped is not taken for one that the kernel killed, because
// it had killed a child of it before: we ended it.
func TestOOMOfChildThenStopped(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		cfg := n.config("sh", "-c", "dd if=/dev/zero of=/dev/null bs=100M count=1; sleep 1000")
		cfg.Linux.Resources.MemoryLimitInBytes = 32 << 20
		id := n.start(cfg)
		rec, _ := n.store.lookup(id).snapshot()
		n.eventually("the child is killed", func() bool { return oomKills(n.store.cfg.Host, rec.CgroupsPath) > 0 })
		if err := n.store.Stop(t.Context(), id, 0); err != nil {
			t.Fatal(err)
		}
		if st := n.exited(id); st.Reason != "Error" || st.ExitCode != 137 {
			t.Errorf("status %d %s %q", st.ExitCode, st.Reason, st.Message)
		}
	})
}

package container

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestMonitorKilled(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.start(n.config("sleep", "1000"))
		c, _ := n.store.get(id)
		rec, _ := c.snapshot()
		if err := rec.Monitor.Signal(unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		st := n.exited(id)
		if st.ExitCode != 137 || st.Reason != "Error" || !strings.Contains(st.Message, "monitor (conmon) was killed") {
			t.Errorf("status %d %s %q", st.ExitCode, st.Reason, st.Message)
		}
		if rec.Init.Alive() {
			t.Error("the container still runs")
		}
	})
}

func TestMonitorAndContainerKilledWhileDown(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	c, _ := n.store.get(id)
	rec, _ := c.snapshot()
	n.down()
	rec.Monitor.Signal(unix.SIGKILL)
	rec.Init.Signal(unix.SIGKILL)
	waitGone(rec.Init, time.Second)
	n.up()
	if st := n.exited(id); st.ExitCode != 137 || st.Reason != "ContainerStatusUnknown" {
		t.Errorf("status %d %s %q", st.ExitCode, st.Reason, st.Message)
	}
}

func TestRestart(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		stays := n.start(n.config("sh", "-c", "echo before; sleep 1000"))
		ends := n.start(n.config("sh", "-c", "sleep 0.4; echo bye; exit 4"))
		created := n.create(n.config("sh", "-c", "exit 5"))
		before, _ := n.store.Facts(stays)
		n.down()
		time.Sleep(700 * time.Millisecond)
		n.up()
		if st := n.status(ends); st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 4 {
			t.Errorf("exited meanwhile: %v %d", st.State, st.ExitCode)
		}
		after, err := n.store.Facts(stays)
		if err != nil || after != before || !after.Running {
			t.Errorf("adopted: %+v %v, want %+v", after, err, before)
		}
		if err := n.store.Start(t.Context(), created); err != nil {
			t.Error(err)
		}
		if st := n.exited(created); st.ExitCode != 5 {
			t.Errorf("started after restart: %d", st.ExitCode)
		}
		if _, err := n.store.Create(t.Context(), n.request(func() *runtimeapi.ContainerConfig {
			_, cfg := mustGet(n, stays).snapshot()
			return cfg
		}())); !errdefs.IsAlreadyExists(err) {
			t.Errorf("name after restart: %v", err)
		}
		unix.Kill(after.PID, unix.SIGKILL)
		if st := n.exited(stays); st.ExitCode != 137 {
			t.Errorf("adopted and killed: %d", st.ExitCode)
		}
	})
}

func mustGet(n *node, id string) *container {
	n.t.Helper()
	c, err := n.store.get(id)
	if err != nil {
		n.t.Fatal(err)
	}
	return c
}

// Each prefix of a creation is what a kill there leaves; Restore removes it.
func TestHalfMadeIsRemoved(t *testing.T) {
	n := newNode(t, "crun")
	prefixes := map[string]func(id string){
		"directory only": func(id string) { os.Mkdir(n.store.records.Path(id), 0o700) },
		"record":         func(id string) { must(t, n.store.records.Write(id, Record{SandboxID: "s"})) },
		"rootfs mounted": func(id string) {
			must(t, n.store.records.Write(id, Record{SandboxID: "s"}))
			must(t, os.Mkdir(n.store.rootfs(id), 0o700))
			must(t, n.rootfs.MountRootfs(t.Context(), RootfsMount{ID: id, Target: n.store.rootfs(id)}))
		},
		"monitor started": func(id string) {
			must(t, n.store.records.Write(id, Record{SandboxID: "s"}))
			cmd := exec.Command("sleep", "1000") // stands for a conmon that waits
			must(t, cmd.Start())
			t.Cleanup(func() { cmd.Wait() })
			who, err := monitor.Identify(cmd.Process.Pid)
			must(t, err)
			must(t, n.store.records.Write(id, Record{SandboxID: "s", Monitor: who, CgroupsPath: n.parent + "/" + id}))
		},
		"volumes mounted": func(id string) {
			must(t, n.store.records.Write(id, Record{SandboxID: "s"}))
			n.mountVolumes(id)
		},
		"volumes mounted, corrupt": func(id string) {
			must(t, n.store.records.Write(id, Record{SandboxID: "s"}))
			n.mountVolumes(id)
			for _, name := range []string{"record.json", "record.json.copy"} {
				must(t, os.WriteFile(filepath.Join(n.store.records.Path(id), name), []byte("{"), 0o600))
			}
		},
		"corrupt": func(id string) {
			must(t, n.store.records.Write(id, Record{SandboxID: "s"}))
			must(t, os.WriteFile(filepath.Join(n.store.records.Path(id), "record.json"), []byte("{"), 0o600))
		},
	}
	i := 0
	for name, make := range prefixes {
		i++
		t.Run(name, func(t *testing.T) {
			id := "half" + strings.Repeat("0", i)
			make(id)
			n.restart()
			if _, err := os.Stat(n.store.records.Path(id)); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("left: %v\n%s", err, n.log)
			}
		})
	}
}

// mountVolumes stages a volume, and an image volume with a part of it.
func (n *node) mountVolumes(id string) {
	n.t.Helper()
	vol := n.t.TempDir()
	must(n.t, os.WriteFile(filepath.Join(vol, "precious"), nil, 0o600))
	n.t.Cleanup(func() {
		if _, err := os.Stat(filepath.Join(vol, "precious")); err != nil {
			n.t.Errorf("the volume's content went with the container: %v", err)
		}
	})
	must(n.t, os.Mkdir(n.store.mounts(id), 0o700))
	must(n.t, n.store.mountImage(n.t.Context(), RootfsMount{ID: volumeID(id, 0), Image: "volume:test", Target: n.store.volume(id, 0), Volume: true}))
	_, err := n.store.stage(id, "0", vol, staging{private: true})
	must(n.t, err)
	_, err = n.store.stage(id, "1", filepath.Join(n.store.volume(id, 0), "etc/passwd"), staging{})
	must(n.t, err)
	must(n.t, os.WriteFile(filepath.Join(n.store.mounts(id), "2"), nil, 0o600)) // a mount point alone
}

// A creation that is complete but for the last record is undone too: nobody
// has been told of it.
func TestUntoldContainerIsRemoved(t *testing.T) {
	each(t, func(t *testing.T, n *node) {
		id := n.create(n.config("sleep", "1000"))
		c := mustGet(n, id)
		rec, _ := c.snapshot()
		rec.Complete, rec.Init = false, monitor.Identity{}
		n.down()
		pid := c.rec.Init
		must(t, n.store.records.Write(id, rec))
		n.up()
		if pid.Alive() {
			t.Error("its process still runs")
		}
		if _, err := os.Stat(n.store.records.Path(id)); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("left: %v", err)
		}
	})
}

// What a client of the earlier agent ran has lost its client.
func TestExecOfEarlierAgentEnds(t *testing.T) {
	n := newNode(t, "crun")
	id := n.start(n.config("sleep", "1000"))
	c := mustGet(n, id)
	e, err := n.store.prepare(c, []string{"sleep", "555"}, false, nil)
	must(t, err)
	must(t, n.store.cfg.Runtime.StartExec(e.cmd))
	go e.cmd.Wait()
	dir := cgroupDirs(n.store.cfg.Host, c.rec.CgroupsPath)[0]
	n.eventually("exec running", func() bool {
		p, _ := members(dir)
		b, _ := os.ReadFile(e.pidFile())
		return len(p) == 2 && len(b) > 0
	})
	must(t, os.WriteFile(filepath.Join(n.dir, "exits", "gone.XYZ"), []byte("1"), 0o600))
	n.restart()
	n.eventually("exec gone", func() bool { p, _ := members(dir); return len(p) == 1 })
	if _, err := os.Stat(e.dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("its files stay: %v", err)
	}
	if !mustGet(n, id).rec.Init.Alive() {
		t.Error("the container went with it")
	}
}

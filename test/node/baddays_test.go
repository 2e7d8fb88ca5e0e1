package node

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// podOf is a one-container pod; spec and container are further lines, indented as they stand.
func podOf(name, container, spec string) string {
	return fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata: {name: %s}
spec:
  terminationGracePeriodSeconds: 1
%s
  containers:
  - name: c
    image: %s
    command: [sh, -c, 'trap "exit 0" TERM; while :; do sleep 1 & wait $!; done']
%s
`, name, spec, Busybox, container)
}

// waiting returns a check for a container that waits for reason with a message that has text in it.
func waiting(reason, text string) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		for _, s := range p.Status.ContainerStatuses {
			if w := s.State.Waiting; w != nil && w.Reason == reason && strings.Contains(w.Message, text) {
				return nil
			}
		}
		return fmt.Errorf("no container waits for %s with %q", reason, text)
	}
}

// why checks that `berth why` says every one of texts.
func (a *Agent) why(name string, texts ...string) {
	a.T.Helper()
	Eventually(a.T, 5*time.Second, func() error {
		out := a.Must("why", name)
		for _, text := range texts {
			if !strings.Contains(out, text) {
				return fmt.Errorf("berth why %s does not say %q:\n%s", name, text, out)
			}
		}
		return nil
	})
}

// TestBadDays gives one agent everything that goes wrong on a node at once, and
// sees that each pod says why it does not run, and that a good pod beside them
// is not harmed.
func TestBadDays(t *testing.T) {
	before, marks := ReadHost(t), []string(nil)
	t.Cleanup(func() {
		if added := ReadHost(t).Added(before, marks); len(added) > 0 {
			t.Errorf("left behind on the host:\n%s", strings.Join(added, "\n"))
		}
	})
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	marks = a.Marks()
	a.ImportBusybox()
	a.Place("good.yaml", podOf("good", "", ""))
	good := a.Wait("good", 30*time.Second, Ready)

	days := map[string]func(*testing.T, *Agent){
		"missing image": func(t *testing.T, a *Agent) {
			a.Place("m.yaml", strings.Replace(podOf("m", "", ""), Busybox, "127.0.0.1:1/no/such:1", 1))
			a.Wait("m", 30*time.Second, func(p *v1.Pod) error {
				return waiting("ImagePullBackOff", "127.0.0.1:1")(p)
			})
			a.why("m", "127.0.0.1:1/no/such:1")
			a.Unplace("m.yaml")
			a.WaitGone("m", 20*time.Second)
		},
		"wrong command": func(t *testing.T, a *Agent) {
			a.Place("w.yaml", strings.Replace(podOf("w", "", ""), "[sh, -c,", "[no-such-program, -c,", 1))
			a.Wait("w", 30*time.Second, func(p *v1.Pod) error {
				for _, s := range p.Status.ContainerStatuses {
					for _, state := range []v1.ContainerState{s.State, s.LastTerminationState} {
						if state.Terminated != nil && state.Terminated.Reason == "ContainerCannotRun" && strings.Contains(state.Terminated.Message, "no-such-program") {
							return nil
						}
						if state.Waiting != nil && strings.Contains(state.Waiting.Message, "no-such-program") {
							return nil
						}
					}
				}
				return fmt.Errorf("the missing command is not named")
			})
			a.why("w", "no-such-program")
			a.Unplace("w.yaml")
			a.WaitGone("w", 20*time.Second)
		},
		"unmountable volume": func(t *testing.T, a *Agent) {
			a.Place("v.yaml", podOf("v", "    volumeMounts: [{name: x, mountPath: /x}]", "  volumes: [{name: x, hostPath: {path: /no/such/directory, type: Directory}}]"))
			a.Wait("v", 30*time.Second, Phase(v1.PodPending))
			a.why("v", "/no/such/directory")
			a.Unplace("v.yaml")
			a.WaitGone("v", 20*time.Second)
		},
		"missing ConfigMap appears": func(t *testing.T, a *Agent) {
			a.Place("cm.yaml", podOf("cm", "    env: [{name: X, valueFrom: {configMapKeyRef: {name: late, key: x}}}]", ""))
			a.Wait("cm", 30*time.Second, waiting("CreateContainerConfigError", "late"))
			a.why("cm", "late")
			a.Place("late.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: {name: late}\ndata: {x: here}\n")
			a.Wait("cm", 10*time.Second, Ready)
			if out := a.Must("exec", "cm", "--", "sh", "-c", "echo $X"); out != "here\n" {
				t.Errorf("the variable is %q", out)
			}
			a.Unplace("cm.yaml")
			a.WaitGone("cm", 20*time.Second)
		},
		"port taken": func(t *testing.T, a *Agent) {
			a.Place("p1.yaml", podOf("p1", "    ports: [{containerPort: 80, hostPort: 18555}]", ""))
			a.Wait("p1", 30*time.Second, Ready)
			a.Place("p2.yaml", podOf("p2", "    ports: [{containerPort: 80, hostPort: 18555}]", ""))
			p := a.Wait("p2", 30*time.Second, Phase(v1.PodFailed))
			if p.Status.Reason != "NodePorts" {
				t.Errorf("reason %q, message %q", p.Status.Reason, p.Status.Message)
			}
			a.why("p2", "18555")
			a.Unplace("p1.yaml")
			a.Unplace("p2.yaml")
			a.WaitGone("p1", 20*time.Second)
			a.WaitGone("p2", 20*time.Second)
		},
		"unreadable manifest": func(t *testing.T, a *Agent) {
			a.Place("u.yaml", podOf("u", "", ""))
			a.Wait("u", 30*time.Second, Ready)
			a.Place("u.yaml", podOf("u", "    imagePullPolice: Never", "")+"---\n"+podOf("u2", "", ""))
			a.Wait("u2", 30*time.Second, Ready) // the other document runs
			a.Wait("u", 5*time.Second, Ready)   // and the pod that ran goes on
			Eventually(t, 5*time.Second, func() error {
				if log := a.Log(500); !strings.Contains(log, "imagePullPolice") {
					return fmt.Errorf("the unknown field is not reported")
				}
				return nil
			})
			a.Unplace("u.yaml")
			a.WaitGone("u", 20*time.Second)
			a.WaitGone("u2", 20*time.Second)
		},
		"conmon killed": func(t *testing.T, a *Agent) {
			NotOver(t, Containerd, "no process of it watches one container: a shim holds a whole pod")
			a.Place("k.yaml", podOf("k", "", ""))
			p := a.Wait("k", 30*time.Second, Ready)
			_, id, _ := strings.Cut(p.Status.ContainerStatuses[0].ContainerID, "://")
			kill(t, "conmon", id)
			p = a.Wait("k", 20*time.Second, func(p *v1.Pod) error {
				if p.Status.ContainerStatuses[0].RestartCount != 1 {
					return fmt.Errorf("not restarted")
				}
				return Ready(p)
			})
			if last := p.Status.ContainerStatuses[0].LastTerminationState.Terminated; last == nil || !strings.Contains(last.Message, "conmon") {
				t.Errorf("the fate is not told: %+v", last)
			}
			a.Unplace("k.yaml")
			a.WaitGone("k", 20*time.Second)
		},
		"disk full": func(t *testing.T, a *Agent) {
			disk := filepath.Join(a.Dir, "tiny")
			if err := os.Mkdir(disk, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := syscall.Mount("tiny", disk, "tmpfs", 0, "size=64k"); err != nil {
				t.Fatal(err)
			}
			defer syscall.Unmount(disk, syscall.MNT_DETACH)
			full := New(t, a.Binary)
			full.Flags = []string{"--log-dir", disk + "/log"}
			if err := os.WriteFile(disk+"/fill", make([]byte, 60<<10), 0o644); err != nil {
				t.Fatal(err)
			}
			full.Start()
			full.ImportBusybox()
			full.Place("d.yaml", podOf("d", "", ""))
			time.Sleep(time.Second)
			if _, err := full.Pod("d"); err != nil {
				t.Errorf("the agent has lost the pod on a full disk: %v", err)
			}
			full.Unplace("d.yaml")
			full.WaitGone("d", 30*time.Second)
		},
	}
	for name, day := range days {
		t.Run(name, func(t *testing.T) { day(t, a.For(t)) })
	}
	p := a.Wait("good", 5*time.Second, Ready)
	if p.Status.ContainerStatuses[0].RestartCount != 0 || p.Status.ContainerStatuses[0].ContainerID != good.Status.ContainerStatuses[0].ContainerID {
		t.Errorf("the good pod was harmed: %+v", p.Status.ContainerStatuses)
	}
}

// kill ends the one process whose program is called name and whose command line has text in it.
func kill(t *testing.T, name, text string) {
	t.Helper()
	found, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range found {
		body, _ := os.ReadFile(f)
		program, _, _ := strings.Cut(string(body), "\x00")
		if filepath.Base(program) == name && strings.Contains(string(body), text) {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(f)))
			if err := syscall.Kill(pid, syscall.SIGKILL); err != nil {
				t.Fatal(err)
			}
			return
		}
	}
	t.Fatalf("no process %s with %q", name, text)
}

// TestNoAddressLeft fills a network of two addresses.
func TestNoAddressLeft(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	conf := filepath.Join(a.Dir, "net.d")
	if err := os.Mkdir(conf, 0o755); err != nil {
		t.Fatal(err)
	}
	list := fmt.Sprintf(`{"cniVersion":"1.0.0","name":"tiny","plugins":[{"type":"bridge","bridge":"bt%d","isGateway":true,"ipam":{"type":"host-local","ranges":[[{"subnet":"10.214.9.0/30"}]],"dataDir":%q}}]}`, os.Getpid()%100000, a.Dir+"/leases")
	if err := os.WriteFile(conf+"/10-tiny.conflist", []byte(list), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("ip", "link", "delete", fmt.Sprintf("bt%d", os.Getpid()%100000)).Run() })
	a.Flags = []string{"--cni-conf-dir", conf}
	a.Start()
	a.ImportBusybox()
	a.Place("one.yaml", podOf("one", "", ""))
	a.Wait("one", 30*time.Second, Ready)
	a.Place("two.yaml", podOf("two", "", ""))
	a.Wait("two", 30*time.Second, Phase(v1.PodPending))
	Eventually(t, 20*time.Second, func() error {
		if out := a.Must("why", "two"); !strings.Contains(out, "no address left") && !strings.Contains(out, "no IP addresses available") {
			return fmt.Errorf("berth why two: %s", out)
		}
		return nil
	})
	a.Unplace("one.yaml") // its address is free again, and the other pod takes it
	a.WaitGone("one", 20*time.Second)
	a.Wait("two", 60*time.Second, Ready)
	a.Unplace("two.yaml")
	a.WaitGone("two", 20*time.Second)
}

// TestRefusals sees that an agent that cannot start says why, with the file and line to mend.
func TestRefusals(t *testing.T) {
	binary := Binary(t, "BERTH_BIN")
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("apiVersion: berth.dev/v1alpha1\nkind: Configuration\nmaxPodz: 3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		args []string
		says []string
	}{
		"unknown field": {[]string{"agent", "--config", bad}, []string{"bad.yaml", "3", "maxPodz", "maxPods"}},
		"no such file":  {[]string{"agent", "--config", dir + "/none.yaml"}, []string{"none.yaml"}},
		"no runtime":    {[]string{"agent", "--oci-runtime", "/no/such/crun", "--root-dir", dir + "/r", "--state-dir", dir + "/s", "--log-dir", dir + "/l", "--cgroup-root", "/berth-refusal"}, []string{"/no/such/crun"}},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := exec.Command("timeout", append([]string{"20", binary}, c.args...)...).CombinedOutput()
			if err == nil {
				t.Errorf("it started")
			}
			for _, text := range c.says {
				if !strings.Contains(string(out), text) {
					t.Errorf("it does not say %q:\n%s", text, out)
				}
			}
			if strings.Contains(string(out), "goroutine ") {
				t.Errorf("it shows a stack:\n%s", out)
			}
		})
	}
	exec.Command(binary, "purge", "--yes", "--root-dir", dir+"/r", "--state-dir", dir+"/s", "--log-dir", dir+"/l", "--cgroup-root", "/berth-refusal").Run()
}

// TestInotifyUsedUp takes every inotify instance of the user away and sees that an agent still runs pods.
func TestInotifyUsedUp(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	var fds []int
	defer func() {
		for _, fd := range fds {
			syscall.Close(fd)
		}
	}()
	for range 100000 {
		fd, err := syscall.InotifyInit()
		if err != nil {
			break
		}
		fds = append(fds, fd)
	}
	t.Logf("took %d inotify instances", len(fds))
	a.Place("i.yaml", podOf("i", "", ""))
	a.Wait("i", 30*time.Second, Ready)
	a.Unplace("i.yaml")
	a.WaitGone("i", 20*time.Second)
}

// TestDeadRegistry pulls from an address where nobody answers, and one that hangs.
func TestDeadRegistry(t *testing.T) {
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	l, err := net.Listen("tcp", "127.0.0.1:0") // accepts, never answers
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	a.Place("dead.yaml", strings.Replace(podOf("dead", "", ""), Busybox, l.Addr().String()+"/x/y:1", 1))
	a.Wait("dead", 10*time.Second, Phase(v1.PodPending))
	a.why("dead", l.Addr().String())
	start := time.Now()
	a.Unplace("dead.yaml")
	a.WaitGone("dead", 20*time.Second)
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("a hanging pull delayed the pod's end by %v", d)
	}
}

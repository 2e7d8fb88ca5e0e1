package podinit

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestReproducible builds the program again. It needs the compiler that built
// what is checked in.
func TestReproducible(t *testing.T) {
	for _, cc := range []string{"x86_64-linux-gnu-gcc", "aarch64-linux-gnu-gcc"} {
		out, err := exec.Command(cc, "-dumpfullversion").Output()
		if err != nil {
			t.Skipf("%s is not installed", cc)
		}
		if v := strings.TrimSpace(string(out)); !strings.HasPrefix(v, "12.2.") {
			t.Skipf("%s is %s; the program was built with 12.2", cc, v)
		}
	}
	dir := t.TempDir()
	if out, err := exec.Command("src/build.sh", dir).CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, name := range []string{"init-amd64", "init-arm64"} {
		built, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		kept, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(built, kept) {
			t.Errorf("%s differs from what src/init.c makes: run go generate", name)
		}
		if len(kept) > 4096 {
			t.Errorf("%s has %d bytes, more than a page", name, len(kept))
		}
	}
}

const netUTSIPC = unix.CLONE_NEWNET | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

func start(t *testing.T, o Options) *Init {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("namespaces need root")
	}
	i, err := Start(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { i.Abandon() })
	return i
}

func TestSettings(t *testing.T) {
	i := start(t, Options{
		Clone: netUTSIPC, Hostname: "boxed", Loopback: true,
		Sysctls: []Setting{{"/proc/sys/net/ipv4/ip_unprivileged_port_start", "77"}, {"/proc/sys/kernel/shm_rmid_forced", "1"}},
	})
	ns := exec.Command("nsenter", "--net", "--uts", "--ipc", "-t", fmt.Sprint(i.PID), "sh", "-c",
		"read go; hostname; cat /sys/class/net/lo/flags /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shm_rmid_forced; ip -o link show lo")
	in, err := ns.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	ns.Stdout, ns.Stderr = &out, &out
	if err := ns.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(50 * time.Millisecond) // nsenter has entered: the namespaces outlive the init
	if err := i.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
	in.Write([]byte("\n"))
	if err := ns.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, &out)
	}
	for _, want := range []string{"boxed\n", "\n77\n1\n", "LOOPBACK,UP"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("inside there is no %q in:\n%s", want, &out)
		}
	}
	if err := unix.Kill(i.PID, 0); err == nil {
		t.Error("the holder is still there")
	}
}

func TestFailures(t *testing.T) {
	for _, test := range []struct {
		name string
		opts Options
		want string
	}{
		{"hostname too long", Options{Clone: netUTSIPC, Hostname: strings.Repeat("x", 65)}, "setting the host name"},
		{"no such sysctl", Options{Clone: netUTSIPC, Sysctls: []Setting{{"/proc/sys/net/ipv4/ip_forward", "1"}, {"/proc/sys/net/nothing", "1"}}}, "/proc/sys/net/nothing: no such file"},
		{"bad value", Options{Clone: netUTSIPC, Sysctls: []Setting{{"/proc/sys/net/ipv4/ip_forward", "x"}}}, "invalid argument"},
	} {
		t.Run(test.name, func(t *testing.T) {
			i := start(t, test.opts)
			err := i.Go(t.Context())
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v, want %q in it", err, test.want)
			}
			var refused *SysctlError
			if len(test.opts.Sysctls) > 0 && !errors.As(err, &refused) {
				t.Errorf("%v is no SysctlError", err)
			}
		})
	}
}

func TestEndsWithTheAgent(t *testing.T) {
	i := start(t, Options{Clone: netUTSIPC, Hostname: "boxed"})
	i.control.Close() // as the kernel does for a killed agent
	done := make(chan error, 1)
	go func() { done <- i.Wait() }()
	select {
	case <-done:
	case <-time.After(5 * time.Second):
		t.Fatal("it outlives the agent")
	}
	i.control = nil
	i.status.Close()
	unix.Close(i.FD)
}

// TestReaps shares the PID namespace with a program that leaves orphans.
func TestReaps(t *testing.T) {
	i := start(t, Options{Clone: unix.CLONE_NEWPID, Stay: true})
	if err := i.Go(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Kill(i.PID, syscall.SIGKILL); i.Wait() })
	// Twenty orphans whose parents have gone; then PID 1 is told to end, which from inside must fail.
	cmd := exec.Command("nsenter", "--pid", "-t", fmt.Sprint(i.PID), "sh", "-c",
		"for i in 1 2 3 4 5 6 7 8 9 10; do (sleep 0.05 & sleep 0.05 &) ; done; kill -TERM 1; sleep 0.3; echo alive")
	if out, err := cmd.CombinedOutput(); err != nil || string(out) != "alive\n" {
		t.Fatalf("%v\n%s", err, out)
	}
	children, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", i.PID, i.PID))
	if err != nil || len(children) != 0 {
		t.Errorf("children left: %q, %v", children, err)
	}
	fds, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", i.PID))
	if err != nil || len(fds) != 0 {
		t.Errorf("it keeps descriptors open: %v, %v", fds, err)
	}
	if err := unix.Kill(i.PID, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- i.Wait() }()
	select {
	case <-done:
	case <-ctx.Done():
		t.Fatal("SIGTERM from outside does not end it")
	}
}

func BenchmarkStart(b *testing.B) {
	for b.Loop() {
		i, err := Start(Options{Clone: netUTSIPC, Hostname: "boxed", Loopback: true})
		if err != nil {
			b.Fatal(err)
		}
		if err := i.Go(b.Context()); err != nil {
			b.Fatal(err)
		}
	}
}

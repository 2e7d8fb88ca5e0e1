package sandbox

import (
	"fmt"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/berthd/berth/cri/mountns"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const testRoot = 9 << 16

// withUsers gives c a user namespace of its own.
func withUsers(c *runtimeapi.PodSandboxConfig) *runtimeapi.PodSandboxConfig {
	ids := []*runtimeapi.IDMapping{{HostId: testRoot, Length: 1 << 16}}
	c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: podNS, Uids: ids, Gids: ids}
	return c
}

// TestUserNamespaceOwnsTheOthers: who may do what in a network namespace is a
// question of the user namespace that owns it.
func TestUserNamespaceOwnsTheOthers(t *testing.T) {
	h := newHost(t)
	s := h.open()
	c := withUsers(h.config("users", podNS, podNS, podNS))
	c.Linux.Sysctls = map[string]string{"net.ipv4.ip_unprivileged_port_start": "1", "kernel.shm_rmid_forced": "1"}
	id := run(t, s, c)
	check := func(s *Store) {
		t.Helper()
		ns, err := s.OpenNamespaces(id)
		if err != nil {
			t.Fatal(err)
		}
		defer ns.Close()
		users := ns.File(mountns.User)
		if users == nil {
			t.Fatal("no user namespace is pinned")
		}
		for _, k := range []mountns.Kind{mountns.Net, mountns.IPC, mountns.UTS, mountns.PID} {
			owner, err := unix.IoctlRetInt(int(ns.File(k).Fd()), unix.NS_GET_USERNS)
			if err != nil {
				t.Fatalf("%s: %v", k, err)
			}
			f := os.NewFile(uintptr(owner), "owner")
			if got, want := inode(t, f), inode(t, users); got != want {
				t.Errorf("the %s namespace belongs to the user namespace %d, want %d", k, got, want)
			}
			f.Close()
		}
		f, err := s.Facts(id)
		if err != nil || f.Users.UIDs != (IDRange{testRoot, 1 << 16}) || !f.Ready {
			t.Errorf("facts %+v, %v", f, err)
		}
	}
	check(s)
	pid := status(t, s, id).InitPID
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		t.Fatal(err)
	}
	if want := fmt.Sprintf("Uid:\t%d\t%d\t%d\t%d\n", testRoot, testRoot, testRoot, testRoot); !strings.Contains(string(b), want) {
		t.Errorf("the init runs as:\n%s", b)
	}
	f, _ := s.Facts(id)
	for _, path := range []string{f.Hosts, f.ResolvConf, f.Files.Hostname, f.Shm} {
		st, err := os.Stat(path)
		if err != nil || st.Sys().(*syscall.Stat_t).Uid != testRoot {
			t.Errorf("%s: %v, %v; want it owned by the pod's root", path, st, err)
		}
	}
	s.Close()
	s = h.open()
	check(s)
	remove(t, s, id)
	h.clean()
}

func inode(t *testing.T, f *os.File) uint64 {
	t.Helper()
	st, err := f.Stat()
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t).Ino
}

func TestUserNamespaceOf(t *testing.T) {
	m := func(host, container, length uint32) []*runtimeapi.IDMapping {
		return []*runtimeapi.IDMapping{{HostId: host, ContainerId: container, Length: length}}
	}
	for name, tc := range map[string]struct {
		u  *runtimeapi.UserNamespace
		ok bool
	}{
		"none":              {nil, true},
		"the node's":        {&runtimeapi.UserNamespace{Mode: nodeNS}, true},
		"own":               {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(65536, 0, 65536), Gids: m(131072, 0, 1)}, true},
		"the last":          {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(1<<32-2, 0, 1), Gids: m(1, 0, 1)}, true},
		"a container's":     {&runtimeapi.UserNamespace{Mode: contNS}, false},
		"without mapping":   {&runtimeapi.UserNamespace{Mode: podNS}, false},
		"host root":         {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(0, 0, 65536), Gids: m(1, 0, 1)}, false},
		"not from 0":        {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(1, 1, 65536), Gids: m(1, 0, 1)}, false},
		"empty":             {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(1, 0, 0), Gids: m(1, 0, 1)}, false},
		"beyond the end":    {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(1<<32-1, 0, 1), Gids: m(1, 0, 1)}, false},
		"groups of no root": {&runtimeapi.UserNamespace{Mode: podNS, Uids: m(1, 0, 1), Gids: m(0, 0, 1)}, false},
	} {
		u, err := UserNamespaceOf(tc.u)
		if tc.ok != (err == nil) || u.Own() != (tc.ok && tc.u.GetMode() == podNS && tc.u != nil) {
			t.Errorf("%s: %+v, %v", name, u, err)
		}
	}
}

func TestProbeUserNamespace(t *testing.T) {
	newHost(t)
	called := false
	if err := ProbeUserNamespace(func(f *os.File) error { called = f != nil; return nil }); err != nil || !called {
		t.Errorf("%v, called %v", err, called)
	}
}

package label

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fake is a SELinux that deals levels in order.
type fake struct {
	off    bool
	next   int
	taken  []string
	marked []string
	refuse error
}

func (f *fake) Enabled() bool { return !f.off }

func (f *fake) New(opts []string) (string, string, error) {
	if f.refuse != nil {
		return "", "", f.refuse
	}
	c := map[string]string{"user": "system_u", "role": "system_r", "type": "container_t", "level": ""}
	for _, o := range opts {
		k, v, _ := strings.Cut(o, ":")
		c[k] = v
	}
	if c["level"] == "" {
		f.next++
		c["level"] = fmt.Sprintf("s0:c%d,c%d", f.next, f.next+1)
	}
	p := c["user"] + ":" + c["role"] + ":" + c["type"] + ":" + c["level"]
	f.Reserve(p)
	return p, "system_u:object_r:container_file_t:" + c["level"], nil
}

func (f *fake) Reserve(p string) error { f.taken = append(f.taken, p); return nil }

func (f *fake) Release(p string) {
	f.taken = slices.DeleteFunc(f.taken, func(t string) bool { return t == p })
}

func (f *fake) Relabel(path, mount string, shared bool) error {
	f.marked = append(f.marked, fmt.Sprint(path, " ", mount, " ", shared))
	return f.refuse
}

func context(o *runtimeapi.SELinuxOption) *runtimeapi.LinuxContainerSecurityContext {
	return &runtimeapi.LinuxContainerSecurityContext{SelinuxOptions: o}
}

func TestContainersShareTheirPodsLevel(t *testing.T) {
	k := &fake{}
	l := New(k)
	pod, err := l.ForPod(nil)
	if err != nil {
		t.Fatal(err)
	}
	other, _ := l.ForPod(nil)
	if pod.Process != "system_u:system_r:container_t:s0:c1,c2" || other.Process == pod.Process {
		t.Errorf("pods %v, %v", pod, other)
	}
	for _, tc := range []struct {
		sec  *runtimeapi.LinuxContainerSecurityContext
		want Labels
	}{
		{context(nil), pod},
		{context(&runtimeapi.SELinuxOption{Type: "spc_t", Role: "r"}), Labels{"system_u:r:spc_t:s0:c1,c2", "system_u:object_r:container_file_t:s0:c1,c2"}},
		{context(&runtimeapi.SELinuxOption{Level: "s0:c9"}), Labels{"system_u:system_r:container_t:s0:c9", "system_u:object_r:container_file_t:s0:c9"}},
		{&runtimeapi.LinuxContainerSecurityContext{Privileged: true, SelinuxOptions: &runtimeapi.SELinuxOption{Level: "s0"}}, Labels{}},
	} {
		if got, err := l.ForContainer(pod, tc.sec); err != nil || got != tc.want {
			t.Errorf("%v: %v, %v; want %v", tc.sec, got, err, tc.want)
		}
	}
	if _, err := l.ForContainer(Labels{Process: "torn"}, context(nil)); err == nil {
		t.Error("a label that is none was taken")
	}
	l.Release(pod)
	if slices.Contains(k.taken, pod.Process) {
		t.Errorf("the level is still taken: %v", k.taken)
	}
	if err := l.Reserve(pod); err != nil {
		t.Error(err)
	}
	if !slices.Contains(k.taken, pod.Process) {
		t.Error("the level is not taken again")
	}
}

func TestRelabel(t *testing.T) {
	k := &fake{}
	l := New(k)
	if err := l.Relabel("/v", "m"); err != nil || !slices.Equal(k.marked, []string{"/v m false"}) {
		t.Errorf("a volume is to be its pod's alone: %v, %v", err, k.marked)
	}
	if err := l.Share("/r", "m"); err != nil || !slices.Equal(k.marked[1:], []string{"/r m true"}) {
		t.Errorf("%v, %v", err, k.marked)
	}
	k.refuse = unix.ENOTSUP
	if err := l.Relabel("/nfs", "m"); err != nil {
		t.Errorf("a file system without labels: %v", err)
	}
	k.refuse = unix.EACCES
	if err := l.Relabel("/v", "m"); !errors.Is(err, unix.EACCES) {
		t.Errorf("%v", err)
	}
	if _, err := l.ForPod(nil); !errors.Is(err, unix.EACCES) {
		t.Errorf("a pod without the label that it needs: %v", err)
	}
}

func TestOff(t *testing.T) {
	for _, l := range []*Labeler{nil, New(&fake{off: true, refuse: errors.New("called")})} {
		pod, err := l.ForPod(&runtimeapi.SELinuxOption{Level: "s0:c1"})
		c, cerr := l.ForContainer(pod, context(nil))
		rerr := l.Relabel("/v", "m")
		if err := l.Reserve(pod); err != nil {
			t.Error(err)
		}
		l.Release(pod)
		if pod != (Labels{}) || c != (Labels{}) || err != nil || cerr != nil || rerr != nil {
			t.Errorf("%v %v %v %v %v", pod, c, err, cerr, rerr)
		}
	}
}

package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/mountns"
	"github.com/berthd/berth/cri/ociruntime"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/cri/record"
	"github.com/moby/sys/mountinfo"
	imagespec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// victim is what an agent that will be killed is given, by its environment.
type victim struct{ dir, parent, rootfs, holder string }

func (v victim) env() []string {
	return []string{"CONTAINER_TEST_AGENT=" + v.dir, "CONTAINER_TEST_PARENT=" + v.parent, "CONTAINER_TEST_ROOTFS=" + v.rootfs, "CONTAINER_TEST_HOLDER=" + v.holder}
}

func victimFromEnv() victim {
	return victim{os.Getenv("CONTAINER_TEST_AGENT"), os.Getenv("CONTAINER_TEST_PARENT"), os.Getenv("CONTAINER_TEST_ROOTFS"), os.Getenv("CONTAINER_TEST_HOLDER")}
}

// open starts an agent's worth of runtime.
func (v victim) open(ctx context.Context) (*Store, func(), error) {
	log := slog.New(slog.DiscardHandler)
	ns, err := mountns.Open(filepath.Join(v.dir, "ns"), log)
	if err != nil {
		return nil, nil, err
	}
	bin, err := ociruntime.Find(ctx, "crun")
	if err != nil {
		return nil, nil, err
	}
	rt := ociruntime.New(bin, filepath.Join(v.dir, "oci"), false, ns)
	mon, err := monitor.Open(monitor.Config{Runtime: rt, Starter: ns, ExitDir: filepath.Join(v.dir, "exits"), Cgroup: v.parent + "-monitors", Log: log})
	if err != nil {
		return nil, nil, err
	}
	boot, err := record.BootID()
	if err != nil {
		return nil, nil, err
	}
	s, err := Open(Config{Dir: filepath.Join(v.dir, "containers"), BootID: boot, Rootfs: dirRootfs{v.rootfs}, Runtime: rt, Monitor: mon, Host: DetectHost(false), Log: log})
	if err != nil {
		return nil, nil, err
	}
	if err := s.Restore(ctx); err != nil {
		return nil, nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	work.Go(func() { mon.Run(ctx) })
	work.Go(s.Run)
	return s, func() { cancel(); work.Wait(); ns.Close() }, nil
}

// live walks through a container's life, in a user namespace and with volumes.
func (v victim) live(ctx context.Context) error {
	s, closeAll, err := v.open(ctx)
	if err != nil {
		return err
	}
	defer closeAll()
	id, err := s.Create(ctx, v.request())
	if err != nil {
		return err
	}
	if err := s.Start(ctx, id); err != nil {
		return err
	}
	if out, _, code, err := s.ExecSync(ctx, id, []string{"cat", "/vol/precious", "/img/etc/group"}, 10*time.Second); err != nil || code != 0 {
		return fmt.Errorf("exec: %d, %w\n%s", code, err, out)
	}
	if err := s.Stop(ctx, id, 0); err != nil {
		return err
	}
	return s.Remove(ctx, id)
}

func (v victim) request() CreateRequest {
	ids := []*runtimeapi.IDMapping{{HostId: 5 << 16, Length: 1 << 16}}
	ns := func(kind string) string { return "/proc/" + v.holder + "/ns/" + kind }
	vol := filepath.Join(v.dir, "vol")
	return CreateRequest{
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "c"}, Image: &runtimeapi.ImageSpec{Image: "busybox:test"},
			Command: []string{"sleep", "1000"}, LogPath: "c.log",
			Mounts: []*runtimeapi.Mount{
				{ContainerPath: "/vol", HostPath: vol, UidMappings: ids, GidMappings: ids},
				{ContainerPath: "/img", Image: &runtimeapi.ImageSpec{Image: "volume:test"}, Readonly: true},
				{ContainerPath: "/passwd", Image: &runtimeapi.ImageSpec{Image: "volume:test"}, ImageSubPath: "etc/passwd", Readonly: true},
			},
			Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			}},
		},
		Pod: &runtimeapi.PodSandboxConfig{
			Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "default", Uid: "u"}, LogDirectory: filepath.Join(v.dir, "logs"),
		},
		Sandbox: ocispec.Sandbox{
			ID: "sandbox1", CgroupParent: v.parent, NetworkNS: ns("net"), IPCNS: ns("ipc"), UTSNS: ns("uts"),
			Users: ocispec.Users{NS: ns("user"), UIDs: ocispec.IDRange{Host: 5 << 16, Length: 1 << 16}, GIDs: ocispec.IDRange{Host: 5 << 16, Length: 1 << 16}},
		},
		Image:       Image{ID: "sha256:test"},
		ImageConfig: imagespec.ImageConfig{Env: []string{"PATH=/bin"}},
	}
}

// hold starts a process that has the namespaces of a pod with users of its own.
func hold(t *testing.T) string {
	t.Helper()
	cmd := exec.Command("sleep", "10000")
	ids := []syscall.SysProcIDMap{{HostID: 5 << 16, Size: 1 << 16}}
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  unix.CLONE_NEWUSER | unix.CLONE_NEWNET | unix.CLONE_NEWIPC | unix.CLONE_NEWUTS,
		UidMappings: ids, GidMappings: ids,
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	return fmt.Sprint(cmd.Process.Pid)
}

func newVictim(t *testing.T, holder string) victim {
	t.Helper()
	v := victim{dir: t.TempDir(), parent: fmt.Sprintf("/berth-test-kill-%d-%s", os.Getpid(), record.NewID()[:8]), rootfs: busyboxRootfs(t), holder: holder}
	must(t, os.Chmod(filepath.Dir(v.dir), 0o711))
	must(t, os.Chmod(v.rootfs, 0o755))
	must(t, os.Mkdir(filepath.Join(v.rootfs, "vol"), 0o755), os.ErrExist)
	must(t, os.Mkdir(filepath.Join(v.dir, "vol"), 0o755))
	must(t, os.WriteFile(filepath.Join(v.dir, "vol", "precious"), []byte("data"), 0o600))
	t.Cleanup(func() {
		if err := mountns.Purge(filepath.Join(v.dir, "ns")); err != nil {
			t.Error(err)
		}
		for _, suffix := range []string{"", "-monitors"} {
			for _, dir := range cgroupDirs(ocispec.Host{CgroupV2: DetectHost(false).CgroupV2}, v.parent+suffix) {
				if err := waitRmdir(dir); err != nil {
					t.Errorf("cgroup %s: %v", dir, err)
				}
			}
		}
	})
	return v
}

// runVictim runs an agent and kills it where it stops; env says where.
func runVictim(t *testing.T, binary string, v victim, env ...string) {
	t.Helper()
	signal := filepath.Join(t.TempDir(), "signal")
	cmd := exec.Command(binary)
	cmd.Env = append(append(os.Environ(), v.env()...), append(env, "BERTH_FAILPOINT_SIGNAL="+signal)...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for end := time.Now().Add(60 * time.Second); ; time.Sleep(time.Millisecond) {
		select {
		case err := <-ended:
			if err != nil {
				t.Fatalf("the agent failed: %v\n%s", err, &out)
			}
			return
		default:
		}
		if _, err := os.Stat(signal); err == nil {
			break
		}
		if time.Now().After(end) {
			t.Error("the agent hangs")
			break
		}
	}
	cmd.Process.Kill()
	<-ended
}

// TestKilledAnywhere kills an agent at each failpoint of mounts and streams on the
// way through the life of a container with volumes in a user namespace, starts
// another one, and sees that the container can be removed without a trace, and
// that what lies in its volume is left alone.
func TestKilledAnywhere(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: containers are made")
	}
	if testing.Short() {
		t.Skip("takes a minute")
	}
	binary := filepath.Join(t.TempDir(), "agent")
	if b, err := exec.Command("go", "test", "-c", "-tags", "failpoints", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("building with failpoints: %v\n%s", err, b)
	}
	holder := hold(t)
	trace := filepath.Join(t.TempDir(), "trace")
	runVictim(t, binary, newVictim(t, holder), "BERTH_FAILPOINT_TRACE="+trace)
	b, err := os.ReadFile(trace)
	must(t, err)
	var places []string
	for _, p := range strings.Fields(string(b)) {
		for _, about := range []string{"mount", "tree-", "open-to-root", "image-volume", "give-pipe", "cri/record/remove"} {
			if strings.Contains(p, about) && !strings.HasPrefix(p, "cri/mountns/unmount-pin") {
				places = append(places, p)
				break
			}
		}
	}
	if len(places) < 20 {
		t.Fatalf("only %d places were passed: %v", len(places), places)
	}
	t.Logf("%d places", len(places))
	for _, place := range places {
		t.Run(place, func(t *testing.T) {
			v := newVictim(t, holder)
			runVictim(t, binary, v, "BERTH_FAILPOINT_STOP="+place)
			v.check(t)
		})
	}
}

// check starts another agent on what a killed one left.
func (v victim) check(t *testing.T) {
	t.Helper()
	s, closeAll, err := v.open(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range s.List(Filter{}) {
		must(t, s.Remove(t.Context(), c.Id))
	}
	if _, err := s.Create(t.Context(), v.request()); err != nil {
		t.Errorf("a new container: %v", err)
	}
	for _, c := range s.List(Filter{}) {
		must(t, s.Remove(t.Context(), c.Id))
	}
	closeAll()
	for _, d := range []string{"containers", "exits"} {
		if left, err := os.ReadDir(filepath.Join(v.dir, d)); err != nil || len(left) != 0 {
			t.Errorf("left in %s: %v, %v", d, left, err)
		}
	}
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(filepath.Join(v.dir, "containers")))
	if err != nil || len(mounts) != 0 {
		t.Errorf("mounts left: %v, %v", mounts, err)
	}
	for path, want := range map[string]string{filepath.Join(v.dir, "vol", "precious"): "data", filepath.Join(v.rootfs, "etc", "group"): "root:x:0:"} {
		if b, err := os.ReadFile(path); err != nil || !strings.HasPrefix(string(b), want) {
			t.Errorf("%s is %q (%v): a volume lost what was in it", path, b, err)
		}
	}
}

// must fails the test unless err is nil or one of allowed.
func must(t testing.TB, err error, allowed ...error) {
	t.Helper()
	for _, a := range allowed {
		if errors.Is(err, a) {
			return
		}
	}
	if err != nil {
		t.Fatal(err)
	}
}

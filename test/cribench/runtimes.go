package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/test/image"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

const (
	imageName = "docker.io/library/berth-bench:1"
	pauseName = "registry.k8s.io/pause:3.10.2"
	// busyboxName is the image that critest runs top of.
	busyboxName = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
)

// buildImages compiles the workload and writes one archive with the workload's
// image and the peer's pause image.
func buildImages(work string) (string, error) {
	stamp := filepath.Join(work, "stamp")
	if msg, err := exec.Command("gcc", "-static", "-Os", "-s", "-o", stamp, "test/bench/stamp/main.c").CombinedOutput(); err != nil {
		return "", fmt.Errorf("compile the workload: %w: %s", err, msg)
	}
	body, err := os.ReadFile(stamp)
	if err != nil {
		return "", err
	}
	archive := filepath.Join(work, "bench.tar")
	f, err := os.Create(archive)
	if err != nil {
		return "", err
	}
	defer f.Close()
	layer := image.Layer{"/stamp": {Body: body, Mode: 0o755}, "/pause": {Body: body, Mode: 0o755}, "/bin/top": {Body: body, Mode: 0o755}, "/stamps": {Mode: os.ModeDir | 0o755}}
	return archive, image.WriteOCI(f, image.Spec{Names: []string{imageName, pauseName, busyboxName}, Layers: []image.Layer{layer}, Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}}})
}

// berthRuntime is `berth runtime`.
type berthRuntime struct{ binary, oci string }

func (b berthRuntime) directories(s *side) []string {
	return []string{"--root-dir", s.home + "/root", "--state-dir", s.home + "/run", "--cgroup-root", s.cgroup, "--cni-conf-dir", s.home + "/cni", "--cni-bin-dir", *peer}
}

func (b berthRuntime) command(s *side) ([]string, error) {
	return append([]string{b.binary, "runtime", "--listen", "unix://" + s.socket(), "--oci-runtime", b.oci}, b.directories(s)...), nil
}

func (b berthRuntime) programs() []string { return []string{filepath.Base(b.binary), "conmon", "init"} }

func (berthRuntime) load(ctx context.Context, s *side, archive string) error {
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	stream, err := api.NewBerthClient(s.conn).ImportImages(ctx)
	if err != nil {
		return err
	}
	for buffer := make([]byte, 1<<20); ; {
		n, err := f.Read(buffer)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if err := stream.Send(&api.ImportImagesRequest{Chunk: buffer[:n]}); err != nil {
			break // the answer says why
		}
	}
	if err := stream.CloseSend(); err != nil {
		return err
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return nil
		} else if err != nil {
			return fmt.Errorf("import the images: %w", err)
		}
	}
}

func (b berthRuntime) clean(s *side) error {
	args := append([]string{"purge", "--yes", "--log-dir", s.home + "/log"}, b.directories(s)...)
	if msg, err := exec.Command(b.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("berth purge: %w: %s", err, msg)
	}
	return nil
}

// containerd is the peer, with a shim for each pod and runc.
type containerd struct{ bin string }

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/run/state"
[grpc]
address = "%[1]s/run/cri.sock"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + pauseName + `"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%[2]s"]
conf_dir = "%[1]s/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[2]s/runc"
SystemdCgroup = false
`

func (c containerd) command(s *side) ([]string, error) {
	path := s.home + "/containerd.toml"
	if err := os.WriteFile(path, fmt.Appendf(nil, containerdConfig, s.home, c.bin), 0o644); err != nil {
		return nil, err
	}
	return []string{c.bin + "/containerd", "-c", path, "--log-level", "warn"}, nil
}

func (containerd) programs() []string {
	return []string{"containerd", "containerd-shim-runc-v2", "pause"}
}

func (c containerd) load(_ context.Context, s *side, archive string) error {
	if msg, err := exec.Command(c.bin+"/ctr", "-a", s.socket(), "-n", "k8s.io", "image", "import", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("import the images: %w: %s", err, msg)
	}
	return nil
}

// clean ends shims that were left and unmounts what lies below the side's home.
func (containerd) clean(s *side) error {
	for pid, argv := range ownProcesses(s.home) {
		if strings.HasPrefix(filepath.Base(argv[0]), "containerd") {
			_ = syscall.Kill(pid, syscall.SIGKILL)
		}
	}
	body, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		return err
	}
	lines := strings.Split(string(body), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], s.home+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	return nil
}

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/test/cluster"
)

// criRuntime is a CRI runtime below the kubelet.
type criRuntime interface {
	// program is how it is started; it is to listen on socket.
	program(home, socket string) (*cluster.Program, error)
	// load brings the images of an archive into the running runtime.
	load(ctx context.Context, socket, archive string) error
	// leaks lists what it left though it has no pods any more.
	leaks(ctx context.Context, socket string) ([]string, error)
	// clean removes what is left on the host when it has ended.
	clean(home string) error
}

// node's runtime lies below home; its socket, and how long that may be, too.
func socketOf(home string) string { return home + "/r/cri.sock" }

// onBerth is `berth runtime` with a handler for each of crun and runc.
type onBerth struct{ binary, bin string }

func (b onBerth) flags(home string) []string {
	return []string{"--root-dir", home + "/root", "--state-dir", home + "/r", "--cgroup-root", "/" + filepath.Base(home), "--cni-conf-dir", home + "/cni", "--cni-bin-dir", b.bin}
}

func (b onBerth) program(home, socket string) (*cluster.Program, error) {
	config := fmt.Sprintf("apiVersion: berth.dev/v1alpha1\nkind: Configuration\nruntime:\n  certsDir: %s/certs.d\n  handlers: {runc: %s/runc}\n", home, b.bin)
	path := home + "/berth.yaml"
	if err := os.WriteFile(path, []byte(config), 0o644); err != nil {
		return nil, err
	}
	args := append([]string{b.binary, "runtime", "--config", path, "--listen", "unix://" + socket}, b.flags(home)...)
	return &cluster.Program{Name: "berth runtime", Args: args, Log: home + "/runtime.log"}, nil
}

func (onBerth) load(ctx context.Context, socket, archive string) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	f, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer f.Close()
	stream, err := api.NewBerthClient(conn).ImportImages(ctx)
	if err != nil {
		return err
	}
	for chunk := make([]byte, 1<<20); ; {
		n, err := f.Read(chunk)
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		if stream.Send(&api.ImportImagesRequest{Chunk: chunk[:n]}) != nil {
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
			return err
		}
	}
}

func (onBerth) leaks(ctx context.Context, socket string) ([]string, error) {
	conn, err := dial(socket)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	audit, err := api.NewBerthClient(conn).Audit(ctx, &api.AuditRequest{})
	if err != nil {
		return nil, err
	}
	var all []string
	for _, l := range audit.GetLeaks() {
		all = append(all, fmt.Sprintf("%s %s: %s", l.GetKind(), l.GetId(), l.GetWhy()))
	}
	return all, nil
}

func (b onBerth) clean(home string) error {
	args := append([]string{"purge", "--yes", "--log-dir", home + "/logs"}, b.flags(home)...)
	if msg, err := exec.Command(b.binary, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("berth purge: %w: %s", err, msg)
	}
	return nil
}

// onContainerd is what Berth is compared with where it is in doubt.
type onContainerd struct{ bin string }

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/r/state"
[grpc]
address = "%[2]s"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[1]s/certs.d"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + pauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%[3]s"]
conf_dir = "%[1]s/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[3]s/runc"
`

// peerNetwork is what Berth does without a configuration, for the peer.
const peerNetwork = `{"cniVersion":"1.0.0","name":"kubeletpeer","plugins":[
 {"type":"bridge","bridge":"kpeer0","isGateway":true,"ipMasq":false,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.219.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%s/addresses"}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`

func (c onContainerd) program(home, socket string) (*cluster.Program, error) {
	for path, body := range map[string]string{
		home + "/cni/10-peer.conflist": fmt.Sprintf(peerNetwork, home),
		home + "/containerd.toml":      fmt.Sprintf(containerdConfig, home, socket, c.bin),
	} {
		if err := os.WriteFile(path, []byte(body), 0o644); err != nil {
			return nil, err
		}
	}
	return &cluster.Program{Name: "containerd", Args: []string{c.bin + "/containerd", "-c", home + "/containerd.toml"},
		Env: []string{"PATH=" + c.bin + ":" + os.Getenv("PATH")}, Log: home + "/runtime.log"}, nil
}

func (c onContainerd) load(ctx context.Context, socket, archive string) error {
	if msg, err := exec.CommandContext(ctx, c.bin+"/ctr", "-a", socket, "-n", "k8s.io", "image", "import", archive).CombinedOutput(); err != nil {
		return fmt.Errorf("import: %w: %s", err, msg)
	}
	return nil
}

func (onContainerd) leaks(context.Context, string) ([]string, error) { return nil, nil }

// clean ends shims that were left; mounts below home are the node's to unmount.
func (onContainerd) clean(home string) error {
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, d := range dirs {
		line, _ := os.ReadFile(d + "/cmdline")
		if strings.Contains(string(line), "containerd-shim") && strings.Contains(string(line), home) {
			var pid int
			if _, err := fmt.Sscan(filepath.Base(d), &pid); err == nil {
				_ = unix.Kill(pid, unix.SIGKILL)
			}
		}
	}
	_ = exec.Command("ip", "link", "delete", "kpeer0").Run()
	return nil
}

func dial(socket string) (*grpc.ClientConn, error) {
	return grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
}

// awaitRuntime waits until a runtime answers and says that it is ready.
func awaitRuntime(ctx context.Context, socket string) error {
	conn, err := dial(socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	client := runtimeapi.NewRuntimeServiceClient(conn)
	for {
		st, err := client.Status(ctx, &runtimeapi.StatusRequest{})
		for _, c := range st.GetStatus().GetConditions() {
			if c.GetType() == runtimeapi.RuntimeReady && c.GetStatus() {
				return nil
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("the runtime is not ready: %w, %v", errors.Join(ctx.Err(), err), st)
		case <-time.After(100 * time.Millisecond):
		}
	}
}

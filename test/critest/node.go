package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// peers are the runtimes that a round may be about, in the order of the tables.
// The value says what it is.
var peers = []struct{ name, what string }{
	{"crun", "Berth on crun"},
	{"runc", "Berth on runc"},
	{"runc-peer", "Berth on the runc built from the Go proxy"},
	{"containerd", "containerd on the runc built from the Go proxy"},
}

const containerdConfig = `version = 3
root = "%[1]s/root"
state = "%[1]s/run"
[grpc]
address = "%[1]s/cri.sock"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10.2"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[1]s/certs.d"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%[2]s"]
conf_dir = "%[1]s/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[2]s/runc"
SystemdCgroup = false
`

const containerdNetwork = `{"cniVersion":"1.0.0","name":"critest","plugins":[
 {"type":"bridge","bridge":"critest0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%[1]s/hostlocal"}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`

// startNode starts the runtime with everything of its own below dir, and waits
// until it says that it is ready.
func startNode(s setting, dir string) (*program, error) {
	for _, d := range []string{"cni", "certs.d"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			return nil, err
		}
	}
	if err := writeHosts(filepath.Join(dir, "certs.d")); err != nil {
		return nil, err
	}
	cmd, err := nodeCommand(s, dir)
	if err != nil {
		return nil, err
	}
	p, err := start(filepath.Join(dir, "runtime.log"), cmd)
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", s.Runtime, err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := ready(ctx, filepath.Join(dir, "cri.sock"), p); err != nil {
		p.end()
		return nil, fmt.Errorf("%s is not ready: %w", s.Runtime, err)
	}
	return p, nil
}

func nodeCommand(s setting, dir string) (*exec.Cmd, error) {
	if s.Runtime == "containerd" {
		for name, body := range map[string]string{
			"containerd.toml":         fmt.Sprintf(containerdConfig, dir, s.Peer),
			"cni/10-critest.conflist": fmt.Sprintf(containerdNetwork, dir),
		} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(body), 0o644); err != nil {
				return nil, err
			}
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
			return nil, err
		}
		cmd := exec.Command(s.Peer+"/containerd", "-c", filepath.Join(dir, "containerd.toml"))
		cmd.Env = append(os.Environ(), "PATH="+s.Peer+":"+os.Getenv("PATH"))
		return cmd, nil
	}
	oci := s.Runtime
	if oci == "runc-peer" {
		oci = s.Peer + "/runc"
	}
	return exec.Command(s.Berth, "runtime", "--listen", "unix://"+dir+"/cri.sock", "--root-dir", dir+"/root", "--state-dir", dir+"/run",
		"--cni-conf-dir", dir+"/cni", "--certs-dir", dir+"/certs.d", "--oci-runtime", oci), nil
}

// about says what the round is run with, in one line.
func about(s setting) string {
	programs := []string{s.Runtime, "conmon"}
	switch s.Runtime {
	case "runc-peer":
		programs[0] = s.Peer + "/runc"
	case peer:
		programs = []string{s.Peer + "/containerd", s.Peer + "/runc"}
	}
	var parts []string
	for _, p := range programs {
		out, err := exec.Command(p, "--version").Output()
		if err != nil {
			out = []byte(p + ": " + err.Error())
		}
		first, _, _ := strings.Cut(string(out), "\n")
		parts = append(parts, strings.TrimSpace(first))
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err == nil {
		release, _, _ := strings.Cut(unix.ByteSliceToString(u.Release[:]), "-")
		parts = append(parts, "Linux "+release)
	}
	return strings.Join(parts, ", ")
}

// runtimeAt is a client of the runtime at socket.
func runtimeAt(socket string) (runtimeapi.RuntimeServiceClient, func(), error) {
	c, err := grpc.NewClient("unix://"+socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, nil, err
	}
	return runtimeapi.NewRuntimeServiceClient(c), func() { c.Close() }, nil
}

func ready(ctx context.Context, socket string, p *program) error {
	c, end, err := runtimeAt(socket)
	if err != nil {
		return err
	}
	defer end()
	for {
		r, err := c.Status(ctx, &runtimeapi.StatusRequest{})
		if err == nil {
			err = conditions(r.GetStatus().GetConditions())
		}
		if err == nil {
			return nil
		}
		select {
		case <-p.done:
			return fmt.Errorf("it ended: %w", p.err)
		case <-ctx.Done():
			return err
		case <-time.After(100 * time.Millisecond):
		}
	}
}

func conditions(all []*runtimeapi.RuntimeCondition) error {
	for _, c := range all {
		if t := c.GetType(); !c.GetStatus() && (t == runtimeapi.RuntimeReady || t == runtimeapi.NetworkReady) {
			return fmt.Errorf("%s is false: %s: %s", c.GetType(), c.GetReason(), c.GetMessage())
		}
	}
	return nil
}

// sweep stops and removes what the round left in the runtime, and tells what it was.
func sweep(socket string) ([]string, error) {
	c, end, err := runtimeAt(socket)
	if err != nil {
		return nil, err
	}
	defer end()
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	r, err := c.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	var found []string
	for _, s := range r.GetItems() {
		found = append(found, s.GetMetadata().GetName())
		if _, err := c.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			return found, err
		}
		if _, err := c.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.GetId()}); err != nil {
			return found, err
		}
	}
	return found, nil
}

package network

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/cri/api"
	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/node"
)

// host is a runtime with its network configuration directory.
type host struct {
	*node.Agent
	t    *testing.T
	conn *grpc.ClientConn
	cri  runtimeapi.RuntimeServiceClient
	conf string
}

// built is the binary, once for all tests.
var built string

func berth(t *testing.T) string {
	if built == "" {
		built = node.Binary(t, "BERTH_BIN")
	}
	return built
}

func newHost(t *testing.T) *host {
	t.Helper()
	t.Setenv("BERTH_TEST_RUNTIME", string(node.Socket))
	h := &host{Agent: node.New(t, berth(t)), t: t, conf: filepath.Join(t.TempDir(), "net.d")}
	if err := os.Mkdir(h.conf, 0o755); err != nil {
		t.Fatal(err)
	}
	h.Flags = []string{"--cni-conf-dir=" + h.conf}
	h.StartRuntime()
	conn, err := grpc.NewClient("unix://"+h.CRISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	h.conn, h.cri = conn, runtimeapi.NewRuntimeServiceClient(conn)
	return h
}

// importBusybox gives the runtime the busybox image, over its socket.
func (h *host) importBusybox() {
	h.t.Helper()
	spec, err := image.BusyboxSpec(node.Busybox)
	var archive bytes.Buffer
	if err == nil {
		err = image.WriteOCI(&archive, spec)
	}
	if err != nil {
		h.t.Fatal(err)
	}
	stream, err := api.NewBerthClient(h.conn).ImportImages(h.t.Context())
	if err != nil {
		h.t.Fatal(err)
	}
	for archive.Len() > 0 {
		if err := stream.Send(&api.ImportImagesRequest{Chunk: archive.Next(1 << 20)}); err != nil {
			h.t.Fatal(err)
		}
	}
	if err := stream.CloseSend(); err != nil {
		h.t.Fatal(err)
	}
	for {
		if _, err := stream.Recv(); errors.Is(err, io.EOF) {
			return
		} else if err != nil {
			h.t.Fatal(err)
		}
	}
}

// leaks are what the runtime's own audit finds.
func (h *host) leaks() []*api.Leak {
	h.t.Helper()
	r, err := api.NewBerthClient(h.conn).Audit(h.t.Context(), &api.AuditRequest{})
	if err != nil {
		h.t.Fatal(err)
	}
	return r.GetLeaks()
}

// ranges gives the node ranges of pods' addresses.
func (h *host) ranges(cidrs string) error {
	_, err := h.cri.UpdateRuntimeConfig(h.t.Context(), &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: cidrs}}})
	return err
}

type pod struct {
	h      *host
	id     string
	config *runtimeapi.PodSandboxConfig
	ips    []string
}

func (h *host) run(name string, change func(*runtimeapi.PodSandboxConfig)) (*pod, error) {
	p := &pod{h: h, config: &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "test", Uid: "uid-" + name}, Hostname: name, LogDirectory: filepath.Join(h.Dir, "log", name),
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    "/" + filepath.Base(h.Dir) + "/" + name,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
		},
	}}
	if change != nil {
		change(p.config)
	}
	r, err := h.cri.RunPodSandbox(h.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: p.config})
	if err != nil {
		return nil, err
	}
	p.id = r.PodSandboxId
	p.ips = p.addresses()
	return p, nil
}

func (h *host) mustRun(name string, change func(*runtimeapi.PodSandboxConfig)) *pod {
	h.t.Helper()
	p, err := h.run(name, change)
	if err != nil {
		h.t.Fatal(err)
	}
	return p
}

// addresses are those that the runtime tells, the primary first.
func (p *pod) addresses() []string {
	p.h.t.Helper()
	r, err := p.h.cri.PodSandboxStatus(p.h.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil {
		p.h.t.Fatal(err)
	}
	ips := []string{r.GetStatus().GetNetwork().GetIp()}
	for _, ip := range r.GetStatus().GetNetwork().GetAdditionalIps() {
		ips = append(ips, ip.GetIp())
	}
	return ips
}

// serve starts a container that answers at port 80, and returns its ID.
func (p *pod) serve() string {
	p.h.t.Helper()
	ctx := p.h.t.Context()
	c, err := p.h.cri.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, SandboxConfig: p.config, Config: &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "web"}, Image: &runtimeapi.ImageSpec{Image: node.Busybox}, LogPath: "web.log",
		Command: []string{"busybox", "httpd", "-f", "-p", "80", "-h", "/bin"},
		Linux:   &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{NamespaceOptions: p.config.Linux.SecurityContext.NamespaceOptions}},
	}})
	if err == nil {
		_, err = p.h.cri.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: c.GetContainerId()})
	}
	if err != nil {
		p.h.t.Fatal(err)
	}
	return c.GetContainerId()
}

func (h *host) exec(container string, args ...string) error {
	r, err := h.cri.ExecSync(h.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: args, Timeout: 20})
	if err == nil && r.GetExitCode() != 0 {
		err = fmt.Errorf("%v: exit code %d: %s%s", args, r.GetExitCode(), r.GetStdout(), r.GetStderr())
	}
	return err
}

func (p *pod) remove() {
	p.h.t.Helper()
	ctx := context.WithoutCancel(p.h.t.Context())
	if _, err := p.h.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.h.t.Error(err)
	}
	if _, err := p.h.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
		p.h.t.Error(err)
	}
}

func dial(addr string) error {
	var err error
	for range 100 {
		var c net.Conn
		if c, err = net.DialTimeout("tcp", addr, time.Second); err == nil {
			return c.Close()
		}
		time.Sleep(20 * time.Millisecond)
	}
	return err
}

// network is the condition, and the verbose facts.
func (h *host) network() (*runtimeapi.RuntimeCondition, string) {
	h.t.Helper()
	r, err := h.cri.Status(h.t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		h.t.Fatal(err)
	}
	for _, c := range r.GetStatus().GetConditions() {
		if c.GetType() == runtimeapi.NetworkReady {
			return c, fmt.Sprint(r.GetInfo())
		}
	}
	h.t.Fatal("no condition NetworkReady")
	return nil, ""
}

// TestDualStack: a node that is assigned ranges of both families gives its pods
// addresses of both, in that order; they reach each other and are reached at host
// ports by both, before and after the runtime is killed; their bandwidth is limited.
func TestDualStack(t *testing.T) {
	h := newHost(t)
	third := os.Getpid() % 200
	v4, v6 := fmt.Sprintf("10.217.%d.0/24", third), fmt.Sprintf("fd09:cafe:%x::/64", third)
	for _, bad := range []string{"10.0.0.0/24,10.1.0.0/24", "10.0.0.0", "127.0.0.0/16"} {
		if err := h.ranges(bad); status.Code(err) != codes.InvalidArgument {
			t.Errorf("ranges %s: %v", bad, err)
		}
	}
	if err := h.ranges(v6 + "," + v4); err != nil {
		t.Fatal(err)
	}
	h.importBusybox()
	port := int32(21000 + third)
	a := h.mustRun("a", nil)
	b := h.mustRun("b", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "77M"}
		c.PortMappings = []*runtimeapi.PortMapping{{Protocol: runtimeapi.Protocol_TCP, ContainerPort: 80, HostPort: port}}
	})
	for _, p := range []*pod{a, b} {
		if len(p.ips) != 2 || !strings.HasPrefix(p.ips[0], strings.TrimSuffix(v6, ":/64")) || !strings.HasPrefix(p.ips[1], strings.TrimSuffix(v4, "0/24")) {
			t.Fatalf("addresses %v of %s and %s", p.ips, v6, v4)
		}
	}
	inA := a.serve()
	b.serve()
	reached := func() {
		t.Helper()
		for _, addr := range []string{"127.0.0.1", strings.TrimSuffix(v4, "0/24") + "1", strings.TrimSuffix(v6, "/64") + "1"} {
			if err := dial(net.JoinHostPort(addr, fmt.Sprint(port))); err != nil {
				t.Errorf("host port: %v", err)
			}
		}
		for _, ip := range b.ips {
			if err := h.exec(inA, "busybox", "ping", "-c", "1", "-W", "3", ip); err != nil {
				t.Errorf("from pod to pod: %v", err)
			}
		}
	}
	reached()
	if out, err := exec.Command("tc", "qdisc").CombinedOutput(); err != nil || !strings.Contains(string(out), "rate 77Mbit") {
		t.Errorf("the bandwidth is not limited: %v\n%s", err, out)
	}
	_, err := h.run("fast", func(c *runtimeapi.PodSandboxConfig) {
		c.Annotations = map[string]string{"kubernetes.io/egress-bandwidth": "fast"}
	})
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "kubernetes.io/egress-bandwidth") {
		t.Errorf("a bandwidth that is none: %v", err)
	}
	h.KillRuntime()
	h.StartRuntime()
	for _, p := range []*pod{a, b} {
		if ips := p.addresses(); strings.Join(ips, ",") != strings.Join(p.ips, ",") {
			t.Errorf("addresses %v after a restart, and %v before", ips, p.ips)
		}
	}
	reached()
	if err := h.ranges(v6 + "," + v4); err != nil {
		t.Error(err)
	}
	c := h.mustRun("c", nil)
	if len(c.ips) != 2 || !strings.HasPrefix(c.ips[0], strings.TrimSuffix(v6, ":/64")) {
		t.Errorf("addresses %v after a restart", c.ips)
	}
	for _, p := range []*pod{a, b, c} {
		p.remove()
	}
	if leaks := h.leaks(); len(leaks) > 0 {
		t.Errorf("leaks: %v", leaks)
	}
	if dial := exec.Command("busybox", "nc", "-w", "1", "127.0.0.1", fmt.Sprint(port)); dial.Run() == nil {
		t.Error("the host port still answers")
	}
}

// TestReadiness: the condition follows the plugins' STATUS, with their words, and
// which configuration there is; pods on the host's network run all the same, and
// ranges do not touch a network of the node's own.
func TestReadiness(t *testing.T) {
	h := newHost(t)
	if c, info := h.network(); !c.GetStatus() || !strings.Contains(info, "10-berth.conflist") || !strings.Contains(info, "host-local") {
		t.Errorf("%v, %s", c, info)
	}
	bin := t.TempDir()
	down := filepath.Join(bin, "down")
	script := `#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{"cniVersion":"1.1.0","supportedVersions":["1.1.0"]}' ;;
STATUS) [ ! -e ` + down + ` ] || { echo '{"cniVersion":"1.1.0","code":50,"msg":"the daemon of acme is away"}'; exit 1; } ;;
ADD) sleep 100 ;;
esac
`
	if err := os.WriteFile(filepath.Join(bin, "acme"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(down, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	h.StopRuntime()
	h.Flags = append(h.Flags, "--cni-bin-dir="+bin)
	h.StartRuntime()
	if err := os.WriteFile(filepath.Join(h.conf, "05-acme.conflist"), []byte(`{"cniVersion":"1.1.0","name":"acme","plugins":[{"type":"acme"}]}`), 0o644); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, 20*time.Second, func() error {
		c, _ := h.network()
		if c.GetStatus() || c.GetReason() != "NetworkPluginNotReady" || !strings.Contains(c.GetMessage(), `network "acme": plugin acme says: the daemon of acme is away`) {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	if err := h.ranges("10.99.0.0/24"); err != nil {
		t.Error(err)
	}
	p := h.mustRun("host", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_NODE
	})
	p.remove()
	if err := os.Remove(down); err != nil {
		t.Fatal(err)
	}
	node.Eventually(t, 20*time.Second, func() error {
		if c, _ := h.network(); !c.GetStatus() {
			return fmt.Errorf("%v", c)
		}
		return nil
	})
	// A client that gives up is answered in time, and its sandbox goes.
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	began := time.Now()
	_, err := h.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "hung", Namespace: "test", Uid: "hung"}}})
	if status.Code(err) != codes.DeadlineExceeded || time.Since(began) > 5*time.Second {
		t.Errorf("after %s: %v", time.Since(began), err)
	}
	node.Eventually(t, 20*time.Second, func() error {
		l, err := h.cri.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{})
		if err != nil || len(l.GetItems()) > 0 {
			return fmt.Errorf("%v, %v", l.GetItems(), err)
		}
		return nil
	})
	// A sandbox that is being made is not listed: its plugin may be ending still.
	node.Eventually(t, 20*time.Second, func() error {
		if _, info := h.network(); !strings.Contains(info, "lastError") || !strings.Contains(info, "test/hung") {
			return fmt.Errorf("the last error is not told: %s", info)
		}
		return nil
	})
}

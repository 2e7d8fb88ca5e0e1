package server

import (
	"testing"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// raw is a client without the kubelet's habits.
func (n *node) raw() (runtimeapi.RuntimeServiceClient, runtimeapi.ImageServiceClient) {
	conn, err := grpc.NewClient("unix://"+n.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.WaitForReady(true)))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

// sandbox makes one.
func (n *node) sandbox(c runtimeapi.RuntimeServiceClient, pod *runtimeapi.PodSandboxConfig, handler string) string {
	n.t.Helper()
	r, err := c.RunPodSandbox(n.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: handler})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetPodSandboxId()
}

// create makes a container, and begin starts it too.
func (n *node) create(c runtimeapi.RuntimeServiceClient, box string, cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	r, err := c.CreateContainer(n.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: box, Config: cfg, SandboxConfig: pod})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetContainerId()
}

func (n *node) begin(c runtimeapi.RuntimeServiceClient, box string, cfg *runtimeapi.ContainerConfig, pod *runtimeapi.PodSandboxConfig) string {
	n.t.Helper()
	id := n.create(c, box, cfg, pod)
	if _, err := c.StartContainer(n.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		n.t.Fatal(err)
	}
	return id
}

func (n *node) status(c runtimeapi.RuntimeServiceClient, id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	r, err := c.ContainerStatus(n.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		n.t.Fatal(err)
	}
	return r.GetStatus()
}

func (n *node) exec(c runtimeapi.RuntimeServiceClient, id, script string) string {
	n.t.Helper()
	r, err := c.ExecSync(n.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", script}, Timeout: 30})
	if err != nil || r.GetExitCode() != 0 {
		n.t.Fatalf("%s: %v, %v", script, r, err)
	}
	return string(r.GetStdout())
}

func (n *node) exited(c runtimeapi.RuntimeServiceClient, id string) *runtimeapi.ContainerStatus {
	n.t.Helper()
	eventually(n.t, "the container has exited", func() bool {
		return n.status(c, id).GetState() == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return n.status(c, id)
}

func wantCode(t testing.TB, what string, err error, want codes.Code) {
	t.Helper()
	if status.Code(err) != want {
		t.Errorf("%s: %v, want code %s", what, err, want)
	}
}

var sleep = []string{"sleep", "1000"}

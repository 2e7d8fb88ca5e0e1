package node

import (
	"fmt"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	v1 "k8s.io/api/core/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/patience"
)

// CRI connects to the runtime's socket.
func (a *Agent) CRI() (runtimeapi.RuntimeServiceClient, runtimeapi.ImageServiceClient) {
	a.T.Helper()
	conn, err := grpc.NewClient("unix://"+a.CRISocket(), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		a.T.Fatal(err)
	}
	a.T.Cleanup(func() { conn.Close() })
	return runtimeapi.NewRuntimeServiceClient(conn), runtimeapi.NewImageServiceClient(conn)
}

// Eventually retries check until it returns nil, and fails the test with its last error after within.
func Eventually(t testing.TB, within time.Duration, check func() error) {
	t.Helper()
	var err error
	for end := time.Now().Add(patience.For(within)); time.Now().Before(end); time.Sleep(30 * time.Millisecond) {
		if err = check(); err == nil {
			return
		}
	}
	t.Fatalf("not within %v: %v", patience.For(within), err)
}

// Ready says whether the pod is Running and Ready.
func Ready(p *v1.Pod) error {
	for _, c := range p.Status.Conditions {
		if c.Type == v1.PodReady && c.Status == v1.ConditionTrue && p.Status.Phase == v1.PodRunning {
			return nil
		}
	}
	return fmt.Errorf("not Running and Ready")
}

// Phase returns a check for a pod's phase.
func Phase(want v1.PodPhase) func(*v1.Pod) error {
	return func(p *v1.Pod) error {
		if p.Status.Phase != want {
			return fmt.Errorf("phase is %s, want %s", p.Status.Phase, want)
		}
		return nil
	}
}

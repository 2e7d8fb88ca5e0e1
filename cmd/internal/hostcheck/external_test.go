package hostcheck

import (
	"context"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// sick is a runtime without a network.
type sick struct {
	runtimeapi.UnimplementedRuntimeServiceServer
}

func (sick) Version(context.Context, *runtimeapi.VersionRequest) (*runtimeapi.VersionResponse, error) {
	return &runtimeapi.VersionResponse{RuntimeName: "someone", RuntimeVersion: "v3"}, nil
}

func (sick) Status(context.Context, *runtimeapi.StatusRequest) (*runtimeapi.StatusResponse, error) {
	return &runtimeapi.StatusResponse{Status: &runtimeapi.RuntimeStatus{Conditions: []*runtimeapi.RuntimeCondition{
		{Type: runtimeapi.RuntimeReady, Status: true},
		{Type: runtimeapi.NetworkReady, Reason: "NetworkPluginNotReady", Message: "cni plugin not initialized"},
	}}}, nil
}

func TestExternal(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "s")
	h := host{Options{Endpoint: "unix://" + socket}}
	if got := h.external(t.Context()); len(got) != 1 || got[0].State != Failed || !strings.Contains(got[0].Found, socket+" does not answer") {
		t.Errorf("nobody answers: %+v", got)
	}
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s := grpc.NewServer()
	runtimeapi.RegisterRuntimeServiceServer(s, sick{})
	done := make(chan error, 1)
	go func() { done <- s.Serve(l) }()
	defer func() { s.Stop(); <-done }()
	got := h.external(t.Context())
	if len(got) != 3 || got[0].State != OK || !strings.Contains(got[0].Found, "someone v3") || got[1].State != OK ||
		got[2].State != Failed || !strings.Contains(got[2].Found, "cni plugin not initialized") || got[2].Fix == "" {
		t.Errorf("it has no network: %+v", got)
	}
}

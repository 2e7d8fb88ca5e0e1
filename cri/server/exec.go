package server

import (
	"context"
	"fmt"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var errNoStreaming = fmt.Errorf("this runtime was started without a streaming server: %w", errdefs.ErrUnavailable)

// ExecSync runs a command in a container and waits for its end.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if r.GetContainerId() == "" {
		return nil, errNoContainer
	}
	timeout := time.Duration(max(0, r.GetTimeout())) * time.Second
	stdout, stderr, code, err := s.cfg.Containers.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), timeout)
	if err != nil {
		return nil, err
	}
	// Together they must fit into one message.
	const most = maxMessage - 1024
	stdout = stdout[:min(len(stdout), most)]
	stderr = stderr[:min(len(stderr), most-len(stdout))]
	return &runtimeapi.ExecSyncResponse{Stdout: stdout, Stderr: stderr, ExitCode: code}, nil
}

// Exec prepares a streaming endpoint for a command.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	f, err := s.streamable(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("no command was given for container %s: %w", f.ID, errdefs.ErrInvalidArgument)
	}
	return s.cfg.Streaming.GetExec(&runtimeapi.ExecRequest{
		ContainerId: f.ID, Cmd: r.GetCmd(), Tty: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(),
	})
}

// Attach prepares a streaming endpoint for a container's own streams.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	f, err := s.streamable(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return s.cfg.Streaming.GetAttach(&runtimeapi.AttachRequest{
		ContainerId: f.ID, Tty: r.GetTty(), Stdin: r.GetStdin(), Stdout: r.GetStdout(), Stderr: r.GetStderr(),
	})
}

// PortForward prepares a streaming endpoint to ports of a sandbox.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	if s.cfg.Streaming == nil {
		return nil, errNoStreaming
	}
	id, err := s.sandboxID(r.GetPodSandboxId())
	if err == nil {
		err = s.sandboxReady(id)
	}
	if err != nil {
		return nil, err
	}
	return s.cfg.Streaming.GetPortForward(&runtimeapi.PortForwardRequest{PodSandboxId: string(id), Port: r.GetPort()})
}

// streamable refuses early what would fail only once the client has connected.
func (s *Server) streamable(id string) (container.Facts, error) {
	if s.cfg.Streaming == nil {
		return container.Facts{}, errNoStreaming
	}
	f, err := s.containerFacts(id)
	if err == nil && !f.Running {
		err = fmt.Errorf("container %s is not running: %w", f.ID, errdefs.ErrFailedPrecondition)
	}
	return f, err
}

package server

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxMessage is CRI's limit of one message.
	maxMessage = 16 << 20
	// defaultDeadline bounds a call whose caller gave none.
	defaultDeadline = 2 * time.Minute
)

// Chain is what every call passes, by socket or in-process: it logs, turns
// panics and errors into codes, and bounds time and size.
type Chain struct{ log *slog.Logger }

// NewChain returns a chain that logs to log, calls at debug level.
func NewChain(log *slog.Logger) *Chain { return &Chain{log: log} }

// Unary is a grpc.UnaryServerInterceptor.
func (c *Chain) Unary(ctx context.Context, req any, info *grpc.UnaryServerInfo, call grpc.UnaryHandler) (resp any, err error) {
	begin := time.Now()
	defer func() {
		resp, err = c.finish(info.FullMethod, begin, resp, err, recover())
	}()
	if err := checkSize("request", req); err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); !ok {
		if d := deadlineFor(req); d > 0 {
			var cancel context.CancelFunc
			ctx, cancel = context.WithTimeout(ctx, d)
			defer cancel()
		}
	}
	resp, err = call(ctx, req)
	if err == nil {
		err = checkSize("answer", resp)
	}
	return resp, err
}

// Stream is a grpc.StreamServerInterceptor. A stream has its caller's deadline
// only; gRPC bounds its messages.
func (c *Chain) Stream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, call grpc.StreamHandler) (err error) {
	begin := time.Now()
	defer func() {
		_, err = c.finish(info.FullMethod, begin, nil, err, recover())
	}()
	return call(srv, stream)
}

// finish logs a call and gives its error a code.
func (c *Chain) finish(method string, begin time.Time, resp any, err error, panicked any) (any, error) {
	name := path.Base(method)
	if panicked != nil {
		c.log.Error("a call panicked: this is a bug, please report it with the stack", "call", name, "panic", panicked, "stack", string(debug.Stack()))
		err = status.Errorf(codes.Internal, "%s panicked: %v: this is a bug; the stack is in the log", name, panicked)
	}
	if err != nil {
		resp, err = nil, grpcError(err)
	}
	// Requests are not logged: they hold credentials and environments.
	c.log.Debug("call", "call", name, "took", time.Since(begin), "code", status.Code(err), "err", err)
	return resp, err
}

// deadlineFor is how long a call may take whose caller does not say; 0 is for ever.
func deadlineFor(req any) time.Duration {
	switch r := req.(type) {
	case *runtimeapi.PullImageRequest:
		return 0 // the store bounds it by progress
	case *runtimeapi.RunPodSandboxRequest:
		return 2 * defaultDeadline
	case *runtimeapi.StopContainerRequest:
		return defaultDeadline + seconds(r.GetTimeout())
	case *runtimeapi.ExecSyncRequest:
		if r.GetTimeout() <= 0 {
			return 0
		}
		return defaultDeadline + seconds(r.GetTimeout())
	}
	return defaultDeadline
}

// maxPatience bounds what a caller asks us to wait: more seconds than fit into a
// duration would else be none at all.
const maxPatience = 10 * 365 * 24 * time.Hour

// seconds is a number of seconds from a request; less than none is none.
func seconds(n int64) time.Duration {
	return time.Duration(min(max(0, n), int64(maxPatience/time.Second))) * time.Second
}

func checkSize(what string, m any) error {
	p, ok := m.(proto.Message)
	if !ok || p == nil {
		return nil
	}
	if n := proto.Size(p); n > maxMessage {
		return fmt.Errorf("the %s has %d bytes, %d are allowed: ask for less at a time: %w", what, n, maxMessage, errdefs.ErrResourceExhausted)
	}
	return nil
}

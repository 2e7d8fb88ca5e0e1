package probes

import (
	"context"
	"errors"
	"net"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
)

// grpcProbe asks the health service of a gRPC server, in plain text. Connecting
// and asking share the timeout. A refused connection fails at once, where the
// kubelet would wait for the timeout.
func grpcProbe(ctx context.Context, t *Target) outcome {
	timeout := t.timeout()
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	target := address("", t.PodIP, int(t.Probe.GRPC.Port))
	conn, err := dialer.DialContext(ctx, "tcp", target)
	if ctx.Err() != nil {
		return failed("timeout: failed to connect service %q within %v: %v", target, timeout, ctx.Err())
	}
	if err != nil {
		return failed("error: failed to connect service at %q: %v", target, err)
	}
	once := make(chan net.Conn, 1)
	once <- conn
	server, err := grpc.NewClient("passthrough:///"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithUserAgent(userAgent),
		grpc.WithNoProxy(),
		grpc.WithDisableServiceConfig(),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxOutput)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			select {
			case c := <-once:
				return c, nil
			default:
				return nil, errors.New("the server closed the connection")
			}
		}))
	defer func() {
		select {
		case unused := <-once:
			_ = unused.Close()
		default: // the client's, and closed with it
		}
	}()
	if err != nil {
		return erred(err)
	}
	defer server.Close()
	service := ""
	if t.Probe.GRPC.Service != nil {
		service = *t.Probe.GRPC.Service
	}
	answer, err := grpc_health_v1.NewHealthClient(server).Check(ctx, &grpc_health_v1.HealthCheckRequest{Service: service})
	switch status.Code(err) {
	case codes.OK:
	case codes.Unimplemented:
		return failed("error: this server does not implement the grpc health protocol (grpc.health.v1.Health): %s", status.Convert(err).Message())
	case codes.DeadlineExceeded:
		return failed("timeout: health rpc did not complete within %v", timeout)
	default:
		return failed("error: health rpc probe failed: %v", err)
	}
	if answer.GetStatus() != grpc_health_v1.HealthCheckResponse_SERVING {
		return failed("service unhealthy (responded with %q)", answer.GetStatus())
	}
	return outcome{}
}

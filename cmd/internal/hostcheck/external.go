package hostcheck

import (
	"context"
	"fmt"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const externalRuntime = "container runtime"

// external asks the container runtime of the configuration whether it is there
// and ready.
func (h host) external(ctx context.Context) []Check {
	const fix = "start it (for containerd: systemctl start containerd), or correct runtime.endpoint of the configuration"
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	conn, err := grpc.NewClient(h.o.Endpoint, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return []Check{failed(programs, externalRuntime, err.Error(), "write the endpoint as unix:///path")}
	}
	defer conn.Close()
	c := runtimeapi.NewRuntimeServiceClient(conn)
	v, err := c.Version(ctx, &runtimeapi.VersionRequest{})
	if err != nil {
		return []Check{failed(programs, externalRuntime, fmt.Sprintf("%s does not answer: %s", h.o.Endpoint, status.Convert(err).Message()), fix)}
	}
	all := []Check{ok(programs, externalRuntime, fmt.Sprintf("%s %s answers on %s", v.RuntimeName, v.RuntimeVersion, h.o.Endpoint))}
	s, err := c.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return append(all, failed(programs, "its state", "cannot be asked: "+status.Convert(err).Message(), fix))
	}
	for _, condition := range s.GetStatus().GetConditions() {
		group, name := programs, "its state"
		if condition.Type == runtimeapi.NetworkReady {
			group, name = network, "network of the "+externalRuntime
		} else if condition.Type != runtimeapi.RuntimeReady {
			continue
		}
		if condition.Status {
			all = append(all, ok(group, name, "ready"))
			continue
		}
		all = append(all, failed(group, name, strings.TrimSpace("not ready: "+condition.Reason+": "+condition.Message),
			"look into its log, and into its configuration (for the network of containerd: /etc/cni/net.d)"))
	}
	return all
}

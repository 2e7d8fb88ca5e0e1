package sandbox

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Network attaches sandboxes to the pod network.
type Network interface {
	// Add attaches and returns the addresses, primary first. After a failure
	// the attachment may exist in part, and Delete is called.
	Add(ctx context.Context, r Request) (Result, error)
	// Delete detaches. Idempotent: for a sandbox that was never or only half
	// attached it cleans up what there is. NetNS is empty if the namespace is
	// gone; only SandboxID is certain to be set.
	Delete(ctx context.Context, r Request) error
	// Status says why the network cannot take a sandbox now; nil if it can.
	Status(ctx context.Context) error
}

// Request says what to attach.
type Request struct {
	SandboxID string
	// Namespace, Name and UID are the pod's.
	Namespace, Name, UID string
	// NetNS is a path to the network namespace that every program on the host
	// can open while the call lasts.
	NetNS        string
	PortMappings []PortMapping
	Annotations  map[string]string
	CgroupParent string
}

// PortMapping forwards a port of the host to one of the pod.
type PortMapping struct {
	Protocol      string // "tcp", "udp" or "sctp"
	ContainerPort int32
	HostPort      int32
	HostIP        string // empty: every address
}

// Result is what an attachment gave.
type Result struct {
	// IPs are the pod's addresses, primary first.
	IPs []string
}

// checkPorts refuses what would only fail, or be read as something else, in a
// CNI plugin: the API server takes any text as a host address.
func checkPorts(ports []*runtimeapi.PortMapping) error {
	for _, p := range ports {
		if p.GetHostPort() == 0 {
			continue
		}
		if ip := p.GetHostIp(); ip != "" {
			if _, err := netip.ParseAddr(ip); err != nil {
				return fmt.Errorf("hostIP %q of host port %d is not an IP address; correct it or leave it out: %w", ip, p.GetHostPort(), errdefs.ErrInvalidArgument)
			}
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 || p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
			return fmt.Errorf("host port %d to container port %d: ports are numbers from 1 to 65535: %w", p.GetHostPort(), p.GetContainerPort(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

package sandbox

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"k8s.io/apimachinery/pkg/api/resource"
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
	// Status says why the network cannot take a sandbox now; nil if it can. It
	// answers within seconds, whatever the network's parts do.
	Status(ctx context.Context) error
}

// PodRanges is what a Network is too that can be given the ranges of addresses
// assigned to the node.
type PodRanges interface {
	// SetPodRanges sets the ranges, CIDRs, the primary family's first. Idempotent. It
	// fails with errdefs.ErrInvalidArgument for ranges that cannot be.
	SetPodRanges(ctx context.Context, ranges []string) error
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
	Bandwidth    Bandwidth
	DNS          DNS
	Annotations  map[string]string
	CgroupParent string
}

// Bandwidth limits what a pod receives (ingress) and sends (egress), in bits a
// second; zero: no limit.
type Bandwidth struct{ Ingress, Egress uint64 }

// DNS is the pod's resolver configuration; all empty: the host's.
type DNS struct{ Servers, Searches, Options []string }

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

// NetworkHolders returns the IDs of all sandboxes that may be attached, also of
// those that are being made.
func (s *Store) NetworkHolders() []string {
	var ids []string
	for _, b := range s.all() {
		ids = append(ids, string(b.id))
	}
	return ids
}

// SetPodRanges gives the network the ranges assigned to the node; errdefs.ErrNotImplemented
// if it takes none.
func (s *Store) SetPodRanges(ctx context.Context, ranges []string) error {
	p, ok := s.cfg.Network.(PodRanges)
	if !ok {
		return fmt.Errorf("the network takes no pod ranges: %w", errdefs.ErrNotImplemented)
	}
	return p.SetPodRanges(ctx, ranges)
}

// checkNetwork refuses what no network can do, before anything exists.
func checkNetwork(c *runtimeapi.PodSandboxConfig) error {
	if err := checkPorts(c.GetPortMappings()); err != nil {
		return err
	}
	_, err := bandwidth(c.GetAnnotations())
	return err
}

// Annotations that limit a pod's bandwidth, quantities of bits a second
// (kubernetes.io/docs/concepts/extend-kubernetes/compute-storage-net/network-plugins).
const (
	ingressAnnotation = "kubernetes.io/ingress-bandwidth"
	egressAnnotation  = "kubernetes.io/egress-bandwidth"
)

// Kubernetes takes bandwidths from 1k to 1P.
var leastBandwidth, mostBandwidth = resource.MustParse("1k"), resource.MustParse("1P")

// bandwidth reads a pod's limits from its annotations.
func bandwidth(annotations map[string]string) (b Bandwidth, err error) {
	if b.Ingress, err = bandwidthOf(annotations, ingressAnnotation); err == nil {
		b.Egress, err = bandwidthOf(annotations, egressAnnotation)
	}
	return b, err
}

func bandwidthOf(annotations map[string]string, name string) (uint64, error) {
	text, ok := annotations[name]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(text)
	if err != nil {
		return 0, fmt.Errorf("annotation %s %.64q is not a quantity like 10M: %w: %w", name, text, err, errdefs.ErrInvalidArgument)
	}
	if q.Cmp(leastBandwidth) < 0 || q.Cmp(mostBandwidth) > 0 {
		return 0, fmt.Errorf("annotation %s %s: a bandwidth is from 1k to 1P bits a second: %w", name, q.String(), errdefs.ErrInvalidArgument)
	}
	return uint64(q.Value()), nil
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
		if _, known := runtimeapi.Protocol_name[int32(p.GetProtocol())]; !known {
			return fmt.Errorf("host port %d has the protocol %d, which is none of TCP, UDP and SCTP: %w", p.GetHostPort(), p.GetProtocol(), errdefs.ErrInvalidArgument)
		}
		if p.GetHostPort() < 0 || p.GetHostPort() > 65535 || p.GetContainerPort() < 1 || p.GetContainerPort() > 65535 {
			return fmt.Errorf("host port %d to container port %d: ports are numbers from 1 to 65535: %w", p.GetHostPort(), p.GetContainerPort(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

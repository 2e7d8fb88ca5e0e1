package cni

import (
	"errors"
	"fmt"
	"net"

	"github.com/containernetworking/cni/libcni"
	"github.com/containernetworking/cni/pkg/types"
	types100 "github.com/containernetworking/cni/pkg/types/100"
)

// Request names a sandbox and what its network must do. It is recorded: DEL and
// CHECK are told what ADD was.
type Request struct {
	SandboxID    string            `json:"sandbox"`
	Namespace    string            `json:"namespace"`
	Name         string            `json:"name"`
	UID          string            `json:"uid"`
	NetNS        string            `json:"netns"` // a path that plugins can open; empty when it is gone
	PortMappings []PortMapping     `json:"portMappings,omitempty"`
	Bandwidth    *Bandwidth        `json:"bandwidth,omitempty"`
	DNS          *DNS              `json:"dns,omitempty"`
	Annotations  map[string]string `json:"annotations,omitempty"`
	CgroupParent string            `json:"cgroupParent,omitempty"`
	// IPRanges are those of the node's pods, for a plugin with that capability;
	// set by Add.
	IPRanges [][]IPRange `json:"ipRanges,omitempty"`
}

// PortMapping forwards a port of the host to one of the sandbox.
type PortMapping struct {
	HostPort      int32  `json:"hostPort"`
	ContainerPort int32  `json:"containerPort"`
	Protocol      string `json:"protocol"` // tcp, udp, sctp
	HostIP        string `json:"hostIP,omitempty"`
}

// Bandwidth limits what a pod receives and sends: rates in bits a second, bursts
// in bits. A rate of zero is no limit.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// DNS is the pod's resolver configuration, for plugins that register names.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// IPRange is one range of addresses.
type IPRange struct {
	Subnet string `json:"subnet"`
}

// Result is what ADD gave the sandbox.
type Result struct {
	IPs []string // the first is the primary
}

// runtimeConf is what plugins are told of r: the arguments and capabilities that
// containerd and CRI-O give them too. Each plugin sees the capabilities that its
// configuration names (github.com/containernetworking/cni/blob/main/CONVENTIONS.md).
func runtimeConf(r Request) *libcni.RuntimeConf {
	capabilities := map[string]any{}
	if len(r.PortMappings) > 0 {
		capabilities["portMappings"] = r.PortMappings
	}
	if r.Bandwidth != nil {
		capabilities["bandwidth"] = r.Bandwidth
	}
	if r.DNS != nil {
		capabilities["dns"] = r.DNS
	}
	if len(r.IPRanges) > 0 {
		capabilities["ipRanges"] = r.IPRanges
	}
	if r.CgroupParent != "" {
		capabilities["cgroupPath"] = r.CgroupParent
	}
	if len(r.Annotations) > 0 {
		capabilities["io.kubernetes.cri.pod-annotations"] = r.Annotations
	}
	return &libcni.RuntimeConf{
		ContainerID: r.SandboxID, NetNS: r.NetNS, IfName: interfaceName, CapabilityArgs: capabilities,
		Args: [][2]string{{"IgnoreUnknown", "1"}, {"K8S_POD_NAMESPACE", r.Namespace}, {"K8S_POD_NAME", r.Name}, {"K8S_POD_INFRA_CONTAINER_ID", r.SandboxID}, {"K8S_POD_UID", r.UID}},
	}
}

// addresses takes the sandbox's addresses from a plugin's answer, which is not
// trusted: those of the interface that was asked for, or, where the answer places
// none there, all that it does not place on the host.
func addresses(answer types.Result) ([]string, error) {
	r, err := types100.NewResultFromResult(answer)
	if err != nil {
		return nil, err
	}
	var ips, others []string
	for _, ip := range r.IPs {
		if ip.Interface != nil && (*ip.Interface < 0 || *ip.Interface >= len(r.Interfaces)) {
			return nil, fmt.Errorf("the answer places an address on interface %d of %d", *ip.Interface, len(r.Interfaces))
		}
		a := net.IP(ip.Address.IP)
		if len(a) == 0 || a.IsUnspecified() || a.IsMulticast() {
			return nil, fmt.Errorf("the answer has the address %v", ip.Address)
		}
		switch {
		case ip.Interface != nil && r.Interfaces[*ip.Interface].Sandbox == "": // the host's side
		case ip.Interface != nil && r.Interfaces[*ip.Interface].Name != interfaceName:
			others = append(others, a.String())
		default:
			ips = append(ips, a.String())
		}
	}
	if len(ips) == 0 {
		ips = others
	}
	if len(ips) == 0 {
		return nil, errors.New("the plugins gave the pod no address")
	}
	return ips, nil
}

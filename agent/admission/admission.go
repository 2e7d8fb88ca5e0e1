// Package admission decides whether a pod may run on this node beside those
// that run already. It is pure.
//
// The checks, in the kubelet's order; the first that fails gives the reason:
//
//	node labels and spec.os ─▶ extended resources ─▶ pods, cpu, memory, ... ─▶ node name ─▶ node affinity ─▶ host ports
//
// A pod that has been rejected is Failed for good. Reasons and messages are
// those of the kubelet's predicates, so that tools that know them go on working.
package admission

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	resourcehelper "k8s.io/component-helpers/resource"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/berthd/berth/agent/pod"
)

// Node is what admission knows of the node.
type Node struct {
	Name   string
	Labels map[string]string
	// Allocatable is what all pods together may request. A resource that is not
	// in it is not there, except ephemeral storage, which is then not limited.
	Allocatable v1.ResourceList
}

// Reasons of rejections beyond those in agent/pod; OutOf<resource> is made from
// the resource's name.
const (
	NodeAffinity                 pod.Reason = "NodeAffinity"
	NodeName                     pod.Reason = "NodeName"
	PodOSNotSupported            pod.Reason = "PodOSNotSupported"
	PodOSSelectorLabelNotMatched pod.Reason = "PodOSSelectorNodeLabelDoesNotMatch"
)

// osLabel is set on every node.
const osLabel = "kubernetes.io/os"

// Admit returns nil if the pod d may run on node beside others, else why not.
// Others that have ended, or are d itself, do not count.
func Admit(d pod.Desired, others []pod.Snapshot, node Node) *pod.Rejection {
	running := make([]*v1.Pod, 0, len(others))
	for i := range others {
		o := &others[i]
		if o.UID != pod.UID(d.Pod.UID) && counts(o) {
			running = append(running, o.Desired.Pod)
		}
	}
	for _, check := range []func(*v1.Pod, []*v1.Pod, Node) *pod.Rejection{operatingSystem, extended, fits, nodeName, affinity, hostPorts} {
		if r := check(d.Pod, running, node); r != nil {
			return r
		}
	}
	return nil
}

// counts: the pod holds, or is about to take, what it requests.
func counts(s *pod.Snapshot) bool {
	if s.Desired.Pod == nil || s.Desired.Rejection != nil {
		return false
	}
	if s.Status.Phase != v1.PodFailed && s.Status.Phase != v1.PodSucceeded {
		return true
	}
	// Its phase is final; while it is being ended by force its containers still hold what they have.
	return s.Desired.Termination != nil && slices.ContainsFunc(s.Observed.Containers, func(c pod.Container) bool { return c.State == pod.Running })
}

func operatingSystem(p *v1.Pod, _ []*v1.Pod, node Node) *pod.Rejection {
	want := node.Labels[osLabel]
	if want == "" {
		want = string(v1.Linux)
	}
	if label, ok := p.Labels[osLabel]; ok && label != want {
		return &pod.Rejection{Reason: PodOSSelectorLabelNotMatched, Message: fmt.Sprintf("Failed to admit pod as the `%s` label doesn't match node label", osLabel)}
	}
	if p.Spec.OS != nil && string(p.Spec.OS.Name) != want {
		return &pod.Rejection{Reason: PodOSNotSupported, Message: fmt.Sprintf("Failed to admit pod as the OS field doesn't match node OS: this node runs %s, the pod wants %s", want, p.Spec.OS.Name)}
	}
	return nil
}

// extended refuses what only device plugins and dynamic allocation provide.
func extended(p *v1.Pod, _ []*v1.Pod, node Node) *pod.Rejection {
	for _, name := range names(requests(p)) {
		if _, ok := node.Allocatable[name]; ok || !strings.Contains(string(name), "/") {
			continue
		}
		return &pod.Rejection{Reason: outOf(name), Message: fmt.Sprintf("Node didn't have enough resource: %s, which this node does not offer: without a cluster it runs no device plugins", name)}
	}
	return nil
}

func outOf(name v1.ResourceName) pod.Reason { return pod.Reason("OutOf" + string(name)) }

func requests(p *v1.Pod) v1.ResourceList {
	return resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
}

// names lists what is asked for: cpu, memory and ephemeral storage first, as
// the kubelet checks them.
func names(list v1.ResourceList) []v1.ResourceName {
	var all []v1.ResourceName
	for name, q := range list {
		if !q.IsZero() {
			all = append(all, name)
		}
	}
	rank := map[v1.ResourceName]int{v1.ResourceCPU: -3, v1.ResourceMemory: -2, v1.ResourceEphemeralStorage: -1}
	slices.SortFunc(all, func(a, b v1.ResourceName) int {
		if d := rank[a] - rank[b]; d != 0 {
			return d
		}
		return strings.Compare(string(a), string(b))
	})
	return all
}

// amount is how the kubelet counts a resource: cpu in thousandths, all else in units.
func amount(name v1.ResourceName, q resource.Quantity) int64 {
	if name == v1.ResourceCPU {
		return q.MilliValue()
	}
	return q.Value()
}

func fits(p *v1.Pod, running []*v1.Pod, node Node) *pod.Rejection {
	if q, ok := node.Allocatable[v1.ResourcePods]; ok && int64(len(running))+1 > q.Value() {
		return insufficient(v1.ResourcePods, 1, int64(len(running)), q.Value())
	}
	asked := requests(p)
	wanted := names(asked)
	if len(wanted) == 0 {
		return nil // nothing to add up
	}
	used := map[v1.ResourceName]int64{}
	for _, r := range running {
		for name, q := range requests(r) {
			used[name] += amount(name, q)
		}
	}
	for _, name := range wanted {
		q, ok := node.Allocatable[name]
		if !ok && name == v1.ResourceEphemeralStorage {
			continue
		}
		if want := amount(name, asked[name]); want > amount(name, q)-used[name] {
			return insufficient(name, want, used[name], amount(name, q))
		}
	}
	return nil
}

func insufficient(name v1.ResourceName, requested, used, capacity int64) *pod.Rejection {
	return &pod.Rejection{Reason: outOf(name), Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", name, requested, used, capacity)}
}

func predicate(reason pod.Reason, why string) *pod.Rejection {
	return &pod.Rejection{Reason: reason, Message: fmt.Sprintf("Predicate %s failed: %s", reason, why)}
}

func nodeName(p *v1.Pod, _ []*v1.Pod, node Node) *pod.Rejection {
	if p.Spec.NodeName != "" && p.Spec.NodeName != node.Name {
		return predicate(NodeName, fmt.Sprintf("node(s) didn't match the requested node name: this node is %s, the pod wants %s", node.Name, p.Spec.NodeName))
	}
	return nil
}

func affinity(p *v1.Pod, _ []*v1.Pod, node Node) *pod.Rejection {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: node.Labels}}
	ok, err := nodeaffinity.GetRequiredNodeAffinity(p).Match(n)
	if err != nil {
		return predicate(NodeAffinity, err.Error())
	}
	if !ok {
		return predicate(NodeAffinity, "node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

// hostPort is one claim to a port of the host. An invalid addr claims every address.
type hostPort struct {
	protocol v1.Protocol
	addr     netip.Addr
	port     int32
}

func (a hostPort) clashes(b hostPort) bool {
	return a.port == b.port && a.protocol == b.protocol && (!a.addr.IsValid() || !b.addr.IsValid() || a.addr == b.addr)
}

func (a hostPort) String() string {
	if a.addr.IsValid() {
		return fmt.Sprintf("%s port %d of %s", a.protocol, a.port, a.addr)
	}
	return fmt.Sprintf("%s port %d", a.protocol, a.port)
}

// claims lists the host ports of p's containers and sidecars; ordinary init
// containers listen before the others do, as in the scheduler.
func claims(p *v1.Pod) []hostPort {
	var all []hostPort
	add := func(c *v1.Container) {
		for _, port := range c.Ports {
			if port.HostPort == 0 {
				continue
			}
			h := hostPort{protocol: port.Protocol, port: port.HostPort}
			if h.protocol == "" {
				h.protocol = v1.ProtocolTCP
			}
			if a, err := netip.ParseAddr(port.HostIP); err == nil && !a.IsUnspecified() {
				h.addr = a.Unmap()
			}
			all = append(all, h)
		}
	}
	for i := range p.Spec.InitContainers {
		if c := &p.Spec.InitContainers[i]; c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			add(c)
		}
	}
	for i := range p.Spec.Containers {
		add(&p.Spec.Containers[i])
	}
	return all
}

func hostPorts(p *v1.Pod, running []*v1.Pod, _ Node) *pod.Rejection {
	wanted := claims(p)
	if len(wanted) == 0 {
		return nil
	}
	for _, r := range running {
		for _, held := range claims(r) {
			for _, w := range wanted {
				if w.clashes(held) {
					return predicate(pod.NodePorts, fmt.Sprintf("node(s) didn't have free ports for the requested pod ports: %s is held by pod %s/%s", w, r.Namespace, r.Name))
				}
			}
		}
	}
	return nil
}

package admission

import (
	"fmt"
	"net/netip"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/component-helpers/scheduling/corev1/nodeaffinity"

	"github.com/berthd/berth/agent/pod"
)

func predicate(reason pod.Reason, why string) *pod.Rejection {
	return &pod.Rejection{Reason: reason, Message: fmt.Sprintf("Predicate %s failed: %s", reason, why)}
}

func nodeName(d pod.Desired, _ []*pod.Snapshot, node Node) *pod.Rejection {
	if name := d.Pod.Spec.NodeName; name != "" && name != node.Name {
		return predicate(NodeName, fmt.Sprintf("node(s) didn't match the requested node name: this node is %s, the pod wants %s", node.Name, name))
	}
	return nil
}

func affinity(d pod.Desired, _ []*pod.Snapshot, node Node) *pod.Rejection {
	n := &v1.Node{ObjectMeta: metav1.ObjectMeta{Name: node.Name, Labels: node.Labels}}
	ok, err := nodeaffinity.GetRequiredNodeAffinity(d.Pod).Match(n)
	if err != nil {
		return predicate(NodeAffinity, err.Error())
	}
	if !ok {
		return predicate(NodeAffinity, "node(s) didn't match Pod's node affinity/selector")
	}
	return nil
}

// taints keeps out what would be driven out at once: pods of a cluster that do
// not tolerate a NoExecute taint. The node's own pods run all the same.
func taints(d pod.Desired, _ []*pod.Snapshot, node Node) *pod.Rejection {
	if static(d) {
		return nil
	}
next:
	for i := range node.Taints {
		if node.Taints[i].Effect != v1.TaintEffectNoExecute {
			continue
		}
		for j := range d.Pod.Spec.Tolerations {
			if tolerates(&d.Pod.Spec.Tolerations[j], &node.Taints[i]) {
				continue next
			}
		}
		return predicate(TaintToleration, "node(s) had taints that the pod didn't tolerate")
	}
	return nil
}

// tolerates: an empty effect or key of a toleration matches all, and no
// operator means Equal.
func tolerates(t *v1.Toleration, taint *v1.Taint) bool {
	switch {
	case t.Effect != "" && t.Effect != taint.Effect, t.Key != "" && t.Key != taint.Key:
		return false
	case t.Operator == v1.TolerationOpExists:
		return true
	}
	return (t.Operator == "" || t.Operator == v1.TolerationOpEqual) && t.Value == taint.Value
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

func hostPorts(d pod.Desired, running []*pod.Snapshot, _ Node) *pod.Rejection {
	wanted := claims(d.Pod)
	if len(wanted) == 0 {
		return nil
	}
	for i := range running {
		r := running[i].Desired.Pod
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

package runtime

import (
	"fmt"
	"math"
	"strconv"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
)

// field is the value of a fieldRef.
func (f facts) field(path string) (string, error) {
	p := f.pod
	if name, key, ok := strings.Cut(strings.TrimSuffix(path, "']"), "['"); ok && strings.HasSuffix(path, "']") {
		switch name {
		case "metadata.labels":
			return p.Labels[key], nil
		case "metadata.annotations":
			return p.Annotations[key], nil
		}
	}
	switch path {
	case "metadata.name":
		return p.Name, nil
	case "metadata.namespace":
		return p.Namespace, nil
	case "metadata.uid":
		return string(p.UID), nil
	case "spec.nodeName":
		if p.Spec.NodeName == "" {
			return f.node.Name, nil
		}
		return p.Spec.NodeName, nil
	case "spec.serviceAccountName":
		return p.Spec.ServiceAccountName, nil
	case "status.hostIP":
		return first(f.node.IPs), nil
	case "status.hostIPs":
		return strings.Join(f.node.IPs, ","), nil
	case "status.podIP":
		return first(f.ips()), nil
	case "status.podIPs":
		return strings.Join(f.ips(), ","), nil
	}
	return "", failAs(opConfig, pod.Invalid, fmt.Errorf("fieldPath %q is not one that an environment variable can have", path))
}

// ips are the pod's addresses: those of the node when it uses the node's network.
func (f facts) ips() []string {
	if f.pod.Spec.HostNetwork {
		return f.node.IPs
	}
	return f.podIPs
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

// resourceField is the value of a resourceFieldRef, rounded up to the divisor. A
// limit that is not set is what the pod, else the node, can give.
func (f facts) resourceField(c *v1.Container, ref *v1.ResourceFieldSelector) (string, error) {
	if ref.ContainerName != "" && ref.ContainerName != c.Name {
		other := containerOf(f.pod, pod.ContainerName(ref.ContainerName))
		if other == nil {
			return "", failAs(opConfig, pod.Invalid, fmt.Errorf("container %s not found", ref.ContainerName))
		}
		c = other
	}
	kind, what, ok := strings.Cut(ref.Resource, ".")
	if !ok || (kind != "limits" && kind != "requests") {
		return "", failAs(opConfig, pod.Invalid, fmt.Errorf("unsupported container resource : %v", ref.Resource))
	}
	name := v1.ResourceName(what)
	huge := strings.HasPrefix(what, v1.ResourceHugePagesPrefix)
	if name != v1.ResourceCPU && name != v1.ResourceMemory && name != v1.ResourceEphemeralStorage && !huge {
		return "", failAs(opConfig, pod.Invalid, fmt.Errorf("unsupported container resource : %v", ref.Resource))
	}
	quantity := c.Resources.Requests[name]
	if kind == "limits" {
		var set bool
		quantity, set = c.Resources.Limits[name]
		if (!set || quantity.IsZero()) && f.pod.Spec.Resources != nil {
			quantity, set = f.pod.Spec.Resources.Limits[name]
		}
		if (!set || quantity.IsZero()) && !huge { // huge pages are never overcommitted: no limit means none
			quantity = f.node.Allocatable[name]
		}
	}
	return rounded(quantity, ref.Divisor, name == v1.ResourceCPU), nil
}

func rounded(q, divisor resource.Quantity, cpu bool) string {
	if divisor.IsZero() {
		divisor = resource.MustParse("1")
	}
	if cpu {
		return strconv.FormatInt(int64(math.Ceil(float64(q.MilliValue())/float64(divisor.MilliValue()))), 10)
	}
	return strconv.FormatInt(int64(math.Ceil(float64(q.Value())/float64(divisor.Value()))), 10)
}

package admission

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/berthd/berth/agent/pod"
)

// extended refuses what only device plugins and dynamic allocation provide.
func extended(d pod.Desired, node Node) *pod.Rejection {
	for _, name := range names(requests(d.Pod)) {
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

// amountOf is how much of a resource p takes; of pods, one.
func amountOf(p *v1.Pod, name v1.ResourceName) int64 {
	if name == v1.ResourcePods {
		return 1
	}
	if len(p.Spec.InitContainers) > 0 || p.Spec.Resources != nil || len(p.Spec.Overhead) > 0 {
		return amount(name, requests(p)[name])
	}
	sum := int64(0) // the same, without a list of everything
	for i := range p.Spec.Containers {
		sum += amount(name, p.Spec.Containers[i].Resources.Requests[name])
	}
	return sum
}

// shortage is a resource of which there is not enough left.
type shortage struct {
	name                      v1.ResourceName
	requested, used, capacity int64
}

// missing is how much others have to give back.
func (s shortage) missing() int64 { return s.requested - (s.capacity - s.used) }

func (s shortage) rejection() *pod.Rejection {
	return &pod.Rejection{Reason: outOf(s.name), Message: fmt.Sprintf("Node didn't have enough resource: %s, requested: %d, used: %d, capacity: %d", s.name, s.requested, s.used, s.capacity)}
}

// shortages lists what lacks for p, in the order in which it is told.
func shortages(p *v1.Pod, running []*pod.Snapshot, node Node) []shortage {
	var all []shortage
	if q, ok := node.Allocatable[v1.ResourcePods]; ok && int64(len(running))+1 > q.Value() {
		all = append(all, shortage{v1.ResourcePods, 1, int64(len(running)), q.Value()})
	}
	asked := requests(p)
	wanted := names(asked)
	if len(wanted) == 0 {
		return all // nothing to add up
	}
	for _, name := range wanted {
		q, ok := node.Allocatable[name]
		if !ok && name == v1.ResourceEphemeralStorage {
			continue
		}
		s := shortage{name, amount(name, asked[name]), 0, amount(name, q)}
		for _, r := range running {
			s.used += amountOf(r.Desired.Pod, name)
		}
		if s.missing() > 0 {
			all = append(all, s)
		}
	}
	return all
}

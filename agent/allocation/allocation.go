// Package allocation decides which of the resizes that wait on this node are
// granted (KEP-1287). It is pure: it is given where all pods stand, and says
// what is to be told to which of them.
//
//	undecided ─┬─ can never be on this node ─▶ Infeasible, until something else is asked for
//	           ├─ no room beside the others ─▶ Deferred, decided again as pods leave or shrink
//	           └─ fits ─▶ granted
//
// They are looked at one after another, so that what one is granted the next
// cannot have: those that ask for nothing more first, then by the pod's
// priority, Guaranteed pods before others, and by how long they wait.
package allocation

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resourcehelper "k8s.io/component-helpers/resource"

	"github.com/berthd/berth/agent/pod"
)

// Node is what the decision needs to know of the node.
type Node struct {
	// Fits says why d may not run beside others, nil if it may: what admission
	// says of new pods. Pods among others ask for what they hold; d may be among them.
	Fits func(d pod.Desired, others []pod.Snapshot) *pod.Rejection
	// Swap: pods of this node may swap (LimitedSwap). The share of a container is
	// set when it is created, by the memory that it requests.
	Swap bool
	// ExclusiveCPUs and StaticMemory: Guaranteed pods get CPUs, or memory of NUMA
	// nodes, of their own (policies "static" and "Static").
	ExclusiveCPUs, StaticMemory bool
}

// Decide returns what is new: grants, and refusals that differ from the last one
// of their pod.
func Decide(pods []pod.Snapshot, node Node) []pod.Allocation {
	pods = slices.Clone(pods)
	var out []pod.Allocation
	for _, i := range queue(pods) {
		s := &pods[i]
		a := decide(s, pods, node)
		if a.Granted {
			granted := *s.Resize
			granted.Allocated, granted.Pending = granted.Desired, nil
			s.Resize, s.Held = &granted, larger(s.Desired.Pod, held(s))
		} else if p := s.Resize.Pending; p != nil && p.Reason == a.Pending.Reason && p.Message == a.Pending.Message {
			continue
		}
		out = append(out, a)
	}
	return out
}

// queue lists the pods whose resize waits, in the order of their turns.
func queue(pods []pod.Snapshot) []int {
	var waiting []int
	for i := range pods {
		s := &pods[i]
		ended := s.Gone || s.Desired.Termination != nil || s.Desired.Rejection != nil || s.Status.Phase == v1.PodSucceeded || s.Status.Phase == v1.PodFailed
		if s.Resize.Undecided() && !ended && s.Desired.Pod != nil {
			waiting = append(waiting, i)
		}
	}
	slices.SortStableFunc(waiting, func(i, j int) int {
		a, b := &pods[i], &pods[j]
		return cmp.Or(
			first(!grows(a), !grows(b)),
			cmp.Compare(priority(b.Desired.Pod), priority(a.Desired.Pod)),
			first(guaranteed(a.Desired.Pod), guaranteed(b.Desired.Pod)),
			since(a).Compare(since(b)),
		)
	})
	return waiting
}

// first puts what is true before what is not.
func first(a, b bool) int {
	switch {
	case a == b:
		return 0
	case a:
		return -1
	}
	return 1
}

func priority(p *v1.Pod) int32 {
	if p.Spec.Priority == nil {
		return 0
	}
	return *p.Spec.Priority
}

func guaranteed(p *v1.Pod) bool { return pod.QOSClass(p) == v1.PodQOSGuaranteed }

// since is when the resize was first put off; one that never was comes last.
func since(s *pod.Snapshot) time.Time {
	if p := s.Resize.Pending; p != nil {
		return p.Since
	}
	return time.Unix(1<<40, 0)
}

// held is the pod with the resources that it holds now.
func held(s *pod.Snapshot) *v1.Pod {
	if s.Held != nil {
		return s.Held
	}
	return s.Resize.Allocated.Into(s.Desired.Pod)
}

// grows says that the pod as a whole asks for more of something than it holds.
func grows(s *pod.Snapshot) bool {
	want, have := requests(s.Desired.Pod), requests(s.Resize.Allocated.Into(s.Desired.Pod))
	for name, q := range want {
		if q.Cmp(have[name]) > 0 {
			return true
		}
	}
	return false
}

func requests(p *v1.Pod) v1.ResourceList {
	return resourcehelper.PodRequests(p, resourcehelper.PodResourcesOptions{})
}

func decide(s *pod.Snapshot, pods []pod.Snapshot, node Node) pod.Allocation {
	a := pod.Allocation{UID: s.UID, Generation: s.Resize.Desired.Generation}
	if why := infeasible(s, node); why != "" {
		a.Pending = pod.ResizePending{Reason: pod.ResizeInfeasible, Message: why}
		return a
	}
	others := make([]pod.Snapshot, 0, len(pods))
	for i := range pods {
		if pods[i].UID != s.UID {
			others = append(others, pods[i].AsHeld())
		}
	}
	if r := node.Fits(s.Desired, others); r != nil {
		a.Pending = pod.ResizePending{Reason: pod.ResizeDeferred, Message: r.Message}
		return a
	}
	a.Granted = true
	return a
}

// infeasible says why this node can never do it, "" if it can. That a pod asks
// for more than the node has is not among the reasons: nodes may grow.
func infeasible(s *pod.Snapshot, node Node) string {
	if guaranteed(s.Desired.Pod) {
		if node.ExclusiveCPUs && changes(s, v1.ResourceCPU, nil) {
			return `Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"`
		}
		if node.StaticMemory && changes(s, v1.ResourceMemory, nil) {
			return `Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "Static"`
		}
	}
	if node.Swap && changes(s, v1.ResourceMemory, func(c *v1.Container) bool { return !restarts(c, v1.ResourceMemory) }) {
		return "In-place resize of containers with swap is not supported."
	}
	return ""
}

// changes says that the request of name changes for a container that of holds for.
func changes(s *pod.Snapshot, name v1.ResourceName, of func(*v1.Container) bool) bool {
	for _, list := range [][]v1.Container{s.Desired.Pod.Spec.InitContainers, s.Desired.Pod.Spec.Containers} {
		for i := range list {
			c := &list[i]
			had := s.Resize.Allocated.Containers[pod.ContainerName(c.Name)]
			if q := c.Resources.Requests[name]; q.Cmp(had.Requests[name]) != 0 && (of == nil || of(c)) {
				return true
			}
		}
	}
	return false
}

func restarts(c *v1.Container, name v1.ResourceName) bool {
	return slices.ContainsFunc(c.ResizePolicy, func(p v1.ContainerResizePolicy) bool {
		return p.ResourceName == name && p.RestartPolicy == v1.RestartContainer
	})
}

// larger is p asking for at least what have asks for: until a decrease is in
// force nobody else can have what it gives up.
func larger(p, have *v1.Pod) *v1.Pod {
	want, had := pod.ResourcesOf(p), pod.ResourcesOf(have)
	out := pod.Resources{Generation: p.Generation, Pod: want.Pod, Containers: map[pod.ContainerName]v1.ResourceRequirements{}}
	if want.Pod != nil && had.Pod != nil {
		both := atLeast(*want.Pod, *had.Pod)
		out.Pod = &both
	}
	for name, r := range want.Containers {
		out.Containers[name] = atLeast(r, had.Containers[name])
	}
	return out.Into(p)
}

func atLeast(r, had v1.ResourceRequirements) v1.ResourceRequirements {
	out := *r.DeepCopy()
	for name, q := range had.Requests {
		var zero resource.Quantity
		if have, ok := out.Requests[name]; q.Cmp(zero) > 0 && (!ok || q.Cmp(have) > 0) {
			if out.Requests == nil {
				out.Requests = v1.ResourceList{}
			}
			out.Requests[name] = q
		}
	}
	return out
}

package wire

import (
	"context"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/admission"
	"github.com/berthd/berth/agent/allocation"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/podspec"
	"github.com/berthd/berth/agent/server"
)

// resizeTime bounds a request for a resize: that its worker takes it in.
const resizeTime = 30 * time.Second

// resize asks for other resources for a pod, if Kubernetes would allow that, and
// returns the generation that it has then.
func (n *node) resize(ctx context.Context, uid pod.UID, patch server.ResizePatch) (generation int64, err error) {
	ctx, cancel := context.WithTimeout(ctx, resizeTime)
	defer cancel()
	err = n.dispatcher.Resize(ctx, uid, func(shown *v1.Pod) (pod.Resources, error) {
		next, err := patch.Onto(shown)
		if err != nil {
			return pod.Resources{}, err
		}
		podspec.Default(next)
		if errs := podspec.ValidateResize(next, shown); len(errs) > 0 {
			return pod.Resources{}, &pod.Error{Op: "resize pod", Kind: pod.Invalid, Err: errs.ToAggregate()}
		}
		want := pod.ResourcesOf(next)
		generation = shown.Generation
		if !want.Same(pod.ResourcesOf(shown)) {
			generation = max(shown.Generation, 1) + 1
		}
		return want, nil
	})
	if err != nil {
		return 0, err // the worker may still be at it
	}
	return generation, nil
}

// allocate decides about the resizes that wait.
func (n *node) allocate(pods []pod.Snapshot) []pod.Allocation {
	return allocation.Decide(pods, allocation.Node{Fits: n.fits, Swap: n.o.LimitedSwap && n.cgroups.V2() && n.swap > 0})
}

// fits asks admission. Nobody is preempted for a resize: what a pod could only
// have at the cost of others, it cannot have.
func (n *node) fits(d pod.Desired, others []pod.Snapshot) *pod.Rejection {
	v := admission.Decide(d, others, n.admissionNode())
	if v.Rejection == nil && len(v.Preempt) > 0 {
		modest := *d.Pod
		modest.Spec.Priority, modest.Spec.PriorityClassName = nil, ""
		d.Pod, d.Source = &modest, pod.SourceAPI
		v = admission.Decide(d, others, n.admissionNode())
	}
	return v.Rejection
}

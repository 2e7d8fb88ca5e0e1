package pod

import (
	"maps"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/equality"
)

// Resources are what a pod asks for, as of one generation: the part of a pod
// that can be changed while it runs (KEP-1287, KEP-5419 for the pod's own).
type Resources struct {
	// Generation is metadata.generation of the pod that asks for them; it grows
	// by one with every accepted resize.
	Generation int64
	// Pod is spec.resources; nil if the pod has none of its own.
	Pod *v1.ResourceRequirements
	// Containers are those of init and main containers.
	Containers map[ContainerName]v1.ResourceRequirements
}

// ResourcesOf reads what p asks for.
func ResourcesOf(p *v1.Pod) Resources {
	r := Resources{Generation: p.Generation, Pod: p.Spec.Resources, Containers: map[ContainerName]v1.ResourceRequirements{}}
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			r.Containers[ContainerName(list[i].Name)] = list[i].Resources
		}
	}
	return r
}

// Same says that r and o ask for the same, whatever their generations.
func (r Resources) Same(o Resources) bool {
	return equality.Semantic.DeepEqual(r.Pod, o.Pod) && equality.Semantic.DeepEqual(r.Containers, o.Containers)
}

// Into returns p asking for r, under r's generation. p is not changed, and
// shares with what is returned all that is not a resource.
func (r Resources) Into(p *v1.Pod) *v1.Pod {
	next := *p
	next.Generation, next.Spec.Resources = r.Generation, r.Pod
	for _, list := range []*[]v1.Container{&next.Spec.InitContainers, &next.Spec.Containers} {
		*list = slices.Clone(*list)
		for i := range *list {
			if want, ok := r.Containers[ContainerName((*list)[i].Name)]; ok {
				(*list)[i].Resources = want
			}
		}
	}
	return &next
}

// Resize is where the resources of a pod that has been resized stand. It is
// immutable; a pod that was never resized has none.
//
//	            ┌─ Deferred (tried again as room is made) ─┐
//	Desired ────┤                                          ├─▶ Allocated ─▶ Boot.Actuated
//	            └─ Infeasible (until Desired changes)      │   (Progress)
//	                             granted ──────────────────┘
type Resize struct {
	// Desired is what was asked for last.
	Desired Resources
	// Allocated is what the node has granted: all that is done for the pod is
	// done with these.
	Allocated Resources
	// Pending is why Desired is not granted; nil: not decided yet, or granted.
	Pending *ResizePending
	// Progress is set from the grant until all of it is in force.
	Progress *ResizeProgress
}

// Undecided says that Desired waits for a decision, the first or another.
func (r *Resize) Undecided() bool {
	return r != nil && r.Desired.Generation != r.Allocated.Generation && (r.Pending == nil || r.Pending.Reason != ResizeInfeasible)
}

// ResizePending is the decision not to grant, at least for now.
type ResizePending struct {
	Reason  Reason // ResizeDeferred or ResizeInfeasible
	Message string
	Since   time.Time
}

// ResizeProgress is a grant that is being put in force.
type ResizeProgress struct {
	Generation int64
	Since      time.Time
}

// Allocation is the node's decision about one generation of a pod's resources.
type Allocation struct {
	UID        UID
	Generation int64
	// Granted, or else Pending says why not.
	Granted bool
	Pending ResizePending
}

// Actuated is what was last told to the runtime about a pod's resources, as far
// as it differs from what its containers were created with.
type Actuated struct {
	// Generation is the last one of which nothing is left to do.
	Generation int64
	// Pod is spec.resources as it is in force on the pod's cgroup.
	Pod *v1.ResourceRequirements
	// Containers are the instances that have been resized in place.
	Containers map[ContainerID]v1.ResourceRequirements
}

// Of returns the resources that instance c runs with: those it was resized to,
// else those it was created with. ok is false if nobody knows.
func (a Actuated) Of(c *Container) (r v1.ResourceRequirements, ok bool) {
	if r, ok := a.Containers[c.ID]; ok {
		return r, true
	}
	if c.Resources != nil {
		return *c.Resources, true
	}
	return v1.ResourceRequirements{}, false
}

// Merge returns a with what next adds.
func (a Actuated) Merge(next Actuated) Actuated {
	out := Actuated{Generation: max(a.Generation, next.Generation), Pod: next.Pod, Containers: maps.Clone(a.Containers)}
	if out.Containers == nil {
		out.Containers = map[ContainerID]v1.ResourceRequirements{}
	}
	maps.Copy(out.Containers, next.Containers)
	return out
}

// Limits are what the runtime says that it holds a container to. Zero: nothing.
type Limits struct {
	CPUShares           int64
	CPUQuota, CPUPeriod int64 // microseconds
	Memory              int64 // bytes
}

// Words of resizes: reasons of conditions, events, and of a container that is
// stopped because a resize of it requires that.
const (
	ResizeDeferred   Reason = "Deferred"
	ResizeInfeasible Reason = "Infeasible"
	ResizeRestart    Reason = "ResizeRequiresRestart"

	EventResizeStarted    Reason = "ResizeStarted"
	EventResizeCompleted  Reason = "ResizeCompleted"
	EventResizeDeferred   Reason = "ResizeDeferred"
	EventResizeInfeasible Reason = "ResizeInfeasible"
	EventResizeError      Reason = "ResizeError"
)

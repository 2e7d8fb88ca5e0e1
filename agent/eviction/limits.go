package eviction

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/component-helpers/resource"

	"github.com/berthd/berth/agent/pod"
)

// grace is what a pod that exceeds a limit has left, as with the kubelet.
const grace = time.Second

// Usage is what one pod uses of the node's storage, in bytes. What is not in it
// was not measured.
type Usage struct {
	// Containers are the running instances: what they wrote to their root
	// filesystem, and their logs.
	Containers map[pod.ContainerName]int64
	// Own are the files that the agent has given to the pod.
	Own int64
	// Volumes are the pod's emptyDirs.
	Volumes map[string]int64
}

// emptyDirLimit returns the limit of v, if it is an emptyDir that has one.
func emptyDirLimit(v *v1.Volume) (limit int64, ok bool) {
	if v.EmptyDir == nil || v.EmptyDir.SizeLimit == nil || v.EmptyDir.SizeLimit.Sign() <= 0 {
		return 0, false
	}
	return v.EmptyDir.SizeLimit.Value(), true
}

// podLimit is the sum of the containers' limits on ephemeral storage.
func podLimit(p *v1.Pod) (limit int64, text string, ok bool) {
	q, ok := resource.PodLimits(p, resource.PodResourcesOptions{})[v1.ResourceEphemeralStorage]
	return q.Value(), q.String(), ok
}

// onDisk says that v is an emptyDir that counts as the pod's ephemeral storage.
func onDisk(v *v1.Volume) bool {
	return v.EmptyDir != nil && v.EmptyDir.Medium == v1.StorageMediumDefault
}

// Needs says what of a pod has to be measured.
type Needs struct {
	Containers bool
	Volumes    []string
}

// None says that the pod declares no limit.
func (n Needs) None() bool { return !n.Containers && len(n.Volumes) == 0 }

// NeedsOf returns what has to be measured to know whether p keeps its limits.
func NeedsOf(p *v1.Pod) Needs {
	_, _, whole := podLimit(p)
	n := Needs{Containers: whole}
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if _, limited := emptyDirLimit(v); limited || whole && onDisk(v) {
			n.Volumes = append(n.Volumes, v.Name)
		}
	}
	return n
}

// Exceeded says that p has to end, and why, or returns nil. The limits are looked
// at in the kubelet's order: emptyDirs, the whole pod, its containers.
func Exceeded(p *v1.Pod, u Usage, now time.Time) *pod.Termination {
	message := exceeded(p, u)
	if message == "" {
		return nil
	}
	g := grace
	return &pod.Termination{Requested: now, Grace: &g, Reason: pod.Evicted, Message: message}
}

func exceeded(p *v1.Pod, u Usage) string {
	for i := range p.Spec.Volumes {
		v := &p.Spec.Volumes[i]
		if limit, ok := emptyDirLimit(v); ok && u.Volumes[v.Name] > limit {
			return fmt.Sprintf("Usage of EmptyDir volume %q exceeds the limit %q. ", v.Name, v.EmptyDir.SizeLimit.String())
		}
	}
	if limit, text, ok := podLimit(p); ok {
		sum := u.Own
		for _, n := range u.Containers {
			sum += n
		}
		for i := range p.Spec.Volumes {
			if v := &p.Spec.Volumes[i]; onDisk(v) {
				sum += u.Volumes[v.Name]
			}
		}
		if sum > limit {
			return fmt.Sprintf("Pod ephemeral local storage usage exceeds the total limit of containers %s. ", text)
		}
	}
	for i := range p.Spec.Containers {
		c := &p.Spec.Containers[i]
		limit, ok := c.Resources.Limits[v1.ResourceEphemeralStorage]
		if ok && limit.Value() > 0 && u.Containers[pod.ContainerName(c.Name)] > limit.Value() {
			return fmt.Sprintf("Container %s exceeded its local ephemeral storage limit %q. ", c.Name, limit.String())
		}
	}
	return ""
}

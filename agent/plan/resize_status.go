package plan

import (
	"encoding/json"
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	resources "k8s.io/component-helpers/resource"

	"github.com/berthd/berth/agent/pod"
)

// resizeConditions are there as long as they are true.
func (d *decision) resizeConditions() []v1.PodCondition {
	rs := d.rec.Durable.Resize
	if rs == nil {
		return nil
	}
	var out []v1.PodCondition
	if p := rs.Pending; p != nil {
		c := condition(v1.PodResizePending, true, p.Reason, p.Message)
		c.ObservedGeneration = rs.Desired.Generation
		out = append(out, c)
	}
	if p := rs.Progress; p != nil {
		c := condition(v1.PodResizeInProgress, true, "", "")
		if f, ok := d.Failures[pod.SlotResize]; ok {
			c.Reason, c.Message = string(pod.ReasonError), f.Message
		}
		c.ObservedGeneration = p.Generation
		out = append(out, c)
	}
	return out
}

// resizeText is what events of a resize tell: upstream's JSON.
func resizeText(p *v1.Pod, generation int64, failure string) string {
	type part struct {
		Name      string                  `json:"name"`
		Resources v1.ResourceRequirements `json:"resources"`
	}
	parts := func(list []v1.Container) (out []part) {
		for i := range list {
			r := list[i].Resources
			out = append(out, part{list[i].Name, v1.ResourceRequirements{Limits: resizable(r.Limits), Requests: resizable(r.Requests)}})
		}
		return out
	}
	// Marshal of quantities and strings cannot fail.
	text, _ := json.Marshal(struct {
		Init       []part `json:"initContainers,omitempty"`
		Containers []part `json:"containers,omitempty"`
		Generation int64  `json:"generation,omitempty"`
		Error      string `json:"error,omitempty"`
	}{parts(p.Spec.InitContainers), parts(p.Spec.Containers), generation, failure})
	return string(text)
}

func resizable(list v1.ResourceList) v1.ResourceList {
	out := v1.ResourceList{}
	for _, name := range resizables {
		if q, ok := list[name]; ok {
			out[name] = q
		}
	}
	return out
}

// resizeFailed tells of a failed OpResize once, until it fails in another way.
func (s *State) resizeFailed(f, before pod.Failure) []pod.Event {
	rs := s.Record.Durable.Resize
	if rs == nil || before.Op == f.Op && before.Message == f.Message {
		return nil
	}
	text := resizeText(s.grantedPod(), rs.Allocated.Generation, f.Message)
	return []pod.Event{{Warning: true, Reason: pod.EventResizeError, Message: "Pod resize error: " + text, At: f.At}}
}

// The kernel's smallest share and quota stand for all requests and limits up to
// these, in thousandths of a CPU: smaller ones are shown as they were asked for.
const (
	leastRequest = 2
	leastLimit   = 10
)

// actualResources are those that m runs with: what the runtime says that it is
// held to, and of memory the request that is in force. A container that does
// not run is shown with what is allocated to it.
func (d *decision) actualResources(m *member) *v1.ResourceRequirements {
	r := m.spec.Resources.DeepCopy()
	if !m.running() {
		return r
	}
	if have, ok := d.rec.Boot.Actuated.Of(m.cur); ok && d.rec.Durable.Resize != nil {
		show(r.Requests, have.Requests)
		show(r.Limits, have.Limits)
	}
	l := m.cur.Limits
	if l == nil {
		return r
	}
	if _, asked := m.spec.Resources.Requests[v1.ResourceCPU]; asked && l.CPUShares > 0 {
		showMilli(r.Requests, (l.CPUShares*1000+1023)/1024, leastRequest)
	}
	if _, limited := m.spec.Resources.Limits[v1.ResourceCPU]; limited && l.CPUQuota > 0 && l.CPUPeriod > 0 {
		showMilli(r.Limits, l.CPUQuota*1000/l.CPUPeriod, leastLimit)
	}
	if q, limited := r.Limits[v1.ResourceMemory]; limited && l.Memory > 0 && q.Value() != l.Memory {
		r.Limits[v1.ResourceMemory] = *resource.NewQuantity(l.Memory, resource.BinarySI)
	}
	return r
}

// show replaces in out what have has too.
func show(out, have v1.ResourceList) {
	for _, name := range resizables {
		if _, asked := out[name]; asked {
			if q, ok := have[name]; ok {
				out[name] = q
			}
		}
	}
}

func showMilli(out v1.ResourceList, milli, least int64) {
	q := out[v1.ResourceCPU]
	if q.MilliValue() != milli && (milli > least || q.MilliValue() > least) {
		out[v1.ResourceCPU] = *resource.NewMilliQuantity(milli, resource.DecimalSI)
	}
}

// podResources fills in what the pod as a whole has: what it was granted, and
// if it asks for resources of its own, those in force.
func (d *decision) podResources(st *v1.PodStatus) {
	if !requests(&d.pod.Spec) {
		return
	}
	st.AllocatedResources = resizable(resources.PodRequests(d.pod, resources.PodResourcesOptions{ExcludeOverhead: true}))
	if d.pod.Spec.Resources == nil {
		return
	}
	st.Resources = d.pod.Spec.Resources
	if rs := d.rec.Durable.Resize; rs != nil && rs.Progress != nil && d.rec.Boot.Actuated.Generation != rs.Allocated.Generation {
		if st.Resources = d.rec.Boot.Actuated.Pod; st.Resources == nil {
			st.Resources = d.Desired.Pod.Spec.Resources
		}
	}
}

// requests says that some request may be added up.
func requests(spec *v1.PodSpec) bool {
	if spec.Resources != nil {
		return true
	}
	for _, list := range [][]v1.Container{spec.InitContainers, spec.Containers} {
		for i := range list {
			if len(list[i].Resources.Requests) > 0 {
				return true
			}
		}
	}
	return false
}

// showsResources says that a volume of the pod shows what its containers may
// use: it is to be rendered anew when that changes.
func showsResources(spec *v1.PodSpec) bool {
	shows := func(files []v1.DownwardAPIVolumeFile) bool {
		return slices.ContainsFunc(files, func(f v1.DownwardAPIVolumeFile) bool { return f.ResourceFieldRef != nil })
	}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if v.DownwardAPI != nil && shows(v.DownwardAPI.Items) {
			return true
		}
		if v.Projected == nil {
			continue
		}
		for _, source := range v.Projected.Sources {
			if source.DownwardAPI != nil && shows(source.DownwardAPI.Items) {
				return true
			}
		}
	}
	return false
}

// explainResize tells of a resize that is not in force; the pod itself is well.
func (d *decision) explainResize() (pod.Explanation, bool) {
	rs := d.rec.Durable.Resize
	if rs == nil {
		return pod.Explanation{}, false
	}
	e := pod.Explanation{Well: true}
	switch f, failed := d.Failures[pod.SlotResize]; {
	case rs.Pending != nil && rs.Pending.Reason == pod.ResizeInfeasible:
		e.Reason, e.Since = rs.Pending.Reason, rs.Pending.Since
		e.Cause = sentence("The pod runs with its former resources, for this node can never resize it: %s.", rs.Pending.Message)
		e.Next, e.Advice = "Nothing, until other resources are asked for.", Advise(Trouble{Reason: resizeRefused, Pod: d.pod})
	case rs.Pending != nil:
		e.Reason, e.Since = rs.Pending.Reason, rs.Pending.Since
		e.Cause = sentence("The pod runs with its former resources, for there is no room for those that it was resized to: %s.", rs.Pending.Message)
		e.Next, e.Advice = "It is tried again as pods leave or shrink.", Advise(Trouble{Reason: resizePending, Pod: d.pod})
	case rs.Progress != nil && failed:
		e.Reason, e.Advice = pod.ReasonError, Advise(Trouble{Reason: resizeNotDone, Message: f.Message, Pod: d.pod})
		e.Cause = sentence("The pod runs, but its resize cannot be put in force: %s.", f.Message)
		d.retry(&e, pod.SlotResize, f, "tried", f.NotBefore)
	case rs.Undecided() || rs.Progress != nil:
		e.Cause = fmt.Sprintf("The pod runs, and is being resized (generation %d).", rs.Desired.Generation)
	default:
		return pod.Explanation{}, false
	}
	return e, true
}

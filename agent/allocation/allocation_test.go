package allocation

import (
	"fmt"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

// asks is a pod that has one container, and asks for memory, having had.
func asks(name, had, wants string, change ...func(*pod.Snapshot)) pod.Snapshot {
	spec := func(memory string) *v1.Pod {
		p := &v1.Pod{}
		p.Name, p.Namespace, p.UID = name, "default", types.UID(name)
		q := v1.ResourceList{v1.ResourceMemory: resource.MustParse(memory)}
		p.Spec.Containers = []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: q}}}
		return p
	}
	before, after := spec(had), spec(wants)
	s := pod.Snapshot{UID: pod.UID(name), Desired: pod.Desired{Pod: after}, Held: before}
	s.Status.Phase = v1.PodRunning
	if had != wants {
		after.Generation = 2
		s.Resize = &pod.Resize{Desired: pod.ResourcesOf(after), Allocated: pod.ResourcesOf(before)}
	}
	for _, f := range change {
		f(&s)
	}
	return s
}

// node has memory for capacity GiB.
func node(capacity int64) Node {
	return Node{Fits: func(d pod.Desired, others []pod.Snapshot) *pod.Rejection {
		gib := func(p *v1.Pod) int64 { return p.Spec.Containers[0].Resources.Requests.Memory().Value() >> 30 }
		used := int64(0)
		for _, o := range others {
			if o.UID != pod.UID(d.Pod.UID) && o.Status.Phase == v1.PodRunning {
				used += gib(o.Desired.Pod)
			}
		}
		if gib(d.Pod)+used > capacity {
			return &pod.Rejection{Reason: "OutOfmemory", Message: fmt.Sprintf("%d+%d>%d", gib(d.Pod), used, capacity)}
		}
		return nil
	}}
}

func show(all []pod.Allocation) string {
	var out []string
	for _, a := range all {
		text := string(a.UID) + " granted"
		if !a.Granted {
			text = fmt.Sprintf("%s %s %s", a.UID, a.Pending.Reason, a.Pending.Message)
		}
		out = append(out, text)
	}
	return strings.Join(out, "; ")
}

func TestDecide(t *testing.T) {
	waits := func(reason pod.Reason, message string, since int64) func(*pod.Snapshot) {
		return func(s *pod.Snapshot) {
			s.Resize.Pending = &pod.ResizePending{Reason: reason, Message: message, Since: time.Unix(since, 0)}
		}
	}
	withPriority := func(n int32) func(*pod.Snapshot) {
		return func(s *pod.Snapshot) { s.Desired.Pod.Spec.Priority = &n }
	}
	class := func(c v1.PodQOSClass) func(*pod.Snapshot) {
		return func(s *pod.Snapshot) { s.Desired.Pod.Status.QOSClass = c }
	}
	ended := func(s *pod.Snapshot) { s.Status.Phase = v1.PodSucceeded }
	ending := func(s *pod.Snapshot) { s.Desired.Termination = &pod.Termination{} }
	for what, tt := range map[string]struct {
		pods []pod.Snapshot
		want string
	}{
		"nothing asked":              {[]pod.Snapshot{asks("a", "1Gi", "1Gi")}, ""},
		"room":                       {[]pod.Snapshot{asks("a", "1Gi", "4Gi"), asks("b", "4Gi", "4Gi")}, "a granted"},
		"no room":                    {[]pod.Snapshot{asks("a", "1Gi", "5Gi"), asks("b", "4Gi", "4Gi")}, "a Deferred 5+4>8"},
		"more than the node has":     {[]pod.Snapshot{asks("a", "1Gi", "9Gi")}, "a Deferred 9+0>8"},
		"said before":                {[]pod.Snapshot{asks("a", "1Gi", "5Gi", waits(pod.ResizeDeferred, "5+4>8", 1)), asks("b", "4Gi", "4Gi")}, ""},
		"another message":            {[]pod.Snapshot{asks("a", "1Gi", "5Gi", waits(pod.ResizeDeferred, "5+7>8", 1)), asks("b", "4Gi", "4Gi")}, "a Deferred 5+4>8"},
		"the other has ended":        {[]pod.Snapshot{asks("a", "1Gi", "5Gi", waits(pod.ResizeDeferred, "5+4>8", 1)), asks("b", "4Gi", "4Gi", ended)}, "a granted"},
		"ended itself":               {[]pod.Snapshot{asks("a", "1Gi", "2Gi", ended), asks("b", "1Gi", "2Gi", ending)}, ""},
		"infeasible stays so":        {[]pod.Snapshot{asks("a", "1Gi", "2Gi", waits(pod.ResizeInfeasible, "x", 1))}, ""},
		"each grant counts":          {[]pod.Snapshot{asks("a", "2Gi", "4Gi"), asks("b", "2Gi", "6Gi")}, "a granted; b Deferred 6+4>8"},
		"decreases first":            {[]pod.Snapshot{asks("a", "2Gi", "4Gi"), asks("b", "4Gi", "1Gi")}, "b granted; a granted"},
		"held until it is in force":  {[]pod.Snapshot{asks("a", "2Gi", "5Gi"), asks("b", "4Gi", "1Gi")}, "b granted; a Deferred 5+4>8"},
		"priority":                   {[]pod.Snapshot{asks("a", "2Gi", "4Gi"), asks("b", "2Gi", "5Gi", withPriority(7))}, "b granted; a Deferred 4+5>8"},
		"guaranteed":                 {[]pod.Snapshot{asks("a", "2Gi", "4Gi"), asks("b", "2Gi", "5Gi", class(v1.PodQOSGuaranteed))}, "b granted; a Deferred 4+5>8"},
		"priority before guaranteed": {[]pod.Snapshot{asks("a", "2Gi", "4Gi", withPriority(1)), asks("b", "2Gi", "5Gi", class(v1.PodQOSGuaranteed))}, "a granted; b Deferred 5+4>8"},
		"the longest wait": {[]pod.Snapshot{
			asks("a", "2Gi", "4Gi"), asks("b", "2Gi", "4Gi", waits(pod.ResizeDeferred, "x", 9)), asks("c", "2Gi", "4Gi", waits(pod.ResizeDeferred, "y", 3)),
		}, "c granted; b Deferred 4+6>8; a Deferred 4+6>8"},
	} {
		if got := show(Decide(tt.pods, node(8))); got != tt.want {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
}

func TestInfeasible(t *testing.T) {
	n := node(8)
	n.Swap, n.ExclusiveCPUs, n.StaticMemory = true, true, true
	policy := func(p v1.ResourceResizeRestartPolicy) func(*pod.Snapshot) {
		return func(s *pod.Snapshot) {
			s.Desired.Pod.Spec.Containers[0].ResizePolicy = []v1.ContainerResizePolicy{{ResourceName: v1.ResourceMemory, RestartPolicy: p}}
		}
	}
	cpu := func(s *pod.Snapshot) {
		c := &s.Desired.Pod.Spec.Containers[0]
		c.Resources.Requests = v1.ResourceList{v1.ResourceMemory: resource.MustParse("1Gi"), v1.ResourceCPU: resource.MustParse("1")}
		s.Resize.Desired = pod.ResourcesOf(s.Desired.Pod)
	}
	guaranteed := func(s *pod.Snapshot) { s.Desired.Pod.Status.QOSClass = v1.PodQOSGuaranteed }
	for what, tt := range map[string]struct {
		pod  pod.Snapshot
		want string
	}{
		"swap":                    {asks("a", "1Gi", "2Gi"), "a Infeasible In-place resize of containers with swap is not supported."},
		"swap, restarted":         {asks("a", "1Gi", "2Gi", policy(v1.RestartContainer)), "a granted"},
		"swap, cpu alone":         {asks("a", "1Gi", "2Gi", cpu), "a granted"},
		"exclusive cpus":          {asks("a", "1Gi", "2Gi", cpu, guaranteed), `a Infeasible Resize is infeasible for Guaranteed Pods alongside CPU Manager policy "static"`},
		"memory of its own":       {asks("a", "1Gi", "2Gi", guaranteed), `a Infeasible Resize is infeasible for Guaranteed Pods alongside Memory Manager policy "Static"`},
		"burstable pods may":      {asks("a", "1Gi", "2Gi", cpu), "a granted"},
		"a node without all this": {asks("a", "1Gi", "2Gi", guaranteed), "a granted"},
	} {
		on := n
		if strings.HasPrefix(what, "a node") {
			on = node(8)
		}
		if got := show(Decide([]pod.Snapshot{tt.pod}, on)); got != tt.want {
			t.Errorf("%s: %s, want %s", what, got, tt.want)
		}
	}
}

package admission

import (
	"slices"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

func ranked(n int32) func(*v1.Pod) { return func(p *v1.Pod) { p.Spec.Priority = &n } }

// held is a running pod of a QoS class.
func held(name string, class v1.PodQOSClass, changes ...func(*v1.Pod)) pod.Snapshot {
	s := snapshot(podOf(name, both(changes...)), nil)
	s.Desired.Source, s.Status.QOSClass = pod.SourceAPI, class
	return s
}

func TestPreemption(t *testing.T) {
	node := Node{Name: "n", Allocatable: quantities("pods", "10", "cpu", "4", "memory", "4Gi")}
	guaranteed := func(name, cpu string) pod.Snapshot { return held(name, v1.PodQOSGuaranteed, asks("cpu", cpu)) }
	burstable := func(name, cpu string) pod.Snapshot { return held(name, v1.PodQOSBurstable, asks("cpu", cpu)) }
	ending := func(s pod.Snapshot) pod.Snapshot {
		s.Desired.Termination = &pod.Termination{}
		return s
	}
	static := func(s pod.Snapshot, n int32) pod.Snapshot {
		s.Desired.Source, s.Desired.Pod.Spec.Priority = pod.SourceFile, &n
		return s
	}
	nodeCritical := func(p *v1.Pod) { p.Spec.PriorityClassName = "system-node-critical" }
	tests := []struct {
		name   string
		source pod.Source
		change func(*v1.Pod)
		others []pod.Snapshot
		want   []pod.UID
		reason pod.Reason
	}{
		{"room enough", pod.SourceFile, asks("cpu", "1"), []pod.Snapshot{burstable("b", "3")}, nil, ""},
		{"an ordinary pod preempts nobody", pod.SourceAPI, asks("cpu", "2"), []pod.Snapshot{burstable("b", "3")}, nil, "OutOfcpu"},
		{"a priority below critical neither", pod.SourceAPI, both(asks("cpu", "2"), ranked(1000)), []pod.Snapshot{burstable("b", "3")}, nil, "OutOfcpu"},
		{"a critical priority", pod.SourceAPI, both(asks("cpu", "2"), ranked(2000000000)), []pod.Snapshot{burstable("b", "3")}, []pod.UID{"uid-b"}, ""},
		{"a critical class", pod.SourceAPI, both(asks("cpu", "2"), nodeCritical), []pod.Snapshot{burstable("b", "3")}, []pod.UID{"uid-b"}, ""},
		{"the node's own pod", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{burstable("b", "3")}, []pod.UID{"uid-b"}, ""},
		{"not one of its own rank", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{static(burstable("b", "3"), 0)}, nil, "OutOfcpu"},
		{"not a higher one", pod.SourceFile, both(asks("cpu", "2"), ranked(5)), []pod.Snapshot{static(burstable("b", "3"), 6)}, nil, "OutOfcpu"},
		{"a lower one", pod.SourceFile, both(asks("cpu", "2"), ranked(5)), []pod.Snapshot{static(burstable("b", "3"), 4)}, []pod.UID{"uid-b"}, ""},
		{"all would not do", pod.SourceFile, asks("cpu", "5"), []pod.Snapshot{burstable("b", "3")}, nil, "OutOfcpu"},
		{"no guaranteed pod where a burstable one does", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{guaranteed("g", "2"), burstable("b", "2")}, []pod.UID{"uid-b"}, ""},
		{"the guaranteed one where nothing else does", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{guaranteed("g", "3"), burstable("b", "1")}, []pod.UID{"uid-g"}, ""},
		{"the nearest, not the largest", pod.SourceFile, asks("cpu", "1"), []pod.Snapshot{burstable("a", "500m"), burstable("b", "2500m"), burstable("c", "1")}, []pod.UID{"uid-c"}, ""},
		{"the least in priority of two alike", pod.SourceFile, both(asks("cpu", "1"), ranked(9)), []pod.Snapshot{static(burstable("b", "2"), 7), static(burstable("c", "2"), 0)}, []pod.UID{"uid-c"}, ""},
		{"several", pod.SourceFile, asks("cpu", "3"), []pod.Snapshot{burstable("b", "2"), burstable("c", "2")}, []pod.UID{"uid-b", "uid-c"}, ""},
		{"one that is ending anyway", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{burstable("b", "2"), ending(guaranteed("g", "2"))}, []pod.UID{"uid-g"}, ""},
		{"one that is ending and holds nothing of it is not waited for", pod.SourceFile, asks("cpu", "2"), []pod.Snapshot{burstable("b", "4"), ending(burstable("c", "0"))}, []pod.UID{"uid-b"}, ""},
		{"places", pod.SourceFile, nil, func() (all []pod.Snapshot) {
			for _, n := range "0123456789" {
				all = append(all, held(string(n), v1.PodQOSBestEffort))
			}
			return append(all, held("g", v1.PodQOSGuaranteed, asks("cpu", "1")))
		}(), []pod.UID{"uid-0", "uid-1"}, ""},
		{"not if anything else is in the way", pod.SourceFile, both(asks("cpu", "2"), func(p *v1.Pod) { p.Spec.NodeName = "m" }), []pod.Snapshot{burstable("b", "3")}, nil, "OutOfcpu"},
		{"not if it could not run after all", pod.SourceFile, both(asks("cpu", "2"), func(p *v1.Pod) {
			p.Annotations = map[string]string{appArmorAnnotation + "c": "runtime/default"}
		}), []pod.Snapshot{burstable("b", "3")}, nil, "AppArmor"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := Decide(pod.Desired{Source: tt.source, Pod: podOf("new", tt.change)}, tt.others, node)
			if !slices.Equal(v.Preempt, tt.want) {
				t.Errorf("preempts %v, want %v", v.Preempt, tt.want)
			}
			if v.Rejection == nil && tt.reason != "" || v.Rejection != nil && v.Rejection.Reason != tt.reason {
				t.Errorf("rejection %+v, want %q", v.Rejection, tt.reason)
			}
		})
	}
}

package admission

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

func quantities(pairs ...string) v1.ResourceList {
	l := v1.ResourceList{}
	for i := 0; i < len(pairs); i += 2 {
		l[v1.ResourceName(pairs[i])] = resource.MustParse(pairs[i+1])
	}
	return l
}

func podOf(name string, change func(*v1.Pod)) *v1.Pod {
	p := &v1.Pod{}
	p.Name, p.Namespace, p.UID = name, "default", types.UID("uid-"+name)
	p.Spec.Containers = []v1.Container{{Name: "c"}}
	if change != nil {
		change(p)
	}
	return p
}

func asks(pairs ...string) func(*v1.Pod) {
	return func(p *v1.Pod) { p.Spec.Containers[0].Resources.Requests = quantities(pairs...) }
}

func port(protocol v1.Protocol, ip string, n int32) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.Containers[0].Ports = []v1.ContainerPort{{ContainerPort: 80, HostPort: n, HostIP: ip, Protocol: protocol}}
	}
}

func snapshot(p *v1.Pod, change func(*pod.Snapshot)) pod.Snapshot {
	s := pod.Snapshot{UID: pod.UID(p.UID), Desired: pod.Desired{Pod: p}, Status: v1.PodStatus{Phase: v1.PodRunning}}
	if change != nil {
		change(&s)
	}
	return s
}

func TestAdmit(t *testing.T) {
	always := v1.ContainerRestartPolicyAlways
	node := Node{Name: "n", Labels: map[string]string{"kubernetes.io/os": "linux", "disk": "ssd"},
		Allocatable: quantities("pods", "2", "cpu", "2", "memory", "1Gi", "hugepages-2Mi", "4Mi")}
	ended := func(s *pod.Snapshot) { s.Status.Phase = v1.PodSucceeded }
	tests := []struct {
		name    string
		pod     *v1.Pod
		others  []pod.Snapshot
		reason  pod.Reason
		message string
	}{
		{"fits exactly", podOf("a", asks("cpu", "1", "memory", "512Mi")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "1", "memory", "512Mi")), nil)}, "", ""},
		{"cpu", podOf("a", asks("cpu", "1500m")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "501m")), nil)}, "OutOfcpu", "Node didn't have enough resource: cpu, requested: 1500, used: 501, capacity: 2000"},
		{"memory", podOf("a", asks("memory", "2Gi")), nil, "OutOfmemory", "Node didn't have enough resource: memory, requested: 2147483648, used: 0, capacity: 1073741824"},
		{"cpu is told before memory", podOf("a", asks("memory", "2Gi", "cpu", "3")), nil, "OutOfcpu", ""},
		{"hugepages", podOf("a", asks("hugepages-2Mi", "6Mi")), nil, "OutOfhugepages-2Mi", ""},
		{"hugepages of a size that is not there", podOf("a", asks("hugepages-1Gi", "1Gi")), nil, "OutOfhugepages-1Gi", ""},
		{"ephemeral storage of unknown size", podOf("a", asks("ephemeral-storage", "1Ti")), nil, "", ""},
		{"extended", podOf("a", asks("example.com/gpu", "1")), nil, "OutOfexample.com/gpu", "no device plugins"},
		{"pods", podOf("a", nil), []pod.Snapshot{snapshot(podOf("b", nil), nil), snapshot(podOf("c", nil), nil)}, "OutOfpods", "Node didn't have enough resource: pods, requested: 1, used: 2, capacity: 2"},
		{"ended pods do not count", podOf("a", nil), []pod.Snapshot{snapshot(podOf("b", nil), nil), snapshot(podOf("c", nil), ended)}, "", ""},
		{"rejected pods do not count", podOf("a", asks("cpu", "2")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "2")), func(s *pod.Snapshot) { s.Desired.Rejection = &pod.Rejection{} })}, "", ""},
		{"pods that wait to be admitted do not count", podOf("a", asks("cpu", "2")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "2")), func(s *pod.Snapshot) { s.Status.Phase = v1.PodPending })}, "", ""},
		{"pods that are being set up count", podOf("a", asks("cpu", "2")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "2")), func(s *pod.Snapshot) { s.Status.Phase, s.Status.StartTime = v1.PodPending, &metav1.Time{} })}, "OutOfcpu", ""},
		{"its own snapshot does not count", podOf("a", asks("cpu", "2")), []pod.Snapshot{snapshot(podOf("a", asks("cpu", "2")), nil)}, "", ""},
		{"a pod ended by force counts while it runs", podOf("a", asks("cpu", "2")), []pod.Snapshot{snapshot(podOf("b", asks("cpu", "2")), func(s *pod.Snapshot) {
			ended(s)
			s.Desired.Termination = &pod.Termination{}
			s.Observed.Containers = []pod.Container{{State: pod.Running}}
		})}, "OutOfcpu", ""},
		{"port", podOf("a", port("TCP", "", 80)), []pod.Snapshot{snapshot(podOf("b", port("", "127.0.0.1", 80)), nil)}, "NodePorts", "TCP port 80 is held by pod default/b"},
		{"port of the same address", podOf("a", port("TCP", "::ffff:10.0.0.1", 80)), []pod.Snapshot{snapshot(podOf("b", port("TCP", "10.0.0.1", 80)), nil)}, "NodePorts", ""},
		{"port of every address", podOf("a", port("TCP", "0.0.0.0", 80)), []pod.Snapshot{snapshot(podOf("b", port("TCP", "10.0.0.1", 80)), nil)}, "NodePorts", ""},
		{"port of another address", podOf("a", port("TCP", "10.0.0.2", 80)), []pod.Snapshot{snapshot(podOf("b", port("TCP", "10.0.0.1", 80)), nil)}, "", ""},
		{"port of another protocol", podOf("a", port("UDP", "", 80)), []pod.Snapshot{snapshot(podOf("b", port("TCP", "", 80)), nil)}, "", ""},
		{"port of a sidecar", podOf("a", func(p *v1.Pod) {
			p.Spec.InitContainers = []v1.Container{{RestartPolicy: &always, Ports: []v1.ContainerPort{{HostPort: 80}}}}
		}), []pod.Snapshot{snapshot(podOf("b", port("TCP", "", 80)), nil)}, "NodePorts", ""},
		{"a reason of its own and too little cpu", podOf("a", func(p *v1.Pod) { asks("cpu", "3")(p); p.Spec.NodeName = "m" }), nil, "OutOfcpu", ""},
		{"node selector", podOf("a", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "hdd"} }), nil, "NodeAffinity", "Predicate NodeAffinity failed: node(s) didn't match Pod's node affinity/selector"},
		{"node selector that matches", podOf("a", func(p *v1.Pod) { p.Spec.NodeSelector = map[string]string{"disk": "ssd"} }), nil, "", ""},
		{"affinity", podOf("a", func(p *v1.Pod) {
			p.Spec.Affinity = &v1.Affinity{NodeAffinity: &v1.NodeAffinity{RequiredDuringSchedulingIgnoredDuringExecution: &v1.NodeSelector{NodeSelectorTerms: []v1.NodeSelectorTerm{
				{MatchExpressions: []v1.NodeSelectorRequirement{{Key: "disk", Operator: v1.NodeSelectorOpDoesNotExist}}},
			}}}}
		}), nil, "NodeAffinity", ""},
		{"node name", podOf("a", func(p *v1.Pod) { p.Spec.NodeName = "m" }), nil, "NodeName", "this node is n, the pod wants m"},
		{"node affinity comes before node name", podOf("a", func(p *v1.Pod) { p.Spec.NodeName, p.Spec.NodeSelector = "m", map[string]string{"disk": "hdd"} }), nil, "NodeAffinity", ""},
		{"os", podOf("a", func(p *v1.Pod) { p.Spec.OS = &v1.PodOS{Name: v1.Windows} }), nil, "PodOSNotSupported", ""},
		{"os label", podOf("a", func(p *v1.Pod) { p.Labels = map[string]string{"kubernetes.io/os": "windows"} }), nil, "PodOSSelectorNodeLabelDoesNotMatch", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			v := Decide(pod.Desired{Pod: tt.pod}, tt.others, node)
			got := v.Rejection
			if len(v.Preempt) > 0 {
				t.Errorf("preempts %v", v.Preempt)
			}
			switch {
			case got == nil && tt.reason != "":
				t.Errorf("admitted, want %s", tt.reason)
			case got != nil && (got.Reason != tt.reason || !strings.Contains(got.Message, tt.message)):
				t.Errorf("got %+v, want %s %q", got, tt.reason, tt.message)
			}
		})
	}
}

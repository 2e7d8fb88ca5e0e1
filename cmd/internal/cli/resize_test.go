package cli

import (
	"encoding/json"
	"errors"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

func TestResizePatch(t *testing.T) {
	p := &v1.Pod{Spec: v1.PodSpec{InitContainers: []v1.Container{{Name: "i"}}, Containers: []v1.Container{{Name: "a"}, {Name: "b"}}}}
	p.Name = "web"
	one := &v1.Pod{Spec: v1.PodSpec{Containers: []v1.Container{{Name: "a"}}}}
	for _, x := range []struct {
		pod       *v1.Pod
		container string
		whole     bool
		want      string
	}{
		{one, "", false, `{"spec":{"containers":[{"name":"a","resources":{"requests":{"cpu":"1"}}}]}}`},
		{p, "b", false, `{"spec":{"containers":[{"name":"b","resources":{"requests":{"cpu":"1"}}}]}}`},
		{p, "i", false, `{"spec":{"initContainers":[{"name":"i","resources":{"requests":{"cpu":"1"}}}]}}`},
		{p, "", true, `{"spec":{"resources":{"requests":{"cpu":"1"}}}}`},
		{p, "", false, "pod web has several containers (i, a, b): name one with -c, or give --pod"},
		{p, "x", false, "pod web has no container x that could be resized: it has i, a, b"},
	} {
		requests, err := quantities("--requests", "cpu=1")
		if err != nil {
			t.Fatal(err)
		}
		r := &resize{container: x.container, whole: x.whole}
		patch, err := r.patch(x.pod, v1.ResourceRequirements{Requests: requests})
		got := ""
		if err != nil {
			got = err.Error()
		} else if text, err := json.Marshal(patch); err == nil {
			got = string(text)
		}
		if got != x.want {
			t.Errorf("-c %q --pod=%v: %s, want %s", x.container, x.whole, got, x.want)
		}
	}
	for _, bad := range []string{"cpu", "cpu=", "cpu=x", "gpu=1", "cpu=1,memory"} {
		if _, err := quantities("--limits", bad); err == nil || !strings.HasPrefix(err.Error(), "--limits "+bad) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// TestResizeOutcome: waiting ends when it is known what becomes of a resize, and
// not before.
func TestResizeOutcome(t *testing.T) {
	const spec = `
spec: {containers: [{name: a, resources: {requests: {cpu: 200m}, limits: {cpu: 500m}}}]}
status:
  observedGeneration: 3
`
	for what, x := range map[string]struct{ status, want string }{
		"in force":      {"  containerStatuses: [{name: a, allocatedResources: {cpu: 200m}, resources: {requests: {cpu: 200m}, limits: {cpu: '0.5'}}}]", errResized.Error()},
		"not decided":   {"  containerStatuses: [{name: a, allocatedResources: {cpu: 100m}, resources: {requests: {cpu: 100m}, limits: {cpu: 500m}}}]", ""},
		"a limit alone": {"  containerStatuses: [{name: a, allocatedResources: {cpu: 200m}, resources: {requests: {cpu: 200m}, limits: {cpu: 400m}}}]", ""},
		"in progress":   {"  conditions: [{type: PodResizeInProgress, status: 'True'}]", ""},
		"failing":       {"  conditions: [{type: PodResizeInProgress, status: 'True', reason: Error, message: too full}]", "fails, and is tried again: too full"},
		"deferred":      {"  conditions: [{type: PodResizePending, status: 'True', reason: Deferred, message: no room}]", "as soon as there is room: no room"},
		"infeasible":    {"  conditions: [{type: PodResizePending, status: 'True', reason: Infeasible, message: never}]", "cannot be resized on this node: never"},
	} {
		p := &v1.Pod{}
		if err := yaml.Unmarshal([]byte(spec+x.status), p); err != nil {
			t.Fatal(err)
		}
		err := outcome(p, 3)
		if x.want == "" && err != nil || x.want != "" && (err == nil || !strings.Contains(err.Error(), x.want)) {
			t.Errorf("%s: %v, want %q", what, err, x.want)
		}
		if err := outcome(p, 4); err != nil {
			t.Errorf("%s: an older state says %v", what, err)
		}
	}
	p := &v1.Pod{}
	p.Spec.Resources = &v1.ResourceRequirements{Limits: v1.ResourceList{v1.ResourceCPU: {}}}
	if err := outcome(p, 0); err != nil {
		t.Errorf("without a status of the pod's own resources: %v", err)
	}
	p.Status.Resources = p.Spec.Resources
	if err := outcome(p, 0); !errors.Is(err, errResized) {
		t.Errorf("with it: %v", err)
	}
}

package server

import (
	"strings"
	"testing"

	"github.com/berthd/berth/agent/pod"
)

// TestWhyOfManifests asks about pods that are not there because of their
// manifests, and about those that run in spite of them.
func TestWhyOfManifests(t *testing.T) {
	web := Ref{"Pod", "default", "refused"}
	n := &node{pods: []pod.Snapshot{snapshot("web", pod.SourceFile)}}
	n.pods[0].Explanation = pod.Explanation{Well: true, Cause: "The pod runs and is ready."}
	n.problems = []Problem{
		{File: "/m/a.yaml", Line: 7, Object: web, FieldPath: "spec.volumes[0]", Message: "needs a cluster: remove the field"},
		{File: "/m/a.yaml", Line: 9, Object: web, FieldPath: "spec.x", Message: "unknown field"},
		{File: "/m/broken.yaml", Line: 3, Message: "this is not YAML"},
		{File: "/m/web.yaml", Line: 4, Object: Ref{"Pod", "default", "web"}, Message: "unknown field"},
		{File: "/m/b.yaml", Line: 1, Object: Ref{"Pod", "kube-system", "other"}, Message: "no"},
	}
	c, _, _ := serve(t, n)
	for _, x := range []struct {
		name string
		code int
		has  []string
	}{
		{"refused", 200, []string{
			`"well":false`, `/m/a.yaml:7: spec.volumes[0]: needs a cluster`, `"reason":"FailedValidation"`, `read again as soon as it changes`,
			`"advice":"Correct spec.volumes[0] in line 7 of /m/a.yaml."`, `"line":9`,
		}},
		{"broken", 200, []string{`/m/broken.yaml:3: this is not YAML`, `"advice":"Correct line 3 of /m/broken.yaml."`}},
		{"web", 200, []string{`"well":true`, `The pod runs and is ready. Its manifest has a problem`, `"problems":[{"file":"/m/web.yaml","line":4`}},
		{"other", 404, []string{`a manifest that cannot be read may hold it: /m/broken.yaml:3`}},
	} {
		code, got := call(t, c, "GET", "/berth/v1/why/default/"+x.name, "")
		if code != x.code {
			t.Errorf("%s: %d %s", x.name, code, got)
		}
		for _, want := range x.has {
			if !strings.Contains(got, want) {
				t.Errorf("%s: %q lacks %q", x.name, got, want)
			}
		}
	}
	if code, got := call(t, c, "GET", "/berth/v1/pods/default/refused", ""); code != 404 || !strings.Contains(got, "its manifest cannot be used: /m/a.yaml:7") {
		t.Errorf("describe of a refused pod: %d %s", code, got)
	}
}

// TestWhyOfSuccessor asks about a pod whose successor waits for its end.
func TestWhyOfSuccessor(t *testing.T) {
	old, next := snapshot("web", pod.SourceFile), snapshot("web", pod.SourceFile)
	next.UID, old.Explanation.Well = "uid-next", true
	c, _, _ := serve(t, &node{pods: []pod.Snapshot{old, next}})
	if _, got := call(t, c, "GET", "/berth/v1/why/default/web", ""); !strings.Contains(got, `"well":false`) || !strings.Contains(got, "another pod of the same name waits") {
		t.Error(got)
	}
}

package server

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthd/berth/agent/pod"
)

func TestResize(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("web", pod.SourceRun)}}
	run := &v1.Pod{Spec: v1.PodSpec{
		InitContainers: []v1.Container{{Name: "i"}},
		Containers:     []v1.Container{{Name: "c", Resources: v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceCPU: resource.MustParse("1"), v1.ResourceMemory: resource.MustParse("1Gi")}}}},
	}}
	var got string
	amend := Amend{Resize: func(_ context.Context, _ pod.UID, p ResizePatch) (int64, error) {
		next, err := p.Onto(run)
		if err != nil {
			return 0, err
		}
		text, err := json.Marshal([]any{next.Spec.Resources, next.Spec.InitContainers[0].Resources, next.Spec.Containers[0].Resources})
		if got = string(text); strings.Contains(got, "666") {
			return 0, &pod.Error{Op: "resize pod", Kind: pod.Invalid, Err: errors.New("spec.containers[0].resources: no")}
		}
		return 7, err
	}}
	for _, x := range []struct {
		body, got, has string
		code           int
	}{
		{`{"spec":{"containers":[{"name":"c","resources":{"requests":{"cpu":"2"}}}]}}`, `[null,{},{"requests":{"cpu":"2","memory":"1Gi"}}]`, `{"generation":7}`, 200},
		{`{"spec":{"containers":[{"name":"c","resources":{"limits":{"cpu":"2"}}}],"initContainers":[{"name":"i","resources":{"requests":{"memory":"1Mi"}}}]}}`,
			`[null,{"requests":{"memory":"1Mi"}},{"limits":{"cpu":"2"},"requests":{"cpu":"1","memory":"1Gi"}}]`, `{"generation":7}`, 200},
		{`{"spec":{"resources":{"limits":{"memory":"2Gi"}}}}`, `[{"limits":{"memory":"2Gi"}},{},{"requests":{"cpu":"1","memory":"1Gi"}}]`, `{"generation":7}`, 200},
		{`{"spec":{"containers":[{"name":"x","resources":{}}]}}`, "", `no container \"x\"`, 422},
		{`{"spec":{"containers":[{"name":"c","image":"y"}]}}`, "", "image", 400},
		{`{"spec":{"resources":{"limits":{"memory":"666"}}}}`, `[{"limits":{"memory":"666"}},{},{"requests":{"cpu":"1","memory":"1Gi"}}]`, "spec.containers[0].resources: no", 422},
		{`{"spec":{"resources":{"limits":{"memory":"lots"}}}}`, "", "not understood", 400},
	} {
		got = ""
		s := New(Config{Pods: n, Events: n, Sources: n, Amend: amend, Log: slog.New(slog.DiscardHandler)})
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest("PUT", "/berth/v1/pods/default/web/resize", strings.NewReader(x.body)))
		if w.Code != x.code || got != x.got || !strings.Contains(w.Body.String(), x.has) {
			t.Errorf("%s: %d %s, pod became %s", x.body, w.Code, w.Body, got)
		}
	}
	if r := run.Spec.Containers[0].Resources.Requests[v1.ResourceCPU]; r.String() != "1" {
		t.Error("a patch changed the pod it was laid onto")
	}
}

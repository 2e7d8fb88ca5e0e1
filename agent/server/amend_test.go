package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http/httptest"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// TestAmend: what is asked for reaches the pod that was named, and a refusal
// comes back with the code that says whose fault it is.
func TestAmend(t *testing.T) {
	n := &node{pods: []pod.Snapshot{snapshot("web", pod.SourceRun)}}
	var got string
	answer := func(kind pod.Kind, name string) error {
		if name != "bad" {
			return nil
		}
		return &pod.Error{Op: "amend", Kind: kind, Err: errors.New("why not")}
	}
	amend := Amend{
		Ephemeral: func(_ context.Context, uid pod.UID, c v1.EphemeralContainer) error {
			got = fmt.Sprint(uid, " ", c.Name, " ", c.Image, " ", c.TargetContainerName)
			return answer(pod.Invalid, c.Name)
		},
		Condition: func(_ context.Context, uid pod.UID, c v1.PodCondition) error {
			got = fmt.Sprint(uid, " ", c.Type, "=", c.Status)
			return answer(pod.Exhausted, string(c.Type))
		},
	}
	const path = "/berth/v1/pods/default/web/"
	for _, x := range []struct {
		method, path, body string
		amend              Amend
		code               int
		has, got           string
	}{
		{"POST", path + "ephemeralcontainers", `{"name":"d","image":"i","targetContainerName":"main"}`, amend, 200, `{"container":"d"}`, "uid-web d i main"},
		{"POST", path + "ephemeralcontainers", `{"name":"bad","image":"i"}`, amend, 422, "why not", "uid-web bad i "},
		{"POST", path + "ephemeralcontainers", `{"name":"d","imgae":"i"}`, amend, 400, "imgae", ""},
		{"POST", path + "ephemeralcontainers", `{"name":"d"} {}`, amend, 400, "goes on", ""},
		{"POST", path + "ephemeralcontainers", `{"name":"` + strings.Repeat("x", maxAmendBody) + `"}`, amend, 413, "larger", ""},
		{"POST", path + "ephemeralcontainers", `{"name":"d"}`, Amend{}, 501, "does not change", ""},
		{"POST", "/berth/v1/pods/default/none/ephemeralcontainers", `{"name":"d"}`, amend, 404, "none", ""},
		{"PUT", path + "conditions", `{"type":"lb","status":"True"}`, amend, 200, `{"condition":"lb","status":"True"}`, "uid-web lb=True"},
		{"PUT", path + "conditions", `{"type":"bad","status":"True"}`, amend, 409, "why not", "uid-web bad=True"},
		{"PUT", path + "conditions", `{"type":"lb","status":"True"}`, Amend{}, 501, "does not change", ""},
	} {
		got = ""
		s := New(Config{Pods: n, Events: n, Sources: n, Amend: x.amend, Log: slog.New(slog.DiscardHandler)})
		w := httptest.NewRecorder()
		s.Handler().ServeHTTP(w, httptest.NewRequest(x.method, x.path, strings.NewReader(x.body)))
		if w.Code != x.code || !strings.Contains(w.Body.String(), x.has) || got != x.got {
			t.Errorf("%s %s %.40s: %d %s, passed on %q", x.method, x.path, x.body, w.Code, w.Body, got)
		}
	}
}

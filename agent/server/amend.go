package server

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// Amend changes running pods from outside their manifests. Each method returns
// when the change is on disk, and errors are *pod.Error.
type Amend struct {
	// Ephemeral adds an ephemeral container for good; the pod's worker starts it.
	Ephemeral func(ctx context.Context, uid pod.UID, c v1.EphemeralContainer) error
	// Condition sets a condition that a readiness gate waits for.
	Condition func(ctx context.Context, uid pod.UID, c v1.PodCondition) error
	// Resize asks for other resources, and returns the generation of the pod with them.
	Resize func(ctx context.Context, uid pod.UID, patch ResizePatch) (generation int64, err error)
}

// maxAmendBody bounds one container or condition.
const maxAmendBody = 1 << 20

// addEphemeral adds the container that the request's body is.
func (s *Server) addEphemeral(w http.ResponseWriter, r *http.Request) {
	var c v1.EphemeralContainer
	s.amend(w, r, &c, func(ctx context.Context, uid pod.UID) (any, error) {
		if s.config.Amend.Ephemeral == nil {
			return nil, errNotAmendable
		}
		return map[string]string{"container": c.Name}, s.config.Amend.Ephemeral(ctx, uid, c)
	})
}

// setCondition sets the condition that the request's body is.
func (s *Server) setCondition(w http.ResponseWriter, r *http.Request) {
	var c v1.PodCondition
	s.amend(w, r, &c, func(ctx context.Context, uid pod.UID) (any, error) {
		if s.config.Amend.Condition == nil {
			return nil, errNotAmendable
		}
		return map[string]string{"condition": string(c.Type), "status": string(c.Status)}, s.config.Amend.Condition(ctx, uid, c)
	})
}

var errNotAmendable = refuse(http.StatusNotImplemented, "this agent does not change running pods")

// amend reads the body into what, and answers with what change makes of it.
func (s *Server) amend(w http.ResponseWriter, r *http.Request, what any, change func(context.Context, pod.UID) (any, error)) {
	text, err := body(w, r, maxAmendBody)
	if err != nil {
		s.fail(w, err)
		return
	}
	if err := strict(text, what); err != nil {
		s.fail(w, err)
		return
	}
	snap, ok := s.find(w, r)
	if !ok {
		return
	}
	out, err := change(r.Context(), snap.UID)
	var e *pod.Error
	switch {
	case errors.As(err, &e) && e.Kind == pod.Invalid:
		err = refuse(http.StatusUnprocessableEntity, "%v", err)
	case errors.As(err, &e) && e.Kind == pod.Exhausted:
		err = refuse(http.StatusConflict, "%v", err)
	}
	if err != nil {
		s.fail(w, err)
		return
	}
	s.answer(w, http.StatusOK, out)
}

// strict reads exactly one JSON object without fields that out has not.
func strict(text []byte, out any) error {
	d := json.NewDecoder(strings.NewReader(string(text)))
	d.DisallowUnknownFields()
	if err := d.Decode(out); err != nil {
		return refuse(http.StatusBadRequest, "the request's body is not understood: %v", err)
	}
	if _, err := d.Token(); !errors.Is(err, io.EOF) {
		return refuse(http.StatusBadRequest, "the request's body goes on after its object")
	}
	return nil
}

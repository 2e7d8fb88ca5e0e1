package server

import (
	"context"
	"fmt"
	"net/http"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// ResizePatch says what a pod is to ask for: of cpu and memory what it names, the
// rest stays. It is what kubectl patches the subresource resize with, that part
// of a pod which can be changed.
type ResizePatch struct {
	Spec struct {
		Resources      *v1.ResourceRequirements `json:"resources,omitempty"`
		InitContainers []ContainerPatch         `json:"initContainers,omitempty"`
		Containers     []ContainerPatch         `json:"containers,omitempty"`
	} `json:"spec"`
}

// ContainerPatch is the part for one container.
type ContainerPatch struct {
	Name      string                  `json:"name"`
	Resources v1.ResourceRequirements `json:"resources"`
}

// Onto returns p with what the patch changes; p stays as it is. It fails if the
// patch names what p does not have.
func (r ResizePatch) Onto(p *v1.Pod) (*v1.Pod, error) {
	next := p.DeepCopy()
	if r.Spec.Resources != nil {
		if next.Spec.Resources == nil {
			next.Spec.Resources = &v1.ResourceRequirements{}
		}
		merge(next.Spec.Resources, *r.Spec.Resources)
	}
	for _, part := range []struct {
		what       string
		containers []v1.Container
		patches    []ContainerPatch
	}{{"init container", next.Spec.InitContainers, r.Spec.InitContainers}, {"container", next.Spec.Containers, r.Spec.Containers}} {
		for _, patch := range part.patches {
			if !patched(part.containers, patch) {
				return nil, &pod.Error{Op: "resize pod", Kind: pod.Invalid, Err: fmt.Errorf("the pod has no %s %q", part.what, patch.Name)}
			}
		}
	}
	return next, nil
}

func patched(containers []v1.Container, patch ContainerPatch) bool {
	for i := range containers {
		if containers[i].Name == patch.Name {
			merge(&containers[i].Resources, patch.Resources)
			return true
		}
	}
	return false
}

func merge(have *v1.ResourceRequirements, want v1.ResourceRequirements) {
	for _, l := range []struct {
		have *v1.ResourceList
		want v1.ResourceList
	}{{&have.Requests, want.Requests}, {&have.Limits, want.Limits}} {
		for name, q := range l.want {
			if *l.have == nil {
				*l.have = v1.ResourceList{}
			}
			(*l.have)[name] = q
		}
	}
}

// resize asks for other resources for a running pod, and answers once that is on
// disk, with the generation that the pod has then. What becomes of it is told by
// the pod's conditions and events.
func (s *Server) resize(w http.ResponseWriter, r *http.Request) {
	var patch ResizePatch
	s.amend(w, r, &patch, func(ctx context.Context, uid pod.UID) (any, error) {
		if s.config.Amend.Resize == nil {
			return nil, errNotAmendable
		}
		generation, err := s.config.Amend.Resize(ctx, uid, patch)
		return map[string]int64{"generation": generation}, err
	})
}

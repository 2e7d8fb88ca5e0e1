package server

import (
	"fmt"
	"net/http"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

func (s *Server) listPods(w http.ResponseWriter, r *http.Request) {
	l := v1.PodList{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "PodList"}, Items: []v1.Pod{}}
	for _, snap := range s.config.Pods.List() {
		if inNamespace(r, snap) {
			l.Items = append(l.Items, *s.config.Pods.Render(snap))
		}
	}
	s.answer(w, http.StatusOK, l)
}

// inNamespace says whether r asks for pods of s's namespace; no namespace is any.
func inNamespace(r *http.Request, s pod.Snapshot) bool {
	ns := r.URL.Query().Get("namespace")
	return ns == "" || s.Desired.Pod.Namespace == ns
}

// find returns the pod that r's path names, or answers that there is none.
func (s *Server) find(w http.ResponseWriter, r *http.Request) (pod.Snapshot, bool) {
	ns, name := r.PathValue("ns"), r.PathValue("pod")
	snap, ok := s.config.Pods.Get(ns, name)
	if !ok {
		s.fail(w, refuse(http.StatusNotFound, "pod %q not found in namespace %q on this node%s%s", name, ns, s.elsewhere(ns, name), s.perhaps(ns, name)))
	}
	return snap, ok
}

// elsewhere names a namespace that has a pod of this name.
func (s *Server) elsewhere(ns, name string) string {
	for _, snap := range s.config.Pods.List() {
		if p := snap.Desired.Pod; p.Name == name && p.Namespace != ns {
			return fmt.Sprintf("; there is one in namespace %q", p.Namespace)
		}
	}
	return ""
}

// perhaps says which manifest's problem may be why there is no such pod.
func (s *Server) perhaps(ns, name string) string {
	problems := s.problemsOf(ns, name, "")
	if len(problems) > 0 {
		return "; its manifest cannot be used: " + problems[0].String()
	}
	for _, p := range s.config.Sources.Problems() {
		if p.Object == (Ref{}) {
			return "; a manifest that cannot be read may hold it: " + p.String()
		}
	}
	return ""
}

// inFlight is an action under way.
type inFlight struct {
	Op        pod.Op            `json:"op"`
	Container pod.ContainerName `json:"container,omitempty"`
}

// description is all that is known of one pod.
type description struct {
	Pod         *v1.Pod     `json:"pod"`
	Explanation explanation `json:"explanation"`
	InFlight    []inFlight  `json:"inFlight"`
	Manifest    string      `json:"manifest"`
	Problems    []Problem   `json:"problems"`
}

func (s *Server) describePod(w http.ResponseWriter, r *http.Request) {
	snap, ok := s.find(w, r)
	if !ok {
		return
	}
	p := s.config.Pods.Render(snap)
	d := description{
		Pod: p, Explanation: s.explain(snap), InFlight: []inFlight{}, Manifest: s.config.Sources.ManifestOf(snap.Desired.Pod),
	}
	for _, a := range snap.InFlight {
		d.InFlight = append(d.InFlight, inFlight{a.Op, a.Container})
	}
	d.Problems, d.Explanation.Problems = append([]Problem{}, d.Explanation.Problems...), nil
	s.answer(w, http.StatusOK, d)
}

// podChange is one line of a watch. Type is ADDED, MODIFIED, DELETED or BOOKMARK:
// what was there when the watch began has been told.
type podChange struct {
	Type        string       `json:"type"`
	Pod         *v1.Pod      `json:"pod,omitempty"`
	Explanation *explanation `json:"explanation,omitempty"`
}

func (s *Server) watchPods(w http.ResponseWriter, r *http.Request) {
	ctx, end := stream(r)
	defer end()
	out := newLines(w)
	told := map[pod.UID]time.Time{}
	err := s.config.Pods.Watch(ctx, func(snap pod.Snapshot, gone bool) error {
		at, known := told[snap.UID]
		if !inNamespace(r, snap) || gone && !known || known && !gone && at.Equal(snap.At) {
			return nil
		}
		e := explain(snap)
		c := podChange{Type: "MODIFIED", Pod: s.config.Pods.Render(snap), Explanation: &e}
		told[snap.UID] = snap.At
		if gone {
			c.Type = "DELETED"
			delete(told, snap.UID)
		} else if !known {
			c.Type = "ADDED"
		}
		return out.put(c)
	}, func() error { return out.put(podChange{Type: "BOOKMARK"}) })
	s.endOfWatch(ctx.Err() == nil, out, err)
}

// endOfWatch tells a client that is still there why nothing more comes.
func (s *Server) endOfWatch(there bool, out lines, err error) {
	if there && err != nil {
		_ = out.put(map[string]any{"type": "ERROR", "error": err.Error()}) // it was to hear of another failure
	}
}

func (s *Server) why(w http.ResponseWriter, r *http.Request) {
	ns, name := r.PathValue("ns"), r.PathValue("pod")
	if _, ok := s.config.Pods.Get(ns, name); !ok {
		if problems := s.problemsOf(ns, name, ""); len(problems) > 0 {
			s.answer(w, http.StatusOK, refused(ns, name, problems))
			return
		}
	}
	if snap, ok := s.find(w, r); ok {
		s.answer(w, http.StatusOK, s.explain(snap))
	}
}

// statuses returns the status of every container of a pod, init containers first.
func statuses(s *v1.PodStatus) []v1.ContainerStatus {
	return slices.Concat(s.InitContainerStatuses, s.ContainerStatuses, s.EphemeralContainerStatuses)
}

package server

import (
	"fmt"
	"net/http"
	"strconv"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// applied answers an apply. If nothing could be applied it is a Kubernetes Status too.
type applied struct {
	*metav1.Status
	Applied  []Applied `json:"applied"`
	Problems []Problem `json:"problems"`
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request) {
	dryRun, err := truth(r, "dryRun")
	if err != nil {
		s.fail(w, err)
		return
	}
	documents, err := body(w, r, maxApplyBody)
	if err != nil {
		s.fail(w, err)
		return
	}
	done, problems, err := s.config.Sources.Apply(r.Context(), documents, dryRun)
	if err != nil {
		s.fail(w, err)
		return
	}
	out := applied{Applied: append([]Applied{}, done...), Problems: append([]Problem{}, problems...)}
	if len(done) > 0 {
		s.answer(w, http.StatusOK, out)
		return
	}
	why := "there is no object in what was sent"
	if len(problems) > 0 {
		why = fmt.Sprintf("nothing was applied, for %d problems; the first: %s", len(problems), problems[0].Message)
		if len(problems) == 1 {
			why = "nothing was applied: " + problems[0].Message
		}
	}
	st := status(refuse(http.StatusUnprocessableEntity, "%s", why))
	out.Status = &st
	s.answer(w, http.StatusUnprocessableEntity, out)
}

func (s *Server) problems(w http.ResponseWriter, _ *http.Request) {
	s.answer(w, http.StatusOK, map[string][]Problem{"problems": append([]Problem{}, s.config.Sources.Problems()...)})
}

// maxGrace keeps a grace period within what a duration can hold.
const maxGrace = 10 * 365 * 24 * 3600

func grace(r *http.Request) (*time.Duration, error) {
	text := r.URL.Query().Get("grace")
	if text == "" {
		return nil, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 0 || n > maxGrace {
		return nil, refuse(http.StatusBadRequest, "grace=%q: expected a whole number of seconds, 0 or more", text)
	}
	d := time.Duration(n) * time.Second
	return &d, nil
}

// stop ends a pod. An applied pod is terminated first, which sets its grace
// period, and then taken out of the desired state: done again it finds what is
// left to do.
func (s *Server) stop(w http.ResponseWriter, r *http.Request) {
	force, err := truth(r, "force")
	if err != nil {
		s.fail(w, err)
		return
	}
	d, err := grace(r)
	if err != nil {
		s.fail(w, err)
		return
	}
	snap, ok := s.find(w, r)
	if !ok {
		return
	}
	p := snap.Desired.Pod
	if source := snap.Desired.Source; (source == pod.SourceFile || source == pod.SourceHTTP) && !snap.Desired.Forget && !force {
		s.fail(w, refuse(http.StatusConflict, "pod %s/%s is wanted by %s: %s", p.Namespace, p.Name, s.manifest(snap), remedy(source)))
		return
	}
	known := s.config.Terminate(snap.UID, pod.Termination{Requested: time.Now(), Grace: d})
	found, err := s.remove(r, snap)
	if err != nil {
		s.fail(w, fmt.Errorf("pod %s/%s is being stopped, but would come back when the agent restarts: %w", p.Namespace, p.Name, err))
		return
	}
	if !known && !found {
		s.fail(w, refuse(http.StatusNotFound, "pod %s/%s has ended and is gone", p.Namespace, p.Name))
		return
	}
	s.answer(w, http.StatusAccepted, map[string]string{"stopping": p.Namespace + "/" + p.Name})
}

func (s *Server) remove(r *http.Request, snap pod.Snapshot) (bool, error) {
	if snap.Desired.Source != pod.SourceRun {
		return false, nil
	}
	return s.config.Sources.Remove(r.Context(), snap.Desired.Pod.Namespace, snap.Desired.Pod.Name)
}

func (s *Server) manifest(snap pod.Snapshot) string {
	if m := s.config.Sources.ManifestOf(snap.Desired.Pod); m != "" {
		return m
	}
	return "a manifest"
}

func remedy(source pod.Source) string {
	if source == pod.SourceHTTP {
		return "take it out there to remove the pod, or stop it by force: then it stays ended until what is served there changes"
	}
	return "remove that file (or the pod from it) to remove the pod, or stop it by force: then it stays ended until the file changes"
}

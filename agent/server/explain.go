package server

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// explanation is pod.Explanation as it is shown, with where each container stands.
type explanation struct {
	Pod        string            `json:"pod"` // namespace/name
	Phase      v1.PodPhase       `json:"phase"`
	Well       bool              `json:"well"`
	Cause      string            `json:"cause"`
	Reason     pod.Reason        `json:"reason,omitempty"`
	Container  pod.ContainerName `json:"container,omitempty"`
	Since      time.Time         `json:"since,omitzero"`
	Next       string            `json:"next,omitempty"`
	NextAt     time.Time         `json:"nextAt,omitzero"`
	Advice     string            `json:"advice,omitempty"`
	Containers []containerState  `json:"containers"`
	// Problems are those of the pod's manifest.
	Problems []Problem `json:"problems,omitempty"`
}

// containerState says where a container stands: waiting, running or terminated, and more in words.
type containerState struct {
	Name   string `json:"name"`
	State  string `json:"state"`
	Detail string `json:"detail"`
}

func explain(s pod.Snapshot) explanation {
	e, p := s.Explanation, s.Desired.Pod
	out := explanation{
		Pod: p.Namespace + "/" + p.Name, Phase: s.Status.Phase, Well: e.Well, Cause: e.Cause, Reason: e.Reason, Container: e.Container,
		Since: e.Since, Next: e.Next, NextAt: e.NextAt, Advice: e.Advice, Containers: []containerState{},
	}
	for _, c := range statuses(&s.Status) {
		ephemeral := slices.ContainsFunc(s.Status.EphemeralContainerStatuses, func(e v1.ContainerStatus) bool { return e.Name == c.Name })
		out.Containers = append(out.Containers, describe(c, ephemeral))
	}
	return out
}

// explain is explain with what the pod's manifest and its successor have to do with it.
func (s *Server) explain(snap pod.Snapshot) explanation {
	p := snap.Desired.Pod
	out := explain(snap)
	out.Problems = s.problemsOf(p.Namespace, p.Name, s.config.Sources.ManifestOf(p))
	if len(out.Problems) > 0 && out.Well {
		out.Cause += " Its manifest has a problem, though, and it goes on as it was."
	}
	for _, o := range s.config.Pods.List() {
		if q := o.Desired.Pod; o.UID != snap.UID && q.Namespace == p.Namespace && q.Name == p.Name {
			out.Cause += " Its manifest has changed: another pod of the same name waits for the end of this one."
			out.Well = false
			break
		}
	}
	return out
}

// problemsOf are the problems of the manifest of a pod. file is the one that the
// pod came from, "" if it is not known: then a problem of which the pod cannot be
// told belongs to the pod that its file is named after.
func (s *Server) problemsOf(ns, name, file string) []Problem {
	var out []Problem
	for _, p := range s.config.Sources.Problems() {
		switch {
		case p.Object == Ref{}:
			base := filepath.Base(p.File)
			if p.File != file && (file != "" || strings.TrimSuffix(base, filepath.Ext(base)) != name) {
				continue
			}
		case p.Object.Kind != "Pod" || p.Object.Namespace != ns || p.Object.Name != name:
			continue
		}
		out = append(out, p)
	}
	return out
}

// refused explains why there is no pod of that name: its manifest cannot be used.
func refused(ns, name string, problems []Problem) explanation {
	p := problems[0]
	out := explanation{
		Pod: ns + "/" + name, Reason: pod.FailedValidation, Containers: []containerState{},
		Cause: "There is no such pod, for its manifest cannot be used: " + p.String() + ".",
		Next:  "The manifest is read again as soon as it changes.",
	}
	at := p.File
	if p.Line > 0 {
		at = fmt.Sprintf("line %d of %s", p.Line, at)
	}
	if p.FieldPath != "" {
		at = p.FieldPath + " in " + at
	}
	out.Advice = plan.Advise(plan.Trouble{Reason: pod.FailedValidation, Message: p.Message, Manifest: at})
	if len(problems) > 1 {
		out.Problems = problems
	}
	return out
}

// describe says where a container stands. An ephemeral one is never ready, which
// is nothing to tell.
func describe(c v1.ContainerStatus, ephemeral bool) containerState {
	out := containerState{Name: c.Name, State: "waiting"}
	var say []string
	switch st := c.State; {
	case st.Running != nil:
		out.State = "running"
		if ephemeral {
			say = append(say, "ephemeral")
		} else {
			say = append(say, map[bool]string{true: "ready", false: "not ready"}[c.Ready])
		}
		if c.Started != nil && !*c.Started {
			say = append(say, "still starting")
		}
	case st.Terminated != nil:
		out.State = "terminated"
		say = append(say, ended(st.Terminated))
	case st.Waiting != nil:
		say = append(say, strings.TrimSuffix(st.Waiting.Reason+": "+st.Waiting.Message, ": "))
	default:
		say = append(say, "not started yet")
	}
	if c.RestartCount > 0 {
		say = append(say, fmt.Sprintf("restarts: %d", c.RestartCount))
	}
	if last := c.LastTerminationState.Terminated; last != nil && c.State.Terminated == nil {
		say = append(say, "last end: "+ended(last))
	}
	out.Detail = strings.Join(say, "; ")
	return out
}

func ended(t *v1.ContainerStateTerminated) string {
	text := fmt.Sprintf("%s, exit code %d", t.Reason, t.ExitCode)
	if t.Signal != 0 {
		text += fmt.Sprintf(", signal %d", t.Signal)
	}
	if m := strings.TrimSpace(t.Message); m != "" {
		text += ": " + m
	}
	return strings.TrimPrefix(text, ", ")
}

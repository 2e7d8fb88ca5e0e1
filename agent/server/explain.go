package server

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

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
	Containers []containerState  `json:"containers"`
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
		Since: e.Since, Next: e.Next, NextAt: e.NextAt, Containers: []containerState{},
	}
	for _, c := range statuses(&s.Status) {
		out.Containers = append(out.Containers, describe(c))
	}
	return out
}

func describe(c v1.ContainerStatus) containerState {
	out := containerState{Name: c.Name, State: "waiting"}
	var say []string
	switch st := c.State; {
	case st.Running != nil:
		out.State = "running"
		say = append(say, map[bool]string{true: "ready", false: "not ready"}[c.Ready])
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

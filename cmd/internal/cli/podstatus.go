package cli

import (
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
)

// podSummary is a pod in one line, as kubectl computes it.
type podSummary struct {
	ready, total int
	status       string
	restarts     int32
	lastRestart  time.Time
}

// summarize computes what `kubectl get pods` shows of a pod.
func summarize(p *v1.Pod) podSummary {
	s := podSummary{status: string(p.Status.Phase), total: len(p.Spec.Containers)}
	if p.Status.Reason != "" {
		s.status = p.Status.Reason
	}
	sidecars := map[string]bool{}
	for i := range p.Spec.InitContainers {
		if r := p.Spec.InitContainers[i].RestartPolicy; r != nil && *r == v1.ContainerRestartPolicyAlways {
			sidecars[p.Spec.InitContainers[i].Name] = true
			s.total++
		}
	}
	initializing, sidecarsOnly := s.initContainers(p, sidecars)
	if !initializing || condition(p, v1.PodInitialized) {
		s.restarts, s.lastRestart = sidecarsOnly.restarts, sidecarsOnly.lastRestart
		s.mainContainers(p)
	}
	if p.DeletionTimestamp != nil && p.Status.Phase != v1.PodSucceeded && p.Status.Phase != v1.PodFailed {
		s.status = "Terminating"
	}
	if s.status == "" {
		s.status = "Unknown"
	}
	return s
}

func (s *podSummary) count(c *v1.ContainerStatus) {
	s.restarts += c.RestartCount
	if t := c.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(s.lastRestart) {
		s.lastRestart = t.FinishedAt.Time
	}
}

// initContainers tells whether one of them keeps the pod, and counts the
// sidecars' restarts alone: once the pod is initialized the others are history.
func (s *podSummary) initContainers(p *v1.Pod, sidecars map[string]bool) (initializing bool, only podSummary) {
	for i := range p.Status.InitContainerStatuses {
		c := &p.Status.InitContainerStatuses[i]
		s.count(c)
		sidecar := sidecars[c.Name]
		if sidecar {
			only.count(c)
		}
		done := c.State.Terminated != nil && c.State.Terminated.ExitCode == 0
		if sidecar && c.Started != nil && *c.Started {
			if c.Ready {
				s.ready++
			}
			done = true
		}
		if done || initializing {
			continue
		}
		initializing = true
		switch {
		case c.State.Terminated != nil:
			s.status = "Init:" + terminated(c.State.Terminated)
		case c.State.Waiting != nil && c.State.Waiting.Reason != "" && c.State.Waiting.Reason != "PodInitializing":
			s.status = "Init:" + c.State.Waiting.Reason
		default:
			s.status = fmt.Sprintf("Init:%d/%d", i, len(p.Spec.InitContainers))
		}
	}
	return initializing, only
}

func (s *podSummary) mainContainers(p *v1.Pod) {
	running := false
	for i := len(p.Status.ContainerStatuses) - 1; i >= 0; i-- {
		c := &p.Status.ContainerStatuses[i]
		s.count(c)
		switch {
		case c.State.Waiting != nil && c.State.Waiting.Reason != "":
			s.status = c.State.Waiting.Reason
		case c.State.Terminated != nil:
			s.status = terminated(c.State.Terminated)
		case c.Ready && c.State.Running != nil:
			running = true
			s.ready++
		}
	}
	if s.status == "Completed" && running {
		s.status = "NotReady"
		if condition(p, v1.PodReady) {
			s.status = "Running"
		}
	}
}

func terminated(t *v1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	}
	return fmt.Sprintf("ExitCode:%d", t.ExitCode)
}

func condition(p *v1.Pod, kind v1.PodConditionType) bool {
	for i := range p.Status.Conditions {
		if c := &p.Status.Conditions[i]; c.Type == kind {
			return c.Status == v1.ConditionTrue
		}
	}
	return false
}

func (s podSummary) restartsText(now time.Time) string {
	if s.restarts == 0 || s.lastRestart.IsZero() {
		return fmt.Sprint(s.restarts)
	}
	return fmt.Sprintf("%d (%s ago)", s.restarts, age(s.lastRestart, now))
}

// created is when the pod began to be: pods of files may lack a creation time.
func created(p *v1.Pod) time.Time {
	if p.CreationTimestamp.IsZero() && p.Status.StartTime != nil {
		return p.Status.StartTime.Time
	}
	return p.CreationTimestamp.Time
}

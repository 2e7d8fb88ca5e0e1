package status

import (
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// Render makes the pod that Kubernetes' API would show for s. What it returns
// shares parts with s and must not be changed.
func Render(s pod.Snapshot) *v1.Pod {
	p := &v1.Pod{TypeMeta: metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"}, Status: s.Status}
	if s.Desired.Pod == nil {
		return p
	}
	p.ObjectMeta, p.Spec = s.Desired.Pod.ObjectMeta, s.Desired.Pod.Spec
	if p.CreationTimestamp.IsZero() {
		p.CreationTimestamp = metav1.NewTime(started(s).Truncate(time.Second))
	}
	if t := s.Desired.Termination; t != nil && leaving(s) {
		grace := time.Duration(v1.DefaultTerminationGracePeriodSeconds) * time.Second
		if g := p.Spec.TerminationGracePeriodSeconds; g != nil {
			grace = time.Duration(*g) * time.Second
		}
		if t.Grace != nil {
			grace = *t.Grace
		}
		at, seconds := metav1.NewTime(t.Requested.Add(grace)), int64(grace/time.Second)
		p.DeletionTimestamp, p.DeletionGracePeriodSeconds = &at, &seconds
	}
	return p
}

// leaving says that the pod is shown as one that is being deleted: it is to be
// forgotten, or somebody had it stopped and it has not ended yet. What the node
// itself ends (evicted, say), and what has ended and stays, is not.
func leaving(s pod.Snapshot) bool {
	ended := s.Status.Phase == v1.PodSucceeded || s.Status.Phase == v1.PodFailed
	return s.Desired.Forget || s.Desired.Termination.Reason == "" && !ended
}

// Render is Render, for those who are given a Store only.
func (t *Store) Render(s pod.Snapshot) *v1.Pod { return Render(s) }

// started is when the node first saw the pod.
func started(s pod.Snapshot) time.Time {
	if t := s.Status.StartTime; t != nil {
		return t.Time
	}
	if s.Desired.Pod != nil {
		if at, err := time.Parse(time.RFC3339Nano, s.Desired.Pod.Annotations[pod.AnnotationSeen]); err == nil {
			return at
		}
	}
	return s.At
}

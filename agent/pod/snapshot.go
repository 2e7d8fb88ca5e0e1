package pod

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Snapshot is what a pod's worker publishes after each decision: at most one
// loop old, immutable, read without locks by everybody else.
type Snapshot struct {
	UID     UID
	At      time.Time
	Desired Desired
	// Status is complete as Kubernetes defines it for this pod.
	Status v1.PodStatus
	// Observed is what the decision was based on.
	Observed Observed
	// Held is the pod with the resources that it holds on this node: those
	// granted to it, and where a decrease is not yet in force the former ones.
	// nil: Desired.Pod says it.
	Held *v1.Pod
	// Resize is where a change of its resources stands; nil if there was none.
	Resize *Resize
	// InFlight lists the actions that were running.
	InFlight []Action
	// Explanation says in plain words where the pod stands.
	Explanation Explanation
	// Gone says that nothing of the pod is left on this node: it is the worker's last snapshot.
	Gone bool
}

// AsHeld returns s with Desired.Pod asking for what the pod holds.
func (s Snapshot) AsHeld() Snapshot {
	if s.Held != nil {
		s.Desired.Pod = s.Held
	}
	return s
}

// Explanation answers "why is my pod not running": the one cause that holds the
// pod up now, since when, and what happens next and when.
type Explanation struct {
	// Well is true when nothing holds the pod up (it runs and is ready, or has completed).
	Well bool
	// Cause is one sentence for a person.
	Cause string
	// Reason is the Kubernetes word nearest to Cause.
	Reason Reason
	// Container is the container concerned, if it is one.
	Container ContainerName
	// Since is when the cause began.
	Since time.Time
	// Next says what the machine does next; NextAt when (zero: when something changes).
	Next   string
	NextAt time.Time
	// Advice is one sentence that says what a person can do about it; empty where
	// nobody need do anything.
	Advice string
}

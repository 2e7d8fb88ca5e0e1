package pod

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Source names where a pod came from. The value travels in the annotation
// kubernetes.io/config.source, so that after a restart a pod is only taken for
// removed once its own source has been read.
type Source string

// The sources of pods.
const (
	SourceFile Source = "file" // manifest directory or single file
	SourceHTTP Source = "http" // manifest URL
	SourceAPI  Source = "api"  // API server
	SourceRun  Source = "run"  // berth run -f, over the agent's socket
)

// Annotations that Berth writes on pods and reads back, spelled as the kubelet does.
const (
	AnnotationSource = "kubernetes.io/config.source"
	AnnotationHash   = "kubernetes.io/config.hash"
	AnnotationSeen   = "kubernetes.io/config.seen"
)

// Desired is what is wanted of one pod. It is immutable.
type Desired struct {
	// Pod is the defaulted and validated pod. Its status is ignored.
	Pod *v1.Pod
	// Source is where Pod came from.
	Source Source
	// RuntimeHandler is the CRI runtime handler that the pod's RuntimeClass names;
	// empty: the runtime's default. The class's overhead and scheduling are merged
	// into Pod already.
	RuntimeHandler string
	// Termination, once set, never becomes nil again, and its grace only shrinks.
	Termination *Termination
	// Rejection is set when admission refused the pod: it becomes Failed and
	// nothing of it is ever started.
	Rejection *Rejection
	// Forget says that no source knows the pod any more: once it is terminated
	// and its outcome acknowledged, sandboxes, containers, volumes, logs and
	// records are removed.
	Forget bool
	// Inputs are the objects (ConfigMaps, Secrets) the pod refers to, as of now.
	// A change of Inputs wakes the worker; Version tells one set from the next.
	Inputs Inputs
}

// Inputs is the version of the node-local objects that a pod refers to.
type Inputs struct {
	// Version changes whenever a referenced ConfigMap or Secret changes, appears or vanishes.
	Version string
}

// Termination asks for a pod's graceful end. The request cannot be taken back.
type Termination struct {
	// Requested is when the termination was first asked for (wall time).
	Requested time.Time
	// Grace overrides the pod's terminationGracePeriodSeconds when not nil.
	Grace *time.Duration
	// Reason and Message go into the pod's status (Evicted, Preempting,
	// DeadlineExceeded); empty for a plain deletion.
	Reason  Reason
	Message string
	// Disruption, if not empty, is the message of the condition DisruptionTarget
	// that the pod gets: the node ended it for the sake of others.
	Disruption string
}

// Rejection is admission's refusal.
type Rejection struct {
	Reason  Reason // for example OutOfcpu
	Message string // one sentence
}

// ContainerKind tells the four roles a container can have in a pod.
type ContainerKind int

// The kinds of containers, in the order they start.
const (
	Init      ContainerKind = iota // runs to completion before the next starts
	Sidecar                        // restartable init container: runs until the mains have ended
	Main                           // spec.containers
	Ephemeral                      // added by kubectl debug; never restarted
)

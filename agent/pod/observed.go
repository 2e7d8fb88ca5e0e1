package pod

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Observed is what the runtime said about one pod at one instant, plus what is
// mounted for it. It is a snapshot: immutable, and never mixed with older ones.
type Observed struct {
	// At is when the runtime was asked; zero if it has never answered.
	At time.Time
	// Sandboxes of this pod, newest attempt first.
	Sandboxes []Sandbox
	// Containers of this pod: every instance the runtime still knows, newest
	// attempt of a name first.
	Containers []Container
	// Volumes says what is mounted; nil until the volumes have been set up.
	Volumes map[string]Volume
	// VolumesVersion is the Inputs.Version that Volumes were rendered from.
	VolumesVersion string
	// Images says which containers' images are present and by which reference
	// they are to be created.
	Images map[ContainerName]Image
	// VolumeImages says the same of image volumes, by volume name.
	VolumeImages map[string]Image
	// Logged says for each container that has logs how many instances they are of:
	// the number of the next one, for a pod of which nothing else is known. It is
	// nil while the runtime knows any container of the pod.
	Logged map[ContainerName]uint32
	// Dirty says that this pod still has a cgroup or a directory on the node.
	Dirty bool
}

// Sandbox is one attempt at the pod's environment.
type Sandbox struct {
	ID          SandboxID
	Attempt     uint32
	Ready       bool
	CreatedAt   time.Time
	IPs         []string // primary first; empty for host network
	HostNetwork bool
}

// ContainerState is the runtime's word for where a container instance stands.
//
//	Created ──▶ Running ──▶ Exited
//	   └───────────┴──▶ Unknown (its monitor is gone and its fate cannot be told)
type ContainerState int

// The states of a container instance.
const (
	Created ContainerState = iota
	Running
	Exited
	Unknown
)

// Container is one instance (attempt) of a named container.
type Container struct {
	ID         ContainerID
	Name       ContainerName
	Attempt    uint32 // restart count of this instance
	SandboxID  SandboxID
	SpecHash   string // of name and image, from the annotation written at creation
	State      ContainerState
	CreatedAt  time.Time
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int32
	Reason     string // the runtime's: Completed, Error, OOMKilled, StartError, ...
	Message    string // the termination message, or the runtime's own words
	Image      string // as the pod spec named it
	ImageRef   string // digest reference
	ImageID    string
	LogPath    string
	User       *User
	// Resources are those it was created with, from the annotation written then;
	// nil if there is none.
	Resources *v1.ResourceRequirements
	// Limits are what the runtime holds it to; nil if it does not say.
	Limits *Limits
}

// User is the identity of a container's first process.
type User struct {
	UID, GID           int64
	SupplementalGroups []int64
}

// Image is a container's image, present in the runtime.
type Image struct {
	Ref string // what CreateContainer is to be given
	// Pulled says that this action fetched it; false: it was there already.
	Pulled bool
	// Size is the size in bytes, 0 if it is not known.
	Size int64
}

// Volume is one volume, set up on the host.
type Volume struct {
	HostPath string
	ReadOnly bool
}

// ProbeKind is one of the three health checks.
type ProbeKind string

// The kinds of probes.
const (
	Startup   ProbeKind = "startup"
	Liveness  ProbeKind = "liveness"
	Readiness ProbeKind = "readiness"
)

// Verdict is a probe's answer after its thresholds have been applied.
type Verdict int

// The verdicts. NoVerdict means that the threshold has not been reached either way.
const (
	NoVerdict Verdict = iota
	Success
	Failed
)

// ProbeVerdict is a change of verdict for one container instance or, with
// NoVerdict, what a probe that failed said while its verdict stays. It arrives in
// the worker's mailbox and is kept in the pod's Record.
type ProbeVerdict struct {
	Container ContainerID
	Kind      ProbeKind
	Verdict   Verdict
	Message   string // of the last failure, for the event
	At        time.Time
}

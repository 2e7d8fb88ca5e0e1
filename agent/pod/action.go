package pod

import "time"

// Slot is a place where at most one action is in flight: work in different
// slots of one pod runs side by side.
type Slot string

// The slots every pod has.
const (
	SlotObserve Slot = "observe" // ask the runtime what is there
	SlotVolumes Slot = "volumes" // set up, refresh or tear down volumes
	SlotSandbox Slot = "sandbox" // create, stop or remove the sandbox
	SlotCleanup Slot = "cleanup" // remove the pod's cgroup and directories
	SlotResize  Slot = "resize"  // change the resources of what runs
)

// ImageSlot is where the image of container c is pulled.
func ImageSlot(c ContainerName) Slot { return Slot("image/" + string(c)) }

// VolumeImageSlot is where the image of image volume v is pulled.
func VolumeImageSlot(v string) Slot { return Slot("image/volume/" + v) }

// ContainerSlot is where container c is started, hooked, stopped and removed.
func ContainerSlot(c ContainerName) Slot { return Slot("container/" + string(c)) }

// Op is what an action does. Every op is idempotent: done twice, the second
// finds the work done.
type Op string

// The operations. After each the worker observes the pod anew.
const (
	OpObserve         Op = "observe"          // refresh Observed
	OpMountVolumes    Op = "mount-volumes"    // pod cgroup, directories, all volumes; again when Inputs change
	OpUnmountVolumes  Op = "unmount-volumes"  // never crosses into data: unmount first, remove only own directories
	OpCreateSandbox   Op = "create-sandbox"   // RunPodSandbox with Attempt
	OpStopSandbox     Op = "stop-sandbox"     // StopPodSandbox: network released
	OpRemoveSandbox   Op = "remove-sandbox"   // RemovePodSandbox: its containers go with it
	OpPullImage       Op = "pull-image"       // ensure the image by policy; a present one is not pulled
	OpStartContainer  Op = "start-container"  // CreateContainer with Attempt, StartContainer
	OpPostStart       Op = "post-start"       // run the postStart hook of ContainerID
	OpPreStop         Op = "pre-stop"         // preStop hook of ContainerID within Grace and nothing else: for a sidecar, whose stop waits for others
	OpStopContainer   Op = "stop-container"   // preStop (if PreStop), then StopContainer with what is left of Grace
	OpRemoveContainer Op = "remove-container" // RemoveContainer of an exited instance
	OpResize          Op = "resize"           // bring pod cgroup and running containers to the resources of Generation
	OpCleanup         Op = "cleanup"          // remove pod cgroup, pod directory; logs too when the pod is forgotten
)

// Action is one thing to do, decided by plan and done by agent/runtime. It is a
// value: two actions are the same work when they are equal.
type Action struct {
	Slot      Slot
	Op        Op
	Container ContainerName
	// ContainerID is the instance to act on; empty for OpStartContainer and OpPullImage.
	ContainerID ContainerID
	SandboxID   SandboxID
	// Volume names the image volume whose image OpPullImage ensures; empty for a
	// container's own image.
	Volume string
	// Attempt numbers the sandbox or the container instance to create.
	Attempt uint32
	// Generation is that of the resources which OpResize puts in force.
	Generation int64
	// Grace is the whole time OpStopContainer may take, hook included.
	Grace time.Duration
	// PreStop says that the preStop hook runs first.
	PreStop bool
	// Reason and Message tell why, for events (Killing: "Container x failed liveness probe, will be restarted").
	Reason  Reason
	Message string
}

// Result is what became of an Action. Exactly one arrives for each that was started.
type Result struct {
	Action Action
	// Err is nil on success, else an *Error.
	Err error
	// Observed is set by OpObserve.
	Observed *Observed
	// Volumes and VolumesVersion are set by OpMountVolumes; OpUnmountVolumes leaves them nil.
	Volumes        map[string]Volume
	VolumesVersion string
	// Image is set by OpPullImage.
	Image Image
	// Actuated is what OpResize has put in force, also when it failed half-way.
	Actuated *Actuated
	// Took is how long it ran.
	Took time.Duration
}

// Failure remembers that a slot's last action failed. A success erases it.
type Failure struct {
	Op      Op
	Count   int // consecutive failures
	Kind    Kind
	Reason  Reason
	Message string
	First   time.Time // of this run of failures
	At      time.Time
	// NotBefore is the earliest time of the next try.
	NotBefore time.Time
}

// Event is something that happened to a pod, in Kubernetes' words.
type Event struct {
	Warning   bool
	Reason    Reason
	Message   string
	Container ContainerName // empty: the pod
	At        time.Time
}

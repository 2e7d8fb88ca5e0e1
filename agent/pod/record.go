package pod

import (
	"time"

	v1 "k8s.io/api/core/v1"
)

// Record is what a pod's worker keeps on disk: the facts about the pod that
// nothing on the host can tell again. Decide returns the next Record; the
// worker stores it, if it changed, before it starts what was decided.
type Record struct {
	Durable Durable
	Boot    Boot
}

// Durable survives a power cut (group-committed under the root directory).
type Durable struct {
	// Pod is the last known spec, so that a pod whose source is silent after a
	// restart can still be run, and one whose manifest is gone still be ended
	// by its own grace period and hooks.
	Pod    *v1.Pod
	Source Source
	// RuntimeHandler is that of the last known Desired.
	RuntimeHandler string
	// Ephemeral are the ephemeral containers added to the running pod, in the
	// order they came; they are never removed.
	Ephemeral []v1.EphemeralContainer
	// Gates are the conditions that readiness gates wait for, as set from outside.
	Gates []v1.PodCondition
	// Accepted is when the agent first took the pod in: activeDeadlineSeconds
	// counts from it, across reboots.
	Accepted time.Time
	// Restarts counts, for each container, the instances that have ever been started.
	Restarts map[ContainerName]uint32
	// Ended holds the last instance of each main container that has ended for
	// good while others go on: it is not started again even if the runtime forgets
	// it. And of each container that a reset took away: that one is.
	Ended map[ContainerName]Container
	// Outcome is the final status, kept until it is acknowledged and the pod forgotten:
	// a pod with an Outcome is never started again.
	Outcome *v1.PodStatus
	// Termination is the request and its deadline in wall time.
	Termination *Termination
	// Reset is set while all containers are stopped and removed to be started anew.
	Reset *Reset
	// Resize is nil for a pod whose resources were never changed.
	Resize *Resize
}

// Reset is a RestartAllContainers under way (KEP-5532): every init and main
// container is killed and removed, and then the pod starts again from its first
// init container, in the sandbox and with the volumes that it has.
type Reset struct {
	// Sources are the containers whose exit asked for it; they are removed last.
	Sources []ContainerName
	Since   time.Time
}

// Boot is void after a reboot, because what it describes is gone too (under the
// state directory, no fsync).
type Boot struct {
	// StartTime is when the agent first took the pod in.
	StartTime time.Time
	// Backoff holds the crash-loop delay of each container.
	Backoff map[ContainerName]Backoff
	// Hooked holds instances whose postStart hook has finished.
	Hooked map[ContainerID]bool
	// Verdicts holds the latest verdict of each probe of each instance.
	Verdicts map[ContainerID]map[ProbeKind]ProbeVerdict
	// Initialized says that every init container has once been done in the current sandbox attempt.
	Initialized *uint32
	// Conditions are the last published ones: their transition times must not
	// move because the agent was restarted.
	Conditions []v1.PodCondition
	// Stopping holds the instances whose stop has begun, and until when they may take.
	Stopping map[ContainerID]Stopping
	// Sandboxes counts the sandboxes that have been made: the number of the next attempt.
	Sandboxes uint32
	// IPs are the last known addresses of the pod: they outlive the sandbox in its status.
	IPs []string
	// GraceExceeded says that it has been told that the containers outlive their grace period.
	GraceExceeded bool
	// Gone holds the last seen state of instances that a recreated sandbox took
	// away, so that exit codes and last states survive.
	Gone map[ContainerName]Container
	// Actuated is what is in force of Durable.Resize.
	Actuated Actuated
	// Failures are what holds the pod up, by slot: an agent that has just been
	// started says at once what its predecessor knew, and goes on with the back-off.
	Failures map[Slot]Failure
}

// Backoff is a container's crash-loop delay.
type Backoff struct {
	// Instance is the one whose exit set Delay.
	Instance ContainerID
	Delay    time.Duration
	// Since is when Delay was chosen: when the exit was first seen.
	Since time.Time
	// Key stands for the image and the resources that crashed: others start a new crash loop.
	Key string
}

// Stopping is a stop that has begun.
type Stopping struct {
	Deadline time.Time // wall time
	Reason   Reason
	Message  string
	// PreStopDone says that the hook has run, or has used up its time.
	PreStopDone bool
}

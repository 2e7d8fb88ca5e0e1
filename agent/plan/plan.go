package plan

import (
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// State is all that a decision rests on. Its worker is the only writer, through
// the methods of State; maps inside Record and Observed are never changed in place.
type State struct {
	// Now is the wall time of the decision.
	Now      time.Time
	Desired  pod.Desired
	Observed pod.Observed
	Record   pod.Record
	// InFlight holds the running action of each slot.
	InFlight map[pod.Slot]pod.Action
	// Failures holds the slots whose last action failed.
	Failures map[pod.Slot]pod.Failure
	// Stale holds the slots that have acted since Observed was taken: nothing is
	// decided about them before the next look.
	Stale map[pod.Slot]bool
	// Last is the last success of each slot.
	Last map[pod.Slot]Success
	// Look asks for an observation although nothing of ours has changed: a hint came.
	Look bool
	// Unsaved says which parts of Record differ from what is on disk.
	Unsaved Parts
	Config  Config
	// Allocation is the node's last decision about the pod's resources.
	Allocation *pod.Allocation

	// covered are the slots that the observation in flight will make fresh: those
	// that were stale when it began. What ends while it runs needs another.
	covered map[pod.Slot]bool
	// merged is mergedPod of mergedOf with that many ephemeral containers added.
	merged, mergedOf *v1.Pod
	mergedAdded      int
}

// Success remembers an action that was done.
type Success struct {
	Action pod.Action
	At     time.Time
	// Repeats counts how often the very same action was done before in a row: an
	// action that succeeds without effect is repeated ever more slowly.
	Repeats int
}

// Parts names the parts of a Record.
type Parts struct{ Durable, Boot bool }

// Config holds what a node decides about all its pods. Zero values mean the defaults.
type Config struct {
	// CrashLoopInitial and CrashLoopMax bound the crash-loop back-off (10s, 300s).
	CrashLoopInitial, CrashLoopMax time.Duration
	// PullInitial and PullMax bound the back-off of image pulls (10s, 300s).
	PullInitial, PullMax time.Duration
	// NodeName goes into events and messages.
	NodeName string
	// HostIPs are the node's addresses, primary first; pods of the host network have them too.
	HostIPs []string
	// RuntimeName prefixes container IDs in status ("berth").
	RuntimeName string
	// RecursiveReadOnly names the runtime handlers that can make mounts read-only
	// to their depths; the default handler's name is empty.
	RecursiveReadOnly map[string]bool
}

// Plan is what is to be done now, and what is to be told.
type Plan struct {
	// Start are the actions to begin, in order. At most one a slot.
	Start []pod.Action
	// Cancel are slots whose action has become pointless.
	Cancel []pod.Slot
	// Status is the pod's status as Kubernetes defines it.
	Status v1.PodStatus
	// Probes are the probes that shall run now; all others shall not.
	Probes []ProbeTarget
	// Record is to be stored, as far as Unsaved says, before anything is started.
	Record  pod.Record
	Unsaved Parts
	// Events happened by this decision.
	Events      []pod.Event
	Explanation pod.Explanation
	// Wake is when to decide again if nothing happens; zero: not before something does.
	Wake time.Time
	// Done says that nothing of the pod is left on this node.
	Done bool
}

// ProbeTarget is one probe of one container instance, to be run now.
type ProbeTarget struct {
	Pod       *v1.Pod
	Container pod.ContainerID
	Name      pod.ContainerName
	Kind      pod.ProbeKind
	// StartedAt is what initialDelaySeconds counts from.
	StartedAt time.Time
	Probe     v1.Probe
	// IPs are the pod's addresses, primary first (the node's for the host network).
	IPs []string
	// Ports are the container's, for probes that name one.
	Ports []v1.ContainerPort
	// Verdict is the last known one: a prober that starts anew starts from it.
	Verdict pod.Verdict
}

// Key identifies a probe among all of a node's.
func (t ProbeTarget) Key() (pod.ContainerID, pod.ProbeKind) { return t.Container, t.Kind }

const (
	resetAfter     = 10 * time.Minute // a container that ran this long starts a new crash-loop
	minGrace       = 2 * time.Second  // the least StopContainer is given
	minPodGrace    = time.Second
	deadlineReason = "Pod was active on the node longer than the specified deadline"
)

func (c Config) withDefaults() Config {
	or := func(d *time.Duration, v time.Duration) {
		if *d <= 0 {
			*d = v
		}
	}
	or(&c.CrashLoopMax, 300*time.Second)
	or(&c.CrashLoopInitial, 10*time.Second)
	c.CrashLoopInitial = min(c.CrashLoopInitial, c.CrashLoopMax)
	or(&c.PullInitial, 10*time.Second)
	or(&c.PullMax, 300*time.Second)
	if c.RuntimeName == "" {
		c.RuntimeName = "berth"
	}
	return c
}

// Decide says what the pod needs next. It changes nothing, and asked twice
// about the same State it answers the same.
func Decide(s State) Plan {
	d := newDecision(s)
	d.observe()
	d.remember()
	d.end = d.endCause()
	d.cancelPointless()
	d.stopContainers()
	if d.end != endNone {
		d.tearDown()
	} else {
		d.setUp()
	}
	d.probe()
	d.plan.Status = d.status()
	d.plan.Explanation = d.explain()
	d.plan.Record, d.plan.Unsaved = d.rec, d.unsaved
	return d.plan
}

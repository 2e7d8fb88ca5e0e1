// Package admission decides whether a pod may run on this node beside those
// that run already, and which of them have to make room for it. It is pure.
//
// The checks, in the kubelet's order; the first that fails gives the reason:
//
//	sysctls ─▶ operating system ─▶ supplemental groups policy ─▶ extended resources
//	   ─▶ pods, cpu, memory, ... ─▶ node affinity ─▶ node name ─▶ host ports ─▶ taints
//	   ─▶ AppArmor ─▶ node features
//
// A pod that has been rejected is Failed for good. Reasons and messages are
// those of the kubelet, so that tools that know them go on working.
//
// Where resources are all that lacks, a pod that may preempt others is admitted,
// and the verdict names the pods that have to end before it starts.
package admission

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// Node is what admission knows of the node.
type Node struct {
	Name   string
	Labels map[string]string
	Taints []v1.Taint
	// Allocatable is what all pods together may request. A resource that is not
	// in it is not there, except ephemeral storage, which is then not limited.
	Allocatable v1.ResourceList
	// UnsafeSysctls are the sysctls, or patterns that end in *, that pods may set
	// beyond the safe ones.
	UnsafeSysctls []string
	// AppArmor and SELinux say that the kernel enforces them.
	AppArmor, SELinux bool
	// NoStrictGroups says that the runtime cannot keep an image's groups away
	// from a container (supplementalGroupsPolicy Strict).
	NoStrictGroups bool
	// Features are what the node declares to be able to do, of those that pods
	// may require (KEP-5328).
	Features []string
}

// Reasons of rejections beyond those in agent/pod; OutOf<resource> is made from
// the resource's name.
const (
	SysctlForbidden              pod.Reason = "SysctlForbidden"
	NodeAffinity                 pod.Reason = "NodeAffinity"
	NodeName                     pod.Reason = "NodeName"
	TaintToleration              pod.Reason = "TaintToleration"
	PodOSNotSupported            pod.Reason = "PodOSNotSupported"
	PodOSSelectorLabelNotMatched pod.Reason = "PodOSSelectorNodeLabelDoesNotMatch"
	StrictGroupsNotSupported     pod.Reason = "SupplementalGroupsPolicyNotSupported"
	AppArmor                     pod.Reason = "AppArmor"
	PodFeatureUnsupported        pod.Reason = "PodFeatureUnsupported"
)

// Verdict is what admission says of a pod.
type Verdict struct {
	// Rejection is nil if the pod may run.
	Rejection *pod.Rejection
	// Preempt are the pods that have to end before it starts. They are asked to
	// end with Preemption.
	Preempt []pod.UID
	// Warnings tell what the pod asks for that this node cannot give, and that
	// does not keep it from running.
	Warnings []Warning
}

// Warning is for a Warning event of the pod.
type Warning struct {
	Reason  pod.Reason
	Message string
}

// osLabel is set on every node.
const osLabel = "kubernetes.io/os"

// Decide says whether the pod d may run on node beside others. Others that have
// ended, or are d itself, do not count.
func Decide(d pod.Desired, others []pod.Snapshot, node Node) Verdict {
	for _, check := range []func(pod.Desired, Node) *pod.Rejection{sysctls, operatingSystem, strictGroups, extended} {
		if r := check(d, node); r != nil {
			return Verdict{Rejection: r}
		}
	}
	var v Verdict
	running := beside(d, others)
	lacks := shortages(d.Pod, running, node)
	for _, check := range []func(pod.Desired, []*pod.Snapshot, Node) *pod.Rejection{affinity, nodeName, hostPorts, taints} {
		r := check(d, running, node)
		switch {
		case r == nil:
		case len(lacks) > 0: // not resources alone: nobody is preempted
			return Verdict{Rejection: lacks[0].rejection()}
		default:
			return Verdict{Rejection: r}
		}
	}
	if len(lacks) > 0 {
		if v.Preempt = victims(d, running, lacks); len(v.Preempt) == 0 {
			return Verdict{Rejection: lacks[0].rejection()}
		}
	}
	for _, check := range []func(pod.Desired, Node) *pod.Rejection{appArmor, features} {
		if r := check(d, node); r != nil {
			return Verdict{Rejection: r}
		}
	}
	v.Warnings = Warnings(d.Pod, node)
	return v
}

// beside are the others that hold, or are about to take, what they request.
func beside(d pod.Desired, others []pod.Snapshot) []*pod.Snapshot {
	running := make([]*pod.Snapshot, 0, len(others))
	for i := range others {
		if o := &others[i]; o.UID != pod.UID(d.Pod.UID) && counts(o) {
			running = append(running, o)
		}
	}
	return running
}

func counts(s *pod.Snapshot) bool {
	if s.Desired.Pod == nil || s.Desired.Rejection != nil || s.Status.Phase == v1.PodPending && s.Status.StartTime == nil {
		return false // unknown, refused, or not admitted yet
	}
	if s.Status.Phase != v1.PodFailed && s.Status.Phase != v1.PodSucceeded {
		return true
	}
	// Its phase is final; while it is being ended by force its containers still hold what they have.
	return s.Desired.Termination != nil && slices.ContainsFunc(s.Observed.Containers, func(c pod.Container) bool { return c.State == pod.Running })
}

func operatingSystem(d pod.Desired, node Node) *pod.Rejection {
	p := d.Pod
	want := node.Labels[osLabel]
	if want == "" {
		want = string(v1.Linux)
	}
	if label, ok := p.Labels[osLabel]; ok && label != want {
		return &pod.Rejection{Reason: PodOSSelectorLabelNotMatched, Message: fmt.Sprintf("Failed to admit pod as the `%s` label doesn't match node label", osLabel)}
	}
	if p.Spec.OS != nil && string(p.Spec.OS.Name) != want {
		return &pod.Rejection{Reason: PodOSNotSupported, Message: fmt.Sprintf("Failed to admit pod as the OS field doesn't match node OS: this node runs %s, the pod wants %s", want, p.Spec.OS.Name)}
	}
	return nil
}

func strictGroups(d pod.Desired, node Node) *pod.Rejection {
	s := d.Pod.Spec.SecurityContext
	if !node.NoStrictGroups || s == nil || s.SupplementalGroupsPolicy == nil || *s.SupplementalGroupsPolicy != v1.SupplementalGroupsPolicyStrict {
		return nil
	}
	return &pod.Rejection{Reason: StrictGroupsNotSupported, Message: "SupplementalGroupsPolicy=Strict is not supported in this node"}
}

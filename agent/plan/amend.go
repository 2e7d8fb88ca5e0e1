package plan

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/validation"

	"github.com/berthd/berth/agent/pod"
)

// What may be added to one pod from outside is bounded.
const (
	maxEphemeral        = 64
	maxGates            = 64
	maxConditionReason  = 1024
	maxConditionMessage = 32 * 1024
)

// ownConditions are the conditions that nobody but the node sets.
var ownConditions = []v1.PodConditionType{
	v1.PodScheduled, v1.PodReady, v1.PodInitialized, v1.ContainersReady, v1.PodReadyToStartContainers,
	v1.PodResizeInProgress, v1.PodResizePending, v1.AllContainersRestarting, v1.DisruptionTarget,
}

// Merged is what is desired of the pod, with the ephemeral containers that were
// added to it while it ran: whoever acts on the pod or shows it goes by this.
func (s *State) Merged() pod.Desired {
	d := s.Desired
	d.Pod = s.mergedPod()
	return d
}

// mergedPod returns the same pointer as long as nothing of it changes.
func (s *State) mergedPod() *v1.Pod {
	added := s.Record.Durable.Ephemeral
	if len(added) == 0 || s.Desired.Pod == nil {
		return s.Desired.Pod
	}
	if s.merged == nil || s.mergedOf != s.Desired.Pod || s.mergedAdded != len(added) {
		p := *s.Desired.Pod
		p.Spec.EphemeralContainers = slices.Clone(p.Spec.EphemeralContainers)
		for _, c := range added {
			if !slices.ContainsFunc(p.Spec.EphemeralContainers, func(o v1.EphemeralContainer) bool { return o.Name == c.Name }) {
				p.Spec.EphemeralContainers = append(p.Spec.EphemeralContainers, c)
			}
		}
		s.merged, s.mergedOf, s.mergedAdded = &p, s.Desired.Pod, len(added)
	}
	return s.merged
}

// AddEphemeral adds an ephemeral container to the pod, for good. check compares
// the pod before and after, and refuses what Kubernetes does; nil allows all.
func (s *State) AddEphemeral(c v1.EphemeralContainer, check func(next, prev *v1.Pod) error) error {
	refuse := func(kind pod.Kind, err error) error {
		return &pod.Error{Op: "add ephemeral container", Kind: kind, Err: err}
	}
	if err := s.open(); err != nil {
		return refuse(pod.Exhausted, err)
	}
	dur := &s.Record.Durable
	if len(dur.Ephemeral) >= maxEphemeral {
		return refuse(pod.Exhausted, fmt.Errorf("the pod has %d ephemeral containers already, and they stay until it is gone: make it anew to add another", maxEphemeral))
	}
	prev := s.mergedPod()
	next := *prev
	next.Spec.EphemeralContainers = append(slices.Clone(prev.Spec.EphemeralContainers), c)
	if hasContainer(prev, c.Name) {
		return refuse(pod.Invalid, fmt.Errorf("the pod has a container %q already: choose another name", c.Name))
	}
	if check != nil {
		if err := check(&next, prev); err != nil {
			return refuse(pod.Invalid, err)
		}
	}
	dur.Ephemeral = append(slices.Clone(dur.Ephemeral), c)
	s.Unsaved.Durable = true
	return nil
}

// open says why nothing can be added to the pod any more, nil if it can.
func (s *State) open() error {
	dur := &s.Record.Durable
	switch {
	case dur.Outcome != nil || s.Desired.Rejection != nil:
		return errors.New("the pod has ended")
	case dur.Termination != nil || s.Desired.Termination != nil:
		return errors.New("the pod is being ended")
	}
	return nil
}

func hasContainer(p *v1.Pod, name string) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		if slices.ContainsFunc(list, func(c v1.Container) bool { return c.Name == name }) {
			return true
		}
	}
	return slices.ContainsFunc(p.Spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == name })
}

// SetCondition sets a condition of the pod that is not the node's own: what a
// readiness gate waits for. Its transition time changes with its status only.
func (s *State) SetCondition(c v1.PodCondition, now time.Time) error {
	refuse := func(kind pod.Kind, format string, args ...any) error {
		return &pod.Error{Op: "set condition", Kind: kind, Err: fmt.Errorf(format, args...)}
	}
	dur := &s.Record.Durable
	i := slices.IndexFunc(dur.Gates, func(o v1.PodCondition) bool { return o.Type == c.Type })
	switch {
	case slices.Contains(ownConditions, c.Type):
		return refuse(pod.Invalid, "%s is the node's own condition: it says what is, and cannot be set", c.Type)
	case len(validation.IsQualifiedName(string(c.Type))) > 0:
		return refuse(pod.Invalid, "%q is no condition type: %s", c.Type, strings.Join(validation.IsQualifiedName(string(c.Type)), "; "))
	case c.Status != v1.ConditionTrue && c.Status != v1.ConditionFalse && c.Status != v1.ConditionUnknown:
		return refuse(pod.Invalid, "condition %s: status %q is not True, False or Unknown", c.Type, c.Status)
	case len(c.Reason) > maxConditionReason || len(c.Message) > maxConditionMessage:
		return refuse(pod.Invalid, "condition %s: its reason or its message is too long (at most %d and %d bytes)", c.Type, maxConditionReason, maxConditionMessage)
	case i < 0 && len(dur.Gates) >= maxGates:
		return refuse(pod.Exhausted, "the pod has %d conditions set from outside already", maxGates)
	case dur.Outcome != nil:
		return refuse(pod.Exhausted, "the pod has ended, and its status does not change any more")
	}
	c.LastProbeTime, c.LastTransitionTime = metav1.Time{}, metav1.NewTime(now.Truncate(time.Second))
	gates := slices.Clone(dur.Gates)
	if i < 0 {
		gates = append(gates, c)
	} else {
		if gates[i].Status == c.Status {
			c.LastTransitionTime = gates[i].LastTransitionTime
		}
		if gates[i] == c {
			return nil
		}
		gates[i] = c
	}
	dur.Gates, s.Unsaved.Durable = gates, true
	return nil
}

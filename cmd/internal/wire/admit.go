package wire

import (
	"context"
	"fmt"
	"maps"
	goruntime "runtime"
	"strings"
	"sync"
	"time"

	"github.com/opencontainers/selinux/go-selinux"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/agent/admission"
	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/runtime"
)

// preemption makes room for pods that were admitted at the cost of others. It
// stores nothing: whom to end is decided anew from what runs, right before the
// sandbox is made, so that an agent that was killed in between goes on.
//
//	admitted ─▶ others asked to end ─▶ they hold nothing any more ─▶ sandbox
type preemption struct {
	mu sync.Mutex
	// asked are the pods whose room has to be looked for: those that preempted
	// others, and those that an earlier agent admitted.
	asked map[pod.UID]bool
	// told are those of which it has been told whom they wait for.
	told map[pod.UID]bool
}

// first says, once for each pod, that nobody has been told yet whom it waits for.
func (p *preemption) first(uid pod.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.told[uid] {
		return false
	}
	if p.told == nil {
		p.told = map[pod.UID]bool{}
	}
	p.told[uid] = true
	return true
}

func (p *preemption) note(uid pod.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked == nil {
		p.asked = map[pod.UID]bool{}
	}
	p.asked[uid] = true
}

func (p *preemption) noted(uid pod.UID) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.asked[uid]
}

func (p *preemption) forget(uid pod.UID) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.asked, uid)
	delete(p.told, uid)
}

// admissionNode is the node as admission sees it.
func (n *node) admissionNode() admission.Node {
	labels := map[string]string{"kubernetes.io/os": "linux", "kubernetes.io/arch": goruntime.GOARCH, "kubernetes.io/hostname": n.o.NodeName}
	maps.Copy(labels, n.o.NodeLabels)
	return admission.Node{
		Name: n.o.NodeName, Labels: labels, Taints: n.o.Taints, Allocatable: n.allocatable, UnsafeSysctls: n.o.UnsafeSysctls,
		AppArmor: n.appArmor(), SELinux: selinux.GetEnabled(), NoStrictGroups: n.noStrictGroups,
		Features: []string{"RestartAllContainersOnContainerExits"},
	}
}

// appArmor: an external runtime enforces it if the kernel does.
func (n *node) appArmor() bool {
	if n.embedded != nil {
		return n.embedded.host.AppArmor
	}
	return kernelAppArmor()
}

// admit says why a pod may not run here beside the others, nil if it may.
func (n *node) admit(d pod.Desired, others []pod.Snapshot) *pod.Rejection {
	v := admission.Decide(d, others, n.admissionNode())
	uid := pod.UID(d.Pod.UID)
	warn := func(reason pod.Reason, message string) {
		n.early.hold(uid, pod.Event{Warning: true, Reason: reason, Message: message, At: time.Now()})
	}
	for _, w := range v.Warnings {
		warn(w.Reason, w.Message)
	}
	if v.Rejection != nil {
		warn(v.Rejection.Reason, v.Rejection.Message)
	} else if len(v.Preempt) > 0 {
		n.preemption.note(uid)
	}
	return v.Rejection
}

// earlyEvents are of pods that nobody has heard of yet: they are told once the
// pod has been published.
type earlyEvents struct {
	mu sync.Mutex
	of map[pod.UID][]pod.Event
}

func (e *earlyEvents) hold(uid pod.UID, event pod.Event) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.of == nil {
		e.of = map[pod.UID][]pod.Event{}
	}
	e.of[uid] = append(e.of[uid], event)
}

func (e *earlyEvents) take(uid pod.UID) []pod.Event {
	e.mu.Lock()
	defer e.mu.Unlock()
	held := e.of[uid]
	delete(e.of, uid)
	return held
}

// listen returns sink with what admission does when a pod is published: it tells
// the events that were held, and forgets pods that are gone.
func (n *node) listen(sink Sink) Sink {
	publish := sink.Publish
	sink.Publish = func(s pod.Snapshot) {
		publish(s)
		for _, event := range n.early.take(s.UID) {
			sink.Event(s.UID, event)
		}
		if s.Gone {
			n.preemption.forget(s.UID)
		}
	}
	return sink
}

// tellAfter is how long a pod waits for others to end before that becomes the
// answer to why it does not run. It then goes on waiting.
const tellAfter = 2 * time.Second

// roomPeriod is how often a pod looks whether those that make room for it have ended.
const roomPeriod = 50 * time.Millisecond

// makeRoom ends the pods that d was admitted at the cost of, and waits until
// they hold nothing any more. It does nothing for a pod that found room.
func (n *node) makeRoom(ctx context.Context, d pod.Desired) error {
	uid := pod.UID(d.Pod.UID)
	if !n.preemption.noted(uid) {
		return nil
	}
	var patience <-chan time.Time // for ever
	first := n.preemption.first(uid)
	if first {
		patience = time.After(tellAfter)
	}
	for told := !first; ; told = true {
		snapshots := n.dispatcher.Holders()
		for i := range snapshots {
			snapshots[i] = snapshots[i].AsHeld()
		}
		v := admission.Decide(d, snapshots, n.admissionNode())
		if len(v.Preempt) == 0 { // a rejection comes too late: the pod was admitted
			n.preemption.forget(uid)
			return nil
		}
		waiting := n.preempt(snapshots, v.Preempt)
		if !told {
			n.event(uid, pod.Event{Reason: admission.Preempting, Message: "waits for the end of " + waiting + ", which make room for it", At: time.Now()})
		}
		select {
		case <-ctx.Done():
			return &pod.Error{Op: "make room", Kind: pod.Unavailable, Reason: pod.FailedCreatePodSandBox, Err: fmt.Errorf("%s must end first, to make room for this pod: %w", waiting, ctx.Err())}
		case <-patience:
			return &pod.Error{Op: "make room", Kind: pod.Unavailable, Reason: pod.FailedCreatePodSandBox, Err: fmt.Errorf("%s must end first, to make room for this pod", waiting)}
		case <-time.After(roomPeriod):
		}
	}
}

// preempt asks the pods to end, each once, and returns their names.
func (n *node) preempt(snapshots []pod.Snapshot, victims []pod.UID) string {
	chosen := make(map[pod.UID]bool, len(victims))
	for _, uid := range victims {
		chosen[uid] = true
	}
	var names []string
	for _, s := range snapshots {
		if !chosen[s.UID] {
			continue
		}
		names = append(names, s.Desired.Pod.Namespace+"/"+s.Desired.Pod.Name)
		if s.Desired.Termination == nil && n.dispatcher.Terminate(s.UID, admission.Preemption(time.Now())) {
			n.event(s.UID, pod.Event{Warning: true, Reason: admission.Preempting, Message: admission.PreemptingEvent, At: time.Now()})
		}
	}
	return strings.Join(names, ", ")
}

// askFeatures asks the runtime what it can do, before the first pod is looked at.
func (n *node) askFeatures(ctx context.Context) error {
	r, err := n.cri.Status(ctx, &runtimeapi.StatusRequest{})
	if err != nil {
		return fmt.Errorf("ask the container runtime for its features: %w", err)
	}
	n.noStrictGroups = !r.GetFeatures().GetSupplementalGroupsPolicy()
	for _, h := range r.RuntimeHandlers {
		n.recursive[h.Name] = h.GetFeatures().GetRecursiveReadOnlyMounts()
	}
	return nil
}

// noteRestored has the pods that an earlier agent took in look for room before
// they get a sandbox: it may have been killed between admitting one and asking
// others to end for it.
func (n *node) noteRestored(records map[pod.UID]pod.Record, known map[pod.UID]runtime.Known) {
	for uid := range records {
		if len(known[uid].Observed.Sandboxes) == 0 {
			n.preemption.note(uid)
		}
	}
}

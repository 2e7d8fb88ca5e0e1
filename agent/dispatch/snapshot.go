package dispatch

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

// others returns the snapshots of all entries but uid. The caller holds mu.
func (d *Dispatcher) others(uid pod.UID) []pod.Snapshot {
	all := make([]*entry, 0, len(d.entries))
	for _, e := range d.entries {
		if e.uid != uid {
			all = append(all, e)
		}
	}
	slices.SortFunc(all, func(a, b *entry) int {
		return cmp.Or(cmp.Compare(a.desired.Pod.Namespace, b.desired.Pod.Namespace), cmp.Compare(a.desired.Pod.Name, b.desired.Pod.Name), cmp.Compare(a.arrival, b.arrival))
	})
	out := make([]pod.Snapshot, len(all))
	for i, e := range all {
		out[i] = e.snapshot()
	}
	return out
}

func (e *entry) snapshot() pod.Snapshot {
	if e.worker == nil {
		return e.placeholder
	}
	return *e.worker.Snapshot()
}

// Get returns the snapshot of the pod of that name: the one that runs, if a
// successor waits for its end.
func (d *Dispatcher) Get(namespace, name string) (pod.Snapshot, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var best *entry
	for _, e := range d.entries {
		if e.desired.Pod.Namespace != namespace || e.desired.Pod.Name != name {
			continue
		}
		if best == nil || best.worker == nil && e.worker != nil || (best.worker == nil) == (e.worker == nil) && e.arrival > best.arrival {
			best = e
		}
	}
	if best == nil {
		return pod.Snapshot{}, false
	}
	return best.snapshot(), true
}

// waitingSnapshot shows a pod that has no worker yet.
func waitingSnapshot(uid pod.UID, p pod.Desired) pod.Snapshot {
	now := time.Now()
	const cause = "The pod waits for the end of the pod of the same name before it."
	return pod.Snapshot{UID: uid, At: now, Desired: p, Status: v1.PodStatus{Phase: v1.PodPending, Message: cause}, Explanation: pod.Explanation{
		Cause: cause, Reason: pod.PodInitializing, Since: now,
		Next: "It starts when nothing of the other is left.",
	}}
}

// minimalPod stands in for a pod of which only the runtime knows: enough to end it.
func minimalPod(uid pod.UID, o ObservedPod) *v1.Pod {
	grace := int64(1)
	p := &v1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: o.Namespace, Name: o.Name, UID: types.UID(uid)}}
	p.Spec.TerminationGracePeriodSeconds = &grace
	for _, s := range o.Observed.Sandboxes {
		p.Spec.HostNetwork = p.Spec.HostNetwork || s.HostNetwork
	}
	return p
}

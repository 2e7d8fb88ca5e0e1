package admission

import (
	"cmp"
	"slices"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// Preempting is the reason of a pod's end, and of its event, when it made room
// for another.
const Preempting pod.Reason = "Preempting"

// PreemptingEvent is the message of the event that tells of it.
const PreemptingEvent = "Preempted in order to admit critical pod"

// Preemption asks a pod to end for another, by its own grace period.
func Preemption(now time.Time) pod.Termination {
	return pod.Termination{
		Requested: now, Reason: Preempting, Message: PreemptingEvent,
		Disruption: "Pod was preempted by Kubelet to accommodate a critical pod.",
	}
}

// criticalPriority is the least priority that makes a pod critical.
const criticalPriority = 2000000000

// systemClasses are the priority classes that every cluster has.
var systemClasses = map[string]int32{"system-node-critical": criticalPriority + 1000, "system-cluster-critical": criticalPriority}

// priority is the pod's. Without a cluster nobody resolves the two classes that
// are always there, so it is done here; no priority counts as 0, which a cluster
// would have set.
func priority(p *v1.Pod) int32 {
	if p.Spec.Priority != nil {
		return *p.Spec.Priority
	}
	return systemClasses[p.Spec.PriorityClassName]
}

// SystemCritical says that the node or its cluster cannot do without p: it is
// not evicted. Other than with the kubelet, a pod is not critical for coming
// from a manifest: on a node without a cluster, that would be all of them.
func SystemCritical(p *v1.Pod) bool { return priority(p) >= criticalPriority }

// static says that the pod comes from this node and not from a cluster.
func static(d pod.Desired) bool { return d.Source != pod.SourceAPI && d.Source != "" }

// critical pods may preempt others: those of a critical priority, and the
// node's own.
func critical(d pod.Desired) bool { return static(d) || SystemCritical(d.Pod) }

// preemptable says that victim may be ended to make room for d.
func preemptable(d, victim pod.Desired) bool {
	return critical(d) && !critical(victim) || priority(d.Pod) > priority(victim.Pod)
}

// victims chooses the pods to end so that lacks are met: guaranteed ones as few
// as possible, then burstable ones, then those of best effort; within a class
// those whose requests come nearest to what lacks. Pods that are on their way
// out count as given back, but are named as well: they have to be waited for.
// Nil if d may not preempt, or all it may would not do.
func victims(d pod.Desired, running []*pod.Snapshot, lacks []shortage) []pod.UID {
	if !critical(d) {
		return nil
	}
	need := map[v1.ResourceName]int64{}
	for _, s := range lacks {
		need[s.name] = s.missing()
	}
	var chosen []*pod.Snapshot
	classes := map[v1.PodQOSClass][]*pod.Snapshot{}
	for _, r := range running {
		switch {
		case r.Desired.Termination != nil:
			if distance(r.Desired.Pod, need) < float64(len(need)) {
				chosen = append(chosen, r)
			}
		case preemptable(d, r.Desired):
			class := r.Status.QOSClass
			if class == "" {
				class = v1.PodQOSBestEffort // not decided yet: nothing of it runs
			}
			classes[class] = append(classes[class], r)
		}
	}
	guaranteed, burstable, bestEffort := classes[v1.PodQOSGuaranteed], classes[v1.PodQOSBurstable], classes[v1.PodQOSBestEffort]
	need = subtract(need, chosen)
	if len(subtract(need, guaranteed, burstable, bestEffort)) > 0 {
		return nil
	}
	guaranteed = nearest(guaranteed, subtract(need, burstable, bestEffort))
	burstable = nearest(burstable, subtract(need, guaranteed, bestEffort))
	bestEffort = nearest(bestEffort, subtract(need, guaranteed, burstable))
	var uids []pod.UID
	for _, s := range slices.Concat(chosen, bestEffort, burstable, guaranteed) {
		uids = append(uids, s.UID)
	}
	return uids
}

// subtract returns what still lacks once pods are gone.
func subtract(need map[v1.ResourceName]int64, pods ...[]*pod.Snapshot) map[v1.ResourceName]int64 {
	left := map[v1.ResourceName]int64{}
	for name, n := range need {
		for _, list := range pods {
			for i := range list {
				n -= amountOf(list[i].Desired.Pod, name)
			}
		}
		if n > 0 {
			left[name] = n
		}
	}
	return left
}

// nearest takes pods, one after the other, whose requests are nearest to what
// is still needed; of those as near as each other, the least in priority. All of them together are enough.
func nearest(pods []*pod.Snapshot, need map[v1.ResourceName]int64) []*pod.Snapshot {
	pods = slices.Clone(pods)
	var taken []*pod.Snapshot
	for len(need) > 0 && len(pods) > 0 {
		best := 0
		for i := range pods {
			p, q := pods[i].Desired.Pod, pods[best].Desired.Pod
			if cmp.Or(cmp.Compare(distance(p, need), distance(q, need)), cmp.Compare(priority(p), priority(q)), bySize(p, q)) < 0 {
				best = i
			}
		}
		taken = append(taken, pods[best])
		need = subtract(need, pods[best:best+1])
		pods = slices.Delete(pods, best, best+1)
	}
	return taken
}

// distance is 0 for a pod that holds all that is needed, and grows by at most 1
// for each resource of which it holds less.
func distance(p *v1.Pod, need map[v1.ResourceName]int64) float64 {
	sum := 0.0
	for name, n := range need {
		if left := float64(n - amountOf(p, name)); left > 0 {
			sum += (left / float64(n)) * (left / float64(n))
		}
	}
	return sum
}

// bySize compares memory, then cpu.
func bySize(a, b *v1.Pod) int {
	return cmp.Or(cmp.Compare(amountOf(a, v1.ResourceMemory), amountOf(b, v1.ResourceMemory)), cmp.Compare(amountOf(a, v1.ResourceCPU), amountOf(b, v1.ResourceCPU)))
}

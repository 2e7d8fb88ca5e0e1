package dispatch

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/agent/worker"
)

// resizer is a node that puts every resize in force at once.
type resizer struct{ *node }

func (n resizer) Do(ctx context.Context, t worker.Task) pod.Result {
	r := n.node.Do(ctx, t)
	if t.Action.Op == pod.OpResize {
		r.Actuated = &pod.Actuated{Generation: t.Action.Generation, Containers: map[pod.ContainerID]v1.ResourceRequirements{}}
		for _, c := range t.Observed.Containers {
			r.Actuated.Containers[c.ID] = t.Desired.Pod.Spec.Containers[0].Resources
		}
	}
	return r
}

func memory(n int64) v1.ResourceRequirements {
	return v1.ResourceRequirements{Requests: v1.ResourceList{v1.ResourceMemory: *resource.NewQuantity(n, resource.DecimalSI)}}
}

func memoryOf(p *v1.Pod) int64 { return p.Spec.Containers[0].Resources.Requests.Memory().Value() }

// used is what pods hold that have not ended.
func used(pods []pod.Snapshot, but pod.UID) (sum int64) {
	for _, s := range pods {
		if s.UID != but && s.Status.Phase != v1.PodSucceeded && s.Status.Phase != v1.PodFailed {
			sum += memoryOf(s.AsHeld().Desired.Pod)
		}
	}
	return sum
}

const roomFor = 10

// TestResizes: a resize without room is put off, and granted when another pod
// has left; what is granted counts for those that come after.
func TestResizes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := newNode()
		d := n.dispatcher(t, pod.SourceFile)
		d.config.Worker.Runtime = resizer{n}
		decisions := 0
		d.config.Allocate = func(pods []pod.Snapshot) (out []pod.Allocation) {
			decisions++
			for _, s := range pods {
				if !s.Resize.Undecided() {
					continue
				}
				a := pod.Allocation{UID: s.UID, Generation: s.Resize.Desired.Generation, Granted: memoryOf(s.Desired.Pod)+used(pods, s.UID) <= roomFor}
				if !a.Granted {
					a.Pending = pod.ResizePending{Reason: pod.ResizeDeferred, Message: "no room"}
				}
				if a.Granted || s.Resize.Pending == nil {
					out = append(out, a)
				}
			}
			return out
		}
		admitted := int64(0)
		d.config.Admit = func(_ pod.Desired, others []pod.Snapshot) *pod.Rejection {
			admitted = 0
			for _, s := range others {
				admitted += memoryOf(s.Desired.Pod)
			}
			return nil
		}
		running := make(chan error, 1)
		go func() { running <- d.RunResizes(t.Context()) }()
		a, b := testPod("a", "ua"), testPod("b", "ub")
		a.Pod.Spec.Containers[0].Resources, b.Pod.Spec.Containers[0].Resources = memory(2), memory(6)
		d.Update(pod.SourceFile, []pod.Desired{a, b})
		time.Sleep(time.Second)
		ask := func(n int64) error {
			return d.Resize(t.Context(), "ua", func(shown *v1.Pod) (pod.Resources, error) {
				want := pod.ResourcesOf(shown)
				want.Containers = map[pod.ContainerName]v1.ResourceRequirements{"app": memory(n)}
				return want, nil
			})
		}
		stands := func(when string, desired, allocated, held int64, pending bool) {
			t.Helper()
			time.Sleep(time.Second)
			s, _ := d.Get("ns", "a")
			got := fmt.Sprint(memoryOf(s.Desired.Pod), memoryOf(s.Resize.Allocated.Into(s.Desired.Pod)), memoryOf(s.Held), s.Resize.Pending != nil)
			if want := fmt.Sprint(desired, allocated, held, pending); got != want {
				t.Errorf("%s: desired, allocated, held, pending %s, want %s", when, got, want)
			}
		}
		if err := ask(3); err != nil {
			t.Fatal(err)
		}
		stands("room", 3, 3, 3, false)
		if err := ask(8); err != nil {
			t.Fatal(err)
		}
		stands("no room", 8, 3, 3, true)
		rest := decisions
		time.Sleep(time.Minute)
		if decisions != rest {
			t.Errorf("%d decisions while nothing changed", decisions-rest)
		}
		d.Update(pod.SourceFile, []pod.Desired{a})
		time.Sleep(5 * time.Second)
		stands("the other has left", 8, 8, 8, false)
		c := testPod("c", "uc")
		d.Update(pod.SourceFile, []pod.Desired{a, c})
		if admitted != 8 {
			t.Errorf("admission was told that %d is held, want 8", admitted)
		}
		if err := d.Resize(t.Context(), "nobody", nil); pod.KindOf(err) != pod.NotFound {
			t.Errorf("a resize of nobody: %v", err)
		}
		if err := d.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		d.resizes.ring()
		time.Sleep(time.Second)
		select {
		case err := <-running:
			t.Errorf("it ended before its context: %v", err)
		default:
		}
	})
}

// TestGrantOnItsWay: until its worker has stored it, a grant counts all the same.
func TestGrantOnItsWay(t *testing.T) {
	n := newNode()
	d := n.dispatcher(t, pod.SourceFile)
	p := testPod("a", "ua")
	p.Pod.Spec.Containers[0].Resources = memory(2)
	wanted := p.Pod.DeepCopy()
	wanted.Spec.Containers[0].Resources = memory(5)
	wanted.Generation = 2
	rs := &pod.Resize{Desired: pod.ResourcesOf(wanted), Allocated: pod.ResourcesOf(p.Pod)}
	e := d.enter("ua", p)
	e.placeholder = pod.Snapshot{UID: "ua", Desired: pod.Desired{Pod: wanted}, Held: p.Pod, Resize: rs}
	if got := used(d.holders(""), ""); got != 2 {
		t.Errorf("before the grant %d is held", got)
	}
	d.resizes.granted["ua"] = pod.Allocation{UID: "ua", Generation: 2, Granted: true}
	if got := d.holders("")[0]; memoryOf(got.Held) != 5 || got.Resize.Undecided() {
		t.Errorf("after the grant %+v", got.Resize)
	}
	d.resizes.granted["ua"] = pod.Allocation{UID: "ua", Generation: 1, Granted: true} // of an older wish
	if got := used(d.holders(""), ""); got != 2 {
		t.Errorf("by an older grant %d is held", got)
	}
	if err := d.RunResizes(canceled(t)); !errors.Is(err, context.Canceled) {
		t.Errorf("RunResizes: %v", err)
	}
}

func canceled(t *testing.T) context.Context {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

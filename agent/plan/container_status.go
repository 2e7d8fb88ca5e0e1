package plan

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/berthd/berth/agent/pod"
)

// containerStatus is the status of m: its current instance, or what it waits for.
func (d *decision) containerStatus(m *member) v1.ContainerStatus {
	started := d.started(m)
	cs := v1.ContainerStatus{Name: string(m.name), Image: m.spec.Image, Ready: d.ready(m), Started: &started, VolumeMounts: d.mountStatuses(m.spec)}
	if m.kind == pod.Ephemeral {
		cs.Started = nil
	}
	if n := d.rec.Durable.Restarts[m.name]; n > 0 {
		cs.RestartCount = int32(n - 1)
	}
	if l := m.spec.Lifecycle; l != nil {
		cs.StopSignal = l.StopSignal
	}
	if len(m.spec.Resources.Requests) > 0 {
		cs.AllocatedResources = m.spec.Resources.Requests
	}
	if m.kind != pod.Ephemeral && (len(m.spec.Resources.Requests) > 0 || len(m.spec.Resources.Limits) > 0) {
		cs.Resources = d.actualResources(m)
	}
	shown := m.shown()
	if shown == nil {
		if d.neverShown(m, &cs); m.cur != nil && d.end == endNone && d.failureWaits(m) == nil {
			cs.State = v1.ContainerState{Waiting: &v1.ContainerStateWaiting{}} // made and not yet started
		}
		return cs
	}
	d.identify(&cs, shown)
	if wasReset(shown) {
		cs.RestartCount++ // the instance to come is counted already
	}
	if m.cur != nil && m.cur.State == pod.Created && d.end == endNone && d.failureWaits(m) == nil {
		cs.State.Waiting = &v1.ContainerStateWaiting{} // made and not yet started
		if shown.State == pod.Exited {
			cs.LastTerminationState.Terminated = d.terminated(shown)
		}
		return cs
	}
	switch shown.State {
	case pod.Running:
		if !d.hooked(m) && d.end == endNone { // as in Kubernetes, it runs when its hook has
			cs.State.Waiting = d.patience()
		} else {
			cs.State.Running = &v1.ContainerStateRunning{StartedAt: wallTime(shown.StartedAt)}
		}
		if prev := d.before(m, shown); prev != nil {
			cs.LastTerminationState.Terminated = d.terminated(prev)
		}
	case pod.Exited:
		d.exitedStatus(m, shown, &cs)
	case pod.Unknown: // it is being stopped; what became of it cannot be told
		cs.State.Terminated = &v1.ContainerStateTerminated{
			Reason: string(pod.ContainerStatusUnknown), ExitCode: 137, Message: lostMessage,
			ContainerID: cs.ContainerID, StartedAt: wallTime(shown.StartedAt),
		}
	}
	return cs
}

// shown is the instance that the status is about.
func (m *member) shown() *pod.Container {
	if m.cur != nil && m.cur.State != pod.Created {
		return m.cur
	}
	return m.last
}

// before is m's newest ended instance older than c that anybody remembers.
func (d *decision) before(m *member, c *pod.Container) *pod.Container {
	var found *pod.Container
	for i := range m.all {
		if o := &m.all[i]; o.Attempt < c.Attempt && o.State == pod.Exited {
			found = o
			break
		}
	}
	for _, remembered := range []map[pod.ContainerName]pod.Container{d.rec.Durable.Ended, d.rec.Boot.Gone} {
		if o, ok := remembered[m.name]; ok && o.Attempt < c.Attempt && (found == nil || o.Attempt > found.Attempt) {
			found = &o
		}
	}
	return found
}

func (d *decision) identify(cs *v1.ContainerStatus, c *pod.Container) {
	if c.ID != "" {
		cs.ContainerID = d.containerURL(c.ID)
	}
	if c.Image != "" {
		cs.Image = c.Image
	}
	cs.ImageID = c.ImageRef
	if cs.ImageID == "" {
		cs.ImageID = c.ImageID
	}
	if u := c.User; u != nil {
		cs.User = &v1.ContainerUser{Linux: &v1.LinuxContainerUser{UID: u.UID, GID: u.GID, SupplementalGroups: u.SupplementalGroups}}
	}
}

func (d *decision) containerURL(id pod.ContainerID) string {
	return d.Config.RuntimeName + "://" + string(id)
}

// exitedStatus tells of a container whose newest instance has ended: that end,
// or what keeps its successor waiting.
func (d *decision) exitedStatus(m *member, c *pod.Container, cs *v1.ContainerStatus) {
	again := d.end == endNone && !(m.kind == pod.Init && d.initialized) && (d.mayRestart(m) || m.kind == pod.Init && c != m.cur)
	var waiting *v1.ContainerStateWaiting
	if again {
		waiting = d.restartWaits(m)
	}
	if waiting == nil {
		cs.State.Terminated = d.terminated(c)
		if prev := d.before(m, c); prev != nil {
			cs.LastTerminationState.Terminated = d.terminated(prev)
		}
		return
	}
	cs.State.Waiting, cs.LastTerminationState.Terminated = waiting, d.terminated(c)
}

// restartWaits says what keeps m's next instance from starting, nil if nothing does.
func (d *decision) restartWaits(m *member) *v1.ContainerStateWaiting {
	if w := d.failureWaits(m); w != nil {
		return w
	}
	b, ok := d.rec.Boot.Backoff[m.name]
	if ok && b.Instance == m.last.ID && d.Now.Before(dueAfter(m.last, b)) {
		return &v1.ContainerStateWaiting{
			Reason:  string(pod.CrashLoopBackOff),
			Message: fmt.Sprintf("back-off %v restarting failed container=%s pod=%s", b.Delay, m.name, podWithUID(d.pod.Namespace, d.pod.Name, d.pod.UID)),
		}
	}
	if wasReset(m.last) && m.cur == nil {
		return &v1.ContainerStateWaiting{Reason: string(pod.RestartingAllContainers), Message: resetMessage}
	}
	if d.sandbox == nil || m.cur == nil { // it waits for the new sandbox, or for its turn there
		return d.patience()
	}
	return nil
}

// failureWaits tells of a failed pull or start, nil if there is none.
func (d *decision) failureWaits(m *member) *v1.ContainerStateWaiting {
	image := m.spec.Image
	f, ok := d.Failures[pod.ImageSlot(m.name)]
	if !ok {
		image, f, ok = d.volumeImageFailure(m)
	}
	if ok {
		if pullFailed(f) && !d.Now.Before(pullBackOffShown(f)) {
			return &v1.ContainerStateWaiting{Reason: string(pod.ImagePullBackOff), Message: fmt.Sprintf("Back-off pulling image %q: %s: %s", image, f.Reason, strings.TrimPrefix(f.Message, string(f.Reason)+": "))}
		}
		return &v1.ContainerStateWaiting{Reason: string(f.Reason), Message: f.Message}
	}
	if f, ok := d.Failures[m.slot]; ok && (f.Op == pod.OpStartContainer || f.Op == pod.OpPostStart) {
		return &v1.ContainerStateWaiting{Reason: string(f.Reason), Message: f.Message}
	}
	return nil
}

// pullBackOffShown is when ErrImagePull, the news, becomes ImagePullBackOff, the state.
func pullBackOffShown(f pod.Failure) time.Time { return f.At.Add(f.NotBefore.Sub(f.At) / 4) }

// neverShown tells of a container of which no instance is known.
func (d *decision) neverShown(m *member, cs *v1.ContainerStatus) {
	switch {
	case m.kind == pod.Init && d.initialized:
		cs.State.Terminated = &v1.ContainerStateTerminated{Reason: string(pod.Completed), Message: "Unable to get init container status from container runtime and pod has been initialized, treat it as exited normally"}
	case d.inTurn(m) && d.failureWaits(m) != nil:
		cs.State.Waiting = d.failureWaits(m)
	default:
		cs.State.Waiting = d.patience()
	}
}

// inTurn says that m's predecessors no longer hold it up.
func (d *decision) inTurn(m *member) bool {
	if d.initialized || m.kind == pod.Ephemeral {
		return true
	}
	for _, o := range d.members {
		switch {
		case o == m:
			return true
		case o.kind == pod.Init && !d.initDone(o), o.kind == pod.Sidecar && !d.started(o):
			return false
		}
	}
	return true
}

// patience is the waiting state in which nothing is wrong.
func (d *decision) patience() *v1.ContainerStateWaiting {
	if len(d.pod.Spec.InitContainers) > 0 {
		return &v1.ContainerStateWaiting{Reason: string(pod.PodInitializing)}
	}
	return &v1.ContainerStateWaiting{Reason: string(pod.ContainerCreating)}
}

func (d *decision) terminated(c *pod.Container) *v1.ContainerStateTerminated {
	t := &v1.ContainerStateTerminated{
		ExitCode: c.ExitCode, Reason: c.Reason, Message: c.Message,
		StartedAt: wallTime(c.StartedAt), FinishedAt: wallTime(c.FinishedAt),
	}
	if c.ID != "" {
		t.ContainerID = d.containerURL(c.ID)
	}
	if t.Reason == "" {
		t.Reason = string(pod.ReasonError)
		if c.ExitCode == 0 {
			t.Reason = string(pod.Completed)
		}
	}
	return t
}

// wallTime has whole seconds, as a status stored as JSON has.
func wallTime(t time.Time) metav1.Time {
	if t.IsZero() {
		return metav1.Time{}
	}
	return metav1.NewTime(t.Truncate(time.Second))
}

// mountStatuses tells of c's mounts, and what "recursive read-only if possible" has come to.
func (d *decision) mountStatuses(c *v1.Container) []v1.VolumeMountStatus {
	var out []v1.VolumeMountStatus
	for _, vm := range c.VolumeMounts {
		s := v1.VolumeMountStatus{Name: vm.Name, MountPath: vm.MountPath, ReadOnly: vm.ReadOnly}
		if vm.ReadOnly {
			mode := v1.RecursiveReadOnlyDisabled
			alone := vm.MountPropagation == nil || *vm.MountPropagation == v1.MountPropagationNone
			if want := vm.RecursiveReadOnly; want != nil && alone && (*want == v1.RecursiveReadOnlyEnabled ||
				*want == v1.RecursiveReadOnlyIfPossible && d.Config.RecursiveReadOnly[d.Desired.RuntimeHandler]) {
				mode = v1.RecursiveReadOnlyEnabled
			}
			s.RecursiveReadOnly = &mode
		}
		out = append(out, s)
	}
	return out
}

// pullFailed tells a pull that was tried and failed from an image that is never
// pulled, or whose name is none.
func pullFailed(f pod.Failure) bool {
	switch f.Reason {
	case pod.ErrImageNeverPull, pod.InvalidImageName, pod.ImageInspectError:
		return false
	}
	return true
}

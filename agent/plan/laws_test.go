package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// watchStart checks the laws of starting.
func (w *world) watchStart(a pod.Action) {
	if o, ok := w.state.InFlight[a.Slot]; ok {
		w.breaks("%s starts while %s is in flight in its slot", key(a), key(o))
	}
	ended := w.disk.Durable.Outcome != nil || w.disk.Durable.Termination != nil || w.state.Desired.Rejection != nil
	switch a.Op {
	case pod.OpStartContainer, pod.OpCreateSandbox, pod.OpPullImage, pod.OpMountVolumes, pod.OpPostStart:
		if ended {
			w.breaks("%s starts although the pod has ended", key(a))
		}
	}
	if a.Op == pod.OpStartContainer {
		w.watchContainer(a)
	}
	if a.Op == pod.OpStopContainer {
		w.watchStop(a)
	}
	if a.Op == pod.OpRemoveContainer {
		w.watchRemove(a)
	}
}

// watchRemove checks that a reset takes its sources last, and mains before init containers.
func (w *world) watchRemove(a pod.Action) {
	r := w.disk.Durable.Reset
	if r == nil {
		return
	}
	rank := func(name pod.ContainerName) int {
		switch {
		case slices.ContainsFunc(w.state.mergedPod().Spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == string(name) }):
			return 5
		case slices.Contains(r.Sources, name) && w.isInit(name):
			return 4
		case slices.Contains(r.Sources, name):
			return 3
		case w.isInit(name):
			return 2
		}
		return 1
	}
	for _, c := range w.containers {
		if rank(c.Name) < rank(a.Container) {
			w.breaks("a reset removes %s before %s", a.Container, c.Name)
		}
	}
}

func (w *world) isInit(name pod.ContainerName) bool {
	return slices.ContainsFunc(w.state.Desired.Pod.Spec.InitContainers, func(c v1.Container) bool { return c.Name == string(name) })
}

func (w *world) watchContainer(a pod.Action) {
	if c := w.running(a.Container); c != nil {
		w.breaks("a second instance of %s starts beside %s", a.Container, c.ID)
	}
	if !w.mounted || !slices.ContainsFunc(w.sandboxes, func(s pod.Sandbox) bool { return s.ID == a.SandboxID }) {
		w.breaks("%s starts without its sandbox or volumes", a.Container)
	}
	for _, c := range w.containers {
		if c.Name == a.Container && c.State != pod.Created && c.Attempt >= a.Attempt {
			w.breaks("%s starts with attempt %d, which has been used", a.Container, a.Attempt)
		}
	}
	if r := w.disk.Durable.Reset; r != nil {
		w.breaks("%s starts in the middle of a reset", a.Container)
	}
	spec := &w.state.mergedPod().Spec
	if slices.ContainsFunc(spec.EphemeralContainers, func(c v1.EphemeralContainer) bool { return c.Name == string(a.Container) }) {
		if a.Attempt > 0 {
			w.breaks("ephemeral container %s is restarted", a.Container)
		}
		return
	}
	for _, v := range imageVolumes(w.state.Desired.Pod) {
		if w.pulls[v.Name] == 0 {
			w.breaks("%s starts before the image of volume %s was tried", a.Container, v.Name)
		}
	}
	index := slices.IndexFunc(spec.InitContainers, func(c v1.Container) bool { return c.Name == string(a.Container) })
	if index < 0 {
		index = len(spec.InitContainers)
	}
	again := slices.ContainsFunc(w.containers, func(c pod.Container) bool { return c.Name == a.Container && c.SandboxID == a.SandboxID })
	for _, c := range spec.InitContainers[:index] {
		done := slices.ContainsFunc(w.containers, func(o pod.Container) bool {
			return o.Name == pod.ContainerName(c.Name) && o.SandboxID == a.SandboxID && (isSidecar(&c) && o.State != pod.Created || o.State == pod.Exited && o.ExitCode == 0)
		})
		if !done && !again {
			w.breaks("%s starts before init container %s is done", a.Container, c.Name)
		}
	}
}

// watchStop checks that sidecars go last while their grace lasts.
func (w *world) watchStop(a pod.Action) {
	spec := &w.state.Desired.Pod.Spec
	index := slices.IndexFunc(spec.InitContainers, func(c v1.Container) bool { return c.Name == string(a.Container) })
	if index < 0 || !isSidecar(&spec.InitContainers[index]) || w.disk.Durable.Termination == nil {
		return
	}
	if st := w.disk.Boot.Stopping[a.ContainerID]; !w.now.Before(st.Deadline) {
		return
	}
	before := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers[index+1:] {
		if isSidecar(&c) {
			before = append(before, c)
		}
	}
	for _, c := range before {
		if o := w.running(pod.ContainerName(c.Name)); o != nil && !w.uncertain(o.Name) {
			w.breaks("sidecar %s is stopped before %s", a.Container, c.Name)
		}
	}
}

// uncertain says that the plan could not know that name runs.
func (w *world) uncertain(name pod.ContainerName) bool {
	return !slices.ContainsFunc(w.state.Observed.Containers, func(c pod.Container) bool { return c.Name == name && alive(&c) })
}

// watchStatus checks that what is published never goes back.
func (w *world) watchStatus(st v1.PodStatus) {
	ended := func(p v1.PodPhase) bool { return p == v1.PodSucceeded || p == v1.PodFailed }
	if ended(w.phase) && st.Phase != w.phase {
		w.breaks("phase went from %s to %s", w.phase, st.Phase)
	}
	w.phase = st.Phase
	for _, cs := range slices.Concat(st.InitContainerStatuses, st.ContainerStatuses) {
		if cs.RestartCount < w.counts[cs.Name] {
			w.breaks("restart count of %s went from %d to %d", cs.Name, w.counts[cs.Name], cs.RestartCount)
		}
		w.counts[cs.Name] = cs.RestartCount
	}
	if ended(st.Phase) {
		for _, c := range w.containers {
			if alive(&c) && !w.uncertain(c.Name) {
				w.breaks("phase %s is published while %s runs", st.Phase, c.Name)
			}
		}
	}
}

package plan

import (
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/berthd/berth/agent/pod"
)

// NewState returns the state of a pod that nothing has been done for by this
// worker. record and observed are what is known from before; both may be zero.
func NewState(desired pod.Desired, record pod.Record, observed pod.Observed, config Config) State {
	s := State{
		Desired: desired, Record: record, Observed: observed, Config: config,
		InFlight: map[pod.Slot]pod.Action{}, Failures: recalled(record.Boot.Failures, &observed),
		Stale: map[pod.Slot]bool{}, Last: map[pod.Slot]Success{},
	}
	s.mergedPod()
	return s
}

// Begin notes that a has been started.
func (s *State) Begin(a pod.Action) {
	s.InFlight[a.Slot] = a
	if a.Op == pod.OpObserve {
		s.covered, s.Look = maps.Clone(s.Stale), false
	}
}

// SetDesired takes in a new desire. When the pod's inputs changed, whatever
// failed for want of them is tried again at once.
func (s *State) SetDesired(d pod.Desired) {
	d = Merge(s.Desired, d)
	if d.Inputs.Version != s.Desired.Inputs.Version {
		for slot, f := range s.Failures {
			if f.Kind == pod.Invalid || f.Kind == pod.NotFound {
				f.NotBefore = time.Time{}
				s.Failures[slot] = f
			}
		}
	}
	s.Desired = d
	s.mergedPod()
}

// Merge returns next with what can never be taken back from prev: a
// termination, whose grace only shrinks, a rejection, and being forgotten.
func Merge(prev, next pod.Desired) pod.Desired {
	if prev.Termination != nil {
		next.Termination = mergeTermination(prev.Termination, next.Termination)
	}
	if prev.Rejection != nil {
		next.Rejection = prev.Rejection
	}
	next.Forget = next.Forget || prev.Forget
	return next
}

// SetVerdict takes in a probe's change of verdict, or with NoVerdict what a probe
// that failed has to say while the verdict stays as it is. The event of each
// failure is the prober's to tell.
func (s *State) SetVerdict(v pod.ProbeVerdict) {
	if !slices.ContainsFunc(s.Observed.Containers, func(c pod.Container) bool { return c.ID == v.Container }) {
		return // of an instance that is gone
	}
	boot := &s.Record.Boot
	if v.Verdict == pod.NoVerdict && !s.news(&v, boot.Verdicts[v.Container][v.Kind]) {
		return
	}
	boot.Verdicts = put(boot.Verdicts, v.Container, put(boot.Verdicts[v.Container], v.Kind, v))
	s.Unsaved.Boot = true
}

// sayAgain is how often at most the words of a failing probe are taken in anew.
const sayAgain = 10 * time.Second

// news says whether v, which changes no verdict, says anything new about a
// failing probe, and gives it the verdict that holds.
func (s *State) news(v *pod.ProbeVerdict, known pod.ProbeVerdict) bool {
	v.Verdict = known.Verdict
	return known.Verdict != pod.Success && v.Message != known.Message && (known.Message == "" || v.At.Sub(known.At) >= sayAgain)
}

// Fold takes in the result of an action that ended at now, and returns what
// there is to tell about it.
func (s *State) Fold(r pod.Result, now time.Time) []pod.Event {
	a := r.Action
	delete(s.InFlight, a.Slot)
	if a.Op == pod.OpObserve {
		return s.foldObserve(r, now)
	}
	if needsLook(a.Op) {
		s.Stale[a.Slot] = true
	}
	events := s.foldHook(r, now)
	if a.Op == pod.OpStartContainer { // each start is preceded by an ensure-image of its own
		s.Observed.Images = without(s.Observed.Images, a.Container)
	}
	if r.Err != nil {
		if a.Op == pod.OpStartContainer {
			s.Observed.VolumeImages = nil // one of them may have been removed
		}
		return append(s.foldFailure(r, now), events...)
	}
	if f, ok := s.Failures[a.Slot]; ok && (f.Op == a.Op || a.Op == pod.OpStartContainer) {
		delete(s.Failures, a.Slot)
	}
	last, done := s.Last[a.Slot], Success{Action: a, At: now}
	if sameWork(last.Action, a) {
		done.Repeats = last.Repeats + 1
	}
	s.Last[a.Slot] = done
	switch a.Op {
	case pod.OpMountVolumes:
		s.Observed.Volumes, s.Observed.VolumesVersion, s.Observed.Dirty = orEmpty(r.Volumes), r.VolumesVersion, true
	case pod.OpResize:
		s.foldResize(r)
	case pod.OpUnmountVolumes:
		s.Observed.Volumes, s.Observed.VolumesVersion = nil, ""
	case pod.OpPullImage:
		if a.Volume != "" {
			s.Observed.VolumeImages = put(s.Observed.VolumeImages, a.Volume, r.Image)
		} else {
			s.Observed.Images = put(s.Observed.Images, a.Container, r.Image)
		}
	}
	return successEvents(s.mergedPod(), r, now)
}

func orEmpty(m map[string]pod.Volume) map[string]pod.Volume {
	if m == nil {
		return map[string]pod.Volume{}
	}
	return m
}

// needsLook says that an action changes what the runtime would tell.
func needsLook(op pod.Op) bool {
	switch op {
	case pod.OpPullImage, pod.OpMountVolumes, pod.OpUnmountVolumes, pod.OpPostStart, pod.OpPreStop:
		return false
	}
	return true
}

func (s *State) foldObserve(r pod.Result, now time.Time) []pod.Event {
	if r.Err != nil || r.Observed == nil {
		s.Look, s.covered = true, nil
		if r.Err == nil {
			r.Err = &pod.Error{Op: "observe pod", Kind: pod.Internal, Err: errors.New("the runtime's answer was empty")}
		}
		if pod.KindOf(r.Err) != pod.Canceled {
			f := fail(s.Config.withDefaults(), s.Failures[pod.SlotObserve], r, now)
			s.Failures[pod.SlotObserve] = f
			if s.Stale[pod.SlotSandbox] && s.Last[pod.SlotSandbox].Action.Op == pod.OpCreateSandbox {
				return []pod.Event{{Warning: true, Reason: pod.FailedPodSandBoxStatus, Message: "Unable to get pod sandbox status: " + f.Message, At: now}}
			}
		}
		return nil
	}
	delete(s.Failures, pod.SlotObserve)
	next := *r.Observed
	// Volumes and images are facts of our own actions, not of the runtime's list.
	next.Volumes, next.VolumesVersion, next.Images, next.VolumeImages = s.Observed.Volumes, s.Observed.VolumesVersion, s.Observed.Images, s.Observed.VolumeImages
	if next.At.IsZero() {
		next.At = now
	}
	s.keepVanished(next)
	s.Observed = next
	for slot := range s.covered {
		delete(s.Stale, slot)
	}
	s.covered = nil
	return nil
}

// keepVanished remembers how the instances ended that the runtime has forgotten:
// an exit code that was seen is not lost with its container, and one that was
// never seen is said to be lost.
func (s *State) keepVanished(next pod.Observed) {
	newest := map[pod.ContainerName]pod.Container{}
	for _, c := range s.Observed.Containers {
		if n, ok := newest[c.Name]; !ok || c.Attempt > n.Attempt {
			newest[c.Name] = c
		}
	}
	for _, c := range next.Containers {
		if n, ok := newest[c.Name]; ok && c.Attempt >= n.Attempt {
			delete(newest, c.Name)
		}
	}
	boot := &s.Record.Boot
	for name, c := range newest {
		if e, ok := s.Record.Durable.Ended[name]; ok && e.Attempt == c.Attempt {
			c = e // as a reset has it
		}
		inPlace := func(b pod.Sandbox) bool { return b.ID == c.SandboxID && b.Ready }
		if (c.State == pod.Running || c.State == pod.Unknown) && slices.ContainsFunc(next.Sandboxes, inPlace) {
			c = lostInstance(c, vanishedMessage, next.At) // somebody has removed it alone, between two looks
		}
		if g, ok := boot.Gone[name]; c.State == pod.Exited && (!ok || g.Attempt < c.Attempt) {
			boot.Gone, s.Unsaved.Boot = put(boot.Gone, name, c), true
		}
	}
}

// foldHook records that a hook is over. A failed postStart dooms its container.
func (s *State) foldHook(r pod.Result, now time.Time) []pod.Event {
	a, boot := r.Action, &s.Record.Boot
	canceled := r.Err != nil && pod.KindOf(r.Err) == pod.Canceled
	switch a.Op {
	case pod.OpPostStart:
		if canceled {
			return nil
		}
		if r.Err == nil {
			boot.Hooked, s.Unsaved.Boot = put(boot.Hooked, a.ContainerID, true), true
			return nil
		}
		if _, begun := boot.Stopping[a.ContainerID]; !begun {
			grace := 30 * time.Second
			if g := s.Desired.Pod.Spec.TerminationGracePeriodSeconds; g != nil {
				grace = time.Duration(*g) * time.Second
			}
			st := pod.Stopping{Deadline: now.Add(grace), Reason: pod.FailedPostStartHook, Message: string(pod.FailedPostStartHook)}
			boot.Stopping, s.Unsaved.Boot = put(boot.Stopping, a.ContainerID, st), true
			return []pod.Event{{Reason: pod.Killing, Container: a.Container, Message: st.Message, At: now}}
		}
	case pod.OpPreStop:
		if st, ok := boot.Stopping[a.ContainerID]; ok {
			st.PreStopDone = true
			boot.Stopping, s.Unsaved.Boot = put(boot.Stopping, a.ContainerID, st), true
		}
	}
	return nil
}

func (s *State) foldFailure(r pod.Result, now time.Time) []pod.Event {
	a := r.Action
	if pod.KindOf(r.Err) == pod.Canceled {
		return nil // our own change of mind
	}
	before := s.Failures[a.Slot]
	f := fail(s.Config.withDefaults(), before, r, now)
	if f.Reason == "" {
		f.Reason = defaultReason(a.Op)
	}
	s.Failures[a.Slot] = f
	delete(s.Last, a.Slot)
	if a.Op == pod.OpResize {
		return s.resizeFailed(f, before)
	}
	return failureEvents(s.mergedPod(), a, f, now)
}

func without(m map[pod.ContainerName]pod.Image, c pod.ContainerName) map[pod.ContainerName]pod.Image {
	if _, ok := m[c]; !ok {
		return m
	}
	m = maps.Clone(m)
	delete(m, c)
	return m
}

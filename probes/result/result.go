// Package result turns the outcomes of single probes into verdicts: the
// thresholds of Kubernetes' probes, without clock, network or lock.
package result

// Kind is one of the three health checks of a container.
type Kind string

// The kinds, spelled as the agent spells them.
const (
	Startup   Kind = "startup"
	Liveness  Kind = "liveness"
	Readiness Kind = "readiness"
)

// Title is the kind as events spell it.
func (k Kind) Title() string {
	switch k {
	case Startup:
		return "Startup"
	case Liveness:
		return "Liveness"
	case Readiness:
		return "Readiness"
	}
	return string(k)
}

// Verdict is what the outcomes so far amount to.
type Verdict int

// The verdicts. None is the start: no threshold has been reached yet.
const (
	None Verdict = iota
	Success
	Failed
)

// Thresholds are how many equal outcomes in a row make a verdict. Values below
// one count as one.
type Thresholds struct {
	Success, Failure int32
}

// Track follows one probe of one container instance.
//
//	            run of successes ≥ Success
//	None, Failed ─────────────────────────▶ Success
//	None, Success ────────────────────────▶ Failed
//	            run of failures ≥ Failure
//
//	liveness:  Failed is final             (the container is restarted)
//	startup:   Success and Failed are final
//	readiness: never final
//
// Final means held: until the container is another instance there is nothing
// more to find out.
type Track struct {
	kind       Kind
	thresholds Thresholds
	verdict    Verdict
	last       Verdict // outcome of the run
	run        int32   // its length
}

// New starts a track. initial is the verdict of this very instance known from
// before, None if there is none. As in the kubelet an instance that was never
// probed counts as alive and as not ready, so reaching that is no change.
func New(kind Kind, thresholds Thresholds, initial Verdict) Track {
	if initial == None {
		switch kind {
		case Liveness:
			initial = Success
		case Readiness:
			initial = Failed
		}
	}
	return Track{kind: kind, thresholds: thresholds, verdict: initial}
}

// Verdict returns the present verdict.
func (t *Track) Verdict() Verdict { return t.verdict }

// Held says that no further probe is wanted.
func (t *Track) Held() bool {
	switch t.kind {
	case Startup:
		return t.verdict != None
	case Liveness:
		return t.verdict == Failed
	}
	return false
}

// Observe counts one outcome and says whether the verdict changed. Probes that
// could not be carried out are not outcomes and are not to be counted.
func (t *Track) Observe(ok bool) (changed bool) {
	outcome, threshold := Failed, t.thresholds.Failure
	if ok {
		outcome, threshold = Success, t.thresholds.Success
	}
	if outcome != t.last {
		t.last, t.run = outcome, 0
	}
	if t.run < max(threshold, 1) { // stop counting there: a probe may run for years
		t.run++
	}
	if t.run < max(threshold, 1) || t.verdict == outcome {
		return false
	}
	t.verdict = outcome
	return true
}

package worker

import (
	"sync"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// mailbox is where others leave news for a worker. Nobody waits at it: a
// second letter of a kind replaces the first, so it cannot overflow; amendments,
// each of which counts, are refused when too many wait.
type mailbox struct {
	mu       sync.Mutex // held for a few assignments only
	desired  *pod.Desired
	hinted   bool
	verdicts map[verdictKey]pod.ProbeVerdict
	changes  []amendment
	// ready has room for one: more would say nothing more.
	ready chan struct{}
}

type verdictKey struct {
	container pod.ContainerID
	kind      pod.ProbeKind
}

func newMailbox() mailbox {
	return mailbox{verdicts: map[verdictKey]pod.ProbeVerdict{}, ready: make(chan struct{}, 1)}
}

func (m *mailbox) ring() {
	select {
	case m.ready <- struct{}{}:
	default: // it has been rung and not yet heard
	}
}

func (m *mailbox) desire(d pod.Desired) {
	m.mu.Lock()
	if m.desired != nil {
		d = plan.Merge(*m.desired, d)
	}
	m.desired = &d
	m.mu.Unlock()
	m.ring()
}

func (m *mailbox) hint() {
	m.mu.Lock()
	m.hinted = true
	m.mu.Unlock()
	m.ring()
}

func (m *mailbox) verdict(v pod.ProbeVerdict) {
	m.mu.Lock()
	key := verdictKey{v.Container, v.Kind}
	if waiting, ok := m.verdicts[key]; ok && v.Verdict == pod.NoVerdict {
		v.Verdict = waiting.Verdict // what a probe says does not take back what has been decided
	}
	m.verdicts[key] = v
	m.mu.Unlock()
	m.ring()
}

// amend says whether there was room for a.
func (m *mailbox) amend(a amendment) bool {
	m.mu.Lock()
	if len(m.changes) >= maxAmendments {
		m.mu.Unlock()
		return false
	}
	m.changes = append(m.changes, a)
	m.mu.Unlock()
	m.ring()
	return true
}

// letters is what was in a mailbox.
type letters struct {
	desired  *pod.Desired
	hinted   bool
	verdicts []pod.ProbeVerdict
	changes  []amendment
}

// take empties the mailbox.
func (m *mailbox) take() letters {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := letters{desired: m.desired, hinted: m.hinted, changes: m.changes}
	for _, v := range m.verdicts {
		l.verdicts = append(l.verdicts, v)
	}
	m.desired, m.hinted, m.changes = nil, false, nil
	clear(m.verdicts)
	return l
}

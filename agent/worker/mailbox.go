package worker

import (
	"sync"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// mailbox is where others leave news for a worker. Nobody waits at it: a
// second letter of a kind replaces the first, so it cannot overflow.
type mailbox struct {
	mu       sync.Mutex // held for a few assignments only
	desired  *pod.Desired
	hinted   bool
	verdicts map[verdictKey]pod.ProbeVerdict
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
	m.verdicts[verdictKey{v.Container, v.Kind}] = v
	m.mu.Unlock()
	m.ring()
}

// take empties the mailbox.
func (m *mailbox) take() (*pod.Desired, bool, []pod.ProbeVerdict) {
	m.mu.Lock()
	defer m.mu.Unlock()
	desired, hinted := m.desired, m.hinted
	var verdicts []pod.ProbeVerdict
	for _, v := range m.verdicts {
		verdicts = append(verdicts, v)
	}
	m.desired, m.hinted = nil, false
	clear(m.verdicts)
	return desired, hinted, verdicts
}

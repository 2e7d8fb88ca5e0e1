package server

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/berthd/berth/cri/container"
	"github.com/berthd/berth/cri/sandbox"
	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	// maxPending bounds how many objects may have news for one slow subscriber:
	// those that a node can hold, and as many that have gone.
	maxPending = 1 << 15
	// heldFor is how long after the start a subscriber is still told of what ended
	// while no runtime was there to tell it.
	heldFor = 5 * time.Minute
)

// change is the latest news of one object, a container or a sandbox.
type change struct {
	id        string // of the container, or of the sandbox itself
	sandboxID string
	kind      runtimeapi.ContainerEventType
	at        time.Time
}

// Events hands the changes of sandboxes and containers to subscribers. For each
// of them it keeps the latest change of each object, in the order in which the
// objects changed: a slow subscriber misses steps on the way, but never where
// an object got to. An event is filled with the state of the time it is sent.
//
// What ended while the runtime was away is found when it starts, before anybody
// can have subscribed: such ends are held, for everyone who subscribes soon.
type Events struct {
	mu      sync.Mutex
	subs    map[*subscriber]struct{}
	begun   time.Time
	held    []change
	open    bool // the server exists: sandboxes that break now do so before its eyes
	serving bool // somebody has subscribed: what ends now is told at once
}

// subscriber is one open stream.
type subscriber struct {
	pending  map[string]change
	order    []string
	overflow bool
	wake     chan struct{} // capacity 1: one token stands for any number of changes
}

// NewEvents returns events without subscribers. Its methods OnContainer and
// OnSandbox go into the configurations of the stores.
func NewEvents() *Events {
	return &Events{subs: map[*subscriber]struct{}{}, begun: time.Now()}
}

var kinds = map[container.EventKind]runtimeapi.ContainerEventType{
	container.Created: runtimeapi.ContainerEventType_CONTAINER_CREATED_EVENT,
	container.Started: runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT,
	container.Stopped: runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT,
	container.Deleted: runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT,
}

// OnContainer is told that a container has changed. It does not block.
func (e *Events) OnContainer(c container.Event) {
	e.publish(change{id: c.ContainerID, sandboxID: c.SandboxID, kind: kinds[c.Kind], at: c.At})
}

// OnSandbox is told that a sandbox has changed. It does not block.
func (e *Events) OnSandbox(id sandbox.ID) {
	// Which of the events it is, is seen when it is sent.
	e.publish(change{id: string(id), sandboxID: string(id), at: time.Now()})
}

func (e *Events) publish(c change) {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.hold(c)
	for s := range e.subs {
		s.add(c)
	}
}

// hold keeps c for those who subscribe soon, if it may be news of an end that
// came while no runtime was there. The caller holds the lock.
func (e *Events) hold(c change) {
	if e.serving || time.Since(e.begun) > heldFor {
		return
	}
	e.held = slices.DeleteFunc(e.held, func(old change) bool { return old.id == c.id })
	sandbox := c.id == c.sandboxID && !e.open // what it came to is seen when it is told
	if sandbox || c.kind == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT && c.id != c.sandboxID {
		if len(e.held) < maxPending {
			e.held = append(e.held, c)
		}
	}
}

// opened says that the server exists now.
func (e *Events) opened() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.open = true
}

// add makes c the latest news of its object; the caller holds the lock.
func (s *subscriber) add(c change) {
	if _, ok := s.pending[c.id]; !ok {
		if len(s.order) >= maxPending {
			s.overflow = true
			return
		}
		s.order = append(s.order, c.id)
	}
	s.pending[c.id] = c
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// next waits for the oldest pending change. It fails when ctx ends, and when
// the subscriber has fallen too far behind to be told everything.
func (e *Events) next(ctx context.Context, s *subscriber) (change, error) {
	for {
		e.mu.Lock()
		switch {
		case s.overflow:
			e.mu.Unlock()
			return change{}, fmt.Errorf("more than %d objects changed before the events were read: list them anew and subscribe again: %w", maxPending, errdefs.ErrResourceExhausted)
		case len(s.order) > 0:
			c := s.pending[s.order[0]]
			delete(s.pending, s.order[0])
			s.order = s.order[1:]
			e.mu.Unlock()
			return c, nil
		}
		e.mu.Unlock()
		select {
		case <-s.wake:
		case <-ctx.Done():
			return change{}, ctx.Err()
		}
	}
}

func (e *Events) subscribe() *subscriber {
	s := &subscriber{pending: map[string]change{}, wake: make(chan struct{}, 1)}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.subs[s] = struct{}{}
	e.serving = true
	if time.Since(e.begun) > heldFor {
		e.held = nil
	}
	for _, c := range e.held {
		s.add(c)
	}
	return s
}

func (e *Events) unsubscribe(s *subscriber) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.subs, s)
}

// GetContainerEvents streams events until the caller leaves.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, to grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	sub := s.cfg.Events.subscribe()
	defer s.cfg.Events.unsubscribe(sub)
	for {
		c, err := s.cfg.Events.next(to.Context(), sub)
		if err != nil {
			return err
		}
		if err := to.Send(s.eventOf(c)); err != nil {
			return err
		}
	}
}

// eventOf fills an event with how things stand now. Of a sandbox that has gone
// only the IDs are left to tell.
func (s *Server) eventOf(c change) *runtimeapi.ContainerEventResponse {
	e := &runtimeapi.ContainerEventResponse{ContainerId: c.id, ContainerEventType: c.kind, CreatedAt: c.at.UnixNano()}
	st, err := s.cfg.Sandboxes.Get(sandbox.ID(c.sandboxID))
	if err == nil {
		e.PodSandboxStatus = sandboxStatus(st)
	} else {
		e.PodSandboxStatus = &runtimeapi.PodSandboxStatus{Id: c.sandboxID, State: runtimeapi.PodSandboxState_SANDBOX_NOTREADY}
	}
	if c.id == c.sandboxID {
		switch {
		case err != nil:
			e.ContainerEventType = runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT
		case st.Ready:
			e.ContainerEventType = runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT
		default:
			e.ContainerEventType = runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT
		}
	}
	e.ContainersStatuses = s.containerStatuses(c.sandboxID)
	return e
}

package runtime

import (
	"cmp"
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	relistEvery = 30 * time.Second
	// pollEvery is for runtimes that send no events.
	pollEvery  = time.Second
	retryFirst = 100 * time.Millisecond
	retryMost  = 5 * time.Second
)

// Hints take the news that something changed. They must not block.
type Hints struct {
	Pod func(pod.UID) // look at this pod again
	All func()        // look at every pod: events may have been lost
}

// Run passes the runtime's events on as hints until ctx is over, and finds what
// events missed by comparing slow lists of everything. A stream that ends is
// opened again, and everything is looked at, for nobody knows what was missed. A
// runtime without events is listed once a second instead. Its error is ctx's.
func (r *Runtime) Run(ctx context.Context, h Hints) error {
	events := make(chan bool, 1) // whether the runtime sends events at all
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.follow(ctx, h, events)
	}()
	r.relistLoop(ctx, h, events)
	<-ended
	return ctx.Err()
}

// follow keeps the event stream open.
func (r *Runtime) follow(ctx context.Context, h Hints, events chan<- bool) {
	wait := retryFirst
	for first := true; ctx.Err() == nil; first = false {
		if !first {
			h.All()
		}
		opened := time.Now()
		err := r.CRI.GetContainerEvents(&cri.GetEventsRequest{}, &stream{ctx: ctx, hints: h})
		if ctx.Err() != nil {
			return
		}
		if status.Code(err) == codes.Unimplemented && r.answers(ctx) {
			r.Log.Warn("the runtime sends no events: listing everything once a second instead, which costs CPU time; containerd 2 and CRI-O with enable_pod_events do send them")
			events <- false
			return
		}
		if time.Since(opened) > retryMost {
			wait = retryFirst
		}
		r.Log.Warn("the runtime's event stream ended; opening it again", "err", err, "in", wait)
		if pause(ctx, wait) != nil {
			return
		}
		wait = min(wait*2, retryMost)
	}
}

// answers says that the runtime is there: while it starts, containerd knows none of CRI's calls.
func (r *Runtime) answers(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	_, err := r.CRI.Version(ctx, &cri.VersionRequest{})
	return err == nil
}

func (r *Runtime) relistLoop(ctx context.Context, h Hints, events <-chan bool) {
	last, every, ok := map[pod.UID]string(nil), relistEvery, true
	for {
		// A fifth either way, so that a fleet of nodes does not list in step.
		timer := time.NewTimer(every*4/5 + rand.N(every*2/5))
		select {
		case <-ctx.Done():
			timer.Stop()
			return
		case <-events:
			every = pollEvery
			timer.Stop()
			continue
		case <-timer.C:
		}
		now, err := r.Relist(ctx)
		if err != nil {
			if ok && ctx.Err() == nil {
				r.Log.Warn("the runtime does not list its pods", "err", err)
			}
			ok = false
			continue
		}
		if !ok {
			h.All()
		}
		ok = true
		for _, uid := range Changed(last, now) {
			h.Pod(uid)
		}
		last = now
	}
}

// Relist returns a fingerprint of each pod's sandboxes and containers: their IDs
// and states.
func (r *Runtime) Relist(ctx context.Context) (map[pod.UID]string, error) {
	listed, err := r.list(ctx)
	if err != nil {
		return nil, err
	}
	prints := make(map[pod.UID]string, len(listed))
	for uid, l := range listed {
		var parts []string
		for _, s := range l.sandboxes {
			parts = append(parts, fmt.Sprintf("%s=%d", s.Id, s.State))
		}
		for _, c := range l.containers {
			parts = append(parts, fmt.Sprintf("%s:%d", c.Id, c.State))
		}
		slices.Sort(parts)
		prints[uid] = strings.Join(parts, " ")
	}
	return prints, nil
}

// Changed returns the pods whose fingerprints differ, appeared or vanished, in
// order. Against nothing, nothing has changed: the first list has no past.
func Changed(last, now map[pod.UID]string) []pod.UID {
	if last == nil {
		return nil
	}
	var all []pod.UID
	for uid, print := range now {
		if last[uid] != print {
			all = append(all, uid)
		}
	}
	for uid := range last {
		if _, ok := now[uid]; !ok {
			all = append(all, uid)
		}
	}
	slices.SortFunc(all, func(a, b pod.UID) int { return cmp.Compare(a, b) })
	return all
}

// stream is the receiving end that the runtime sends its events to.
type stream struct {
	grpc.ServerStream
	ctx   context.Context
	hints Hints
}

func (s *stream) Context() context.Context { return s.ctx }

func (s *stream) SetHeader(metadata.MD) error  { return nil }
func (s *stream) SendHeader(metadata.MD) error { return nil }
func (s *stream) SetTrailer(metadata.MD)       {}

// SendMsg takes an event from interceptors that know no types.
func (s *stream) SendMsg(m any) error {
	e, ok := m.(*cri.ContainerEventResponse)
	if !ok {
		return status.Errorf(codes.Internal, "not an event: %T", m)
	}
	return s.Send(e)
}

// Send turns an event into a hint. One that does not say whose it is (some
// runtimes drop the sandbox from events about removed containers) concerns all.
func (s *stream) Send(e *cri.ContainerEventResponse) error {
	uid := e.GetPodSandboxStatus().GetMetadata().GetUid()
	for _, c := range e.GetContainersStatuses() {
		if uid == "" {
			uid = c.GetLabels()[labelPodUID]
		}
	}
	if uid == "" {
		s.hints.All()
	} else {
		s.hints.Pod(pod.UID(uid))
	}
	return s.ctx.Err()
}

func pause(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-timer.C:
		return nil
	}
}

package csi

import (
	"context"
	"fmt"

	"github.com/berthd/berth/csi/local"
)

// gate lets one call at a time work on a pod. It exists while somebody holds or
// awaits it.
type gate struct {
	users int
	turn  chan struct{} // holds the right to work while nobody does
}

// alone runs work as the only one for this pod. It returns when work has ended
// or ctx is over, whichever is first: a host path on a dead network file system
// holds a thread in the kernel for ever, but only one per pod, because the next
// call then waits at the gate. Close waits for work that was left behind.
func (v *Volumes) alone(ctx context.Context, uid, op string, work func() error) error {
	g := v.join(uid)
	select {
	case <-g.turn:
	case <-ctx.Done():
		v.leave(uid, g)
		return local.Classify(op, "", fmt.Errorf("earlier work on this pod's volumes has not ended: %w", ctx.Err()))
	}
	ended := make(chan error, 1)
	v.began()
	go func() {
		err := work()
		g.turn <- struct{}{}
		v.leave(uid, g)
		v.ended()
		ended <- err
	}()
	select {
	case err := <-ended:
		return classified(op, err)
	case <-ctx.Done():
		return local.Classify(op, "", fmt.Errorf("the host has not answered in time (is a path on a dead network file system?): %w", ctx.Err()))
	}
}

func (v *Volumes) began() {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.calls++
}

func (v *Volumes) ended() {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.calls--; v.calls > 0 {
		return
	}
	for _, idle := range v.idle {
		close(idle)
	}
	v.idle = nil
}

func (v *Volumes) join(uid string) *gate {
	v.mu.Lock()
	defer v.mu.Unlock()
	g := v.gates[uid]
	if g == nil {
		g = &gate{turn: make(chan struct{}, 1)}
		g.turn <- struct{}{}
		v.gates[uid] = g
	}
	g.users++
	return g
}

func (v *Volumes) leave(uid string, g *gate) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if g.users--; g.users == 0 {
		delete(v.gates, uid)
	}
}

package probes

import (
	"container/heap"
	"context"
	"time"
)

// queue holds the waiting probes, the earliest due first.
type queue []*probe

// The methods of heap.Interface.
func (q queue) Len() int           { return len(q) }
func (q queue) Less(i, j int) bool { return q[i].due.Before(q[j].due) }
func (q queue) Swap(i, j int) {
	q[i], q[j] = q[j], q[i]
	q[i].index, q[j].index = i, j
}

// Push appends x, a *probe.
func (q *queue) Push(x any) {
	one := x.(*probe)
	one.index = len(*q)
	*q = append(*q, one)
}

// Pop removes the last probe.
func (q *queue) Pop() any {
	last := len(*q) - 1
	one := (*q)[last]
	(*q)[last] = nil
	*q = (*q)[:last]
	one.index = -1
	return one
}

func (q *queue) add(one *probe)    { heap.Push(q, one) }
func (q *queue) remove(one *probe) { heap.Remove(q, one.index) }

// pool bounds the probes of one sort that run at once; the others that are due
// wait in order. Prober.mu guards it.
type pool struct {
	limit, active int
	due           []*probe
}

// dispatch starts what is due and returns how long to wait for the next.
func (p *Prober) dispatch(ctx context.Context, now time.Time) (wait time.Duration, more bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for len(p.queue) > 0 && !p.queue[0].due.After(now) {
		one := heap.Pop(&p.queue).(*probe)
		one.busy = true
		pool := &p.network
		if one.target.Probe.Exec != nil {
			pool = &p.exec
		}
		if pool.active >= pool.limit {
			pool.due = append(pool.due, one)
			continue
		}
		pool.active++
		p.workers.Add(1)
		go p.work(ctx, pool, one)
	}
	if len(p.queue) == 0 {
		return 0, false
	}
	return p.queue[0].due.Sub(now), true
}

// work makes one probe after another while any is due in the pool.
func (p *Prober) work(ctx context.Context, pool *pool, one *probe) {
	defer p.workers.Done()
	for one != nil {
		p.makeOne(ctx, one)
		one = p.following(ctx, pool)
	}
}

// following takes the next due probe from the pool, or gives up the worker's place.
func (p *Prober) following(ctx context.Context, pool *pool) *probe {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(pool.due) == 0 || ctx.Err() != nil {
		pool.active--
		return nil
	}
	one := pool.due[0]
	pool.due[0] = nil
	pool.due = pool.due[1:]
	return one
}

// makeOne makes the probe, tells what came of it and puts it back into the
// queue. Only then can it be made again, so that what is told stays in order.
func (p *Prober) makeOne(ctx context.Context, one *probe) {
	p.mu.Lock()
	if one.dead {
		p.mu.Unlock()
		return
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	one.cancel = cancel
	target := one.target
	p.mu.Unlock()

	found := p.carryOut(ctx, one.dial, &target)

	p.mu.Lock()
	counts := !one.dead && ctx.Err() == nil
	changed := counts && found.state != errored && one.track.Observe(found.state != failure)
	p.mu.Unlock()
	if counts {
		p.tell(one.uid, &target, found, changed)
	}
	p.putBack(one)
}

func (p *Prober) tell(uid string, t *Target, found outcome, changed bool) {
	title := t.Kind.Title()
	switch found.state {
	case failure:
		if p.cfg.Failed != nil {
			p.cfg.Failed(uid, t, title+" probe failed: "+found.message)
		}
	case errored:
		p.cfg.Logger.Debug("probe could not be made", "pod", t.Pod, "container", t.Container, "probe", t.Kind, "err", found.message)
		if p.cfg.Failed != nil {
			p.cfg.Failed(uid, t, title+" probe errored and resulted in unknown state: "+found.message)
		}
	case warning:
		if p.cfg.Warned != nil {
			p.cfg.Warned(uid, t.ContainerID, t.Kind, title+" probe warning: "+found.message)
		}
	}
	if !changed {
		return
	}
	if found.state == failure {
		p.cfg.Report(uid, t.ContainerID, t.Kind, false, found.message)
	} else {
		p.cfg.Report(uid, t.ContainerID, t.Kind, true, "")
	}
}

// putBack queues one for its next period, and opens the gate for the others of
// its container if it is a startup probe that succeeded.
func (p *Prober) putBack(one *probe) {
	p.mu.Lock()
	defer p.mu.Unlock()
	one.busy, one.cancel = false, nil
	if one.dead {
		return
	}
	now := time.Now()
	due := one.due.Add(one.target.period())
	if one.again {
		due, one.again = now, false
	}
	p.arm(one, due, now)
	if one.target.Kind == Startup && one.track.Verdict() == Success {
		for k, sibling := range p.pods[one.uid] {
			if k.container == one.target.ContainerID {
				p.arm(sibling, now.Add(sibling.target.delay(now)), now)
			}
		}
	}
}

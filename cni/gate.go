package cni

import (
	"context"
	"fmt"
	"sync"
)

// gate lets calls of ADD and DEL in side by side, or one GC alone: the
// specification forbids a GC beside others. It never waits long for either: a GC
// that finds somebody inside who does not leave comes back later.
type gate struct {
	mu      sync.Mutex
	inside  int
	closed  bool
	changed chan struct{} // closed at each change, if somebody waits
}

func (g *gate) await() <-chan struct{} {
	if g.changed == nil {
		g.changed = make(chan struct{})
	}
	return g.changed
}

func (g *gate) tell() {
	if g.changed != nil {
		close(g.changed)
		g.changed = nil
	}
}

// enter waits while somebody is alone.
func (g *gate) enter(ctx context.Context) error {
	g.mu.Lock()
	for g.closed {
		changed := g.await()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("waiting for the collection of attachments: %w", ctx.Err())
		}
		g.mu.Lock()
	}
	g.inside++
	g.mu.Unlock()
	return nil
}

func (g *gate) leave() {
	g.mu.Lock()
	g.inside--
	g.tell()
	g.mu.Unlock()
}

// alone closes the gate, waits until nobody is inside, and returns what opens it
// again; nil if ctx ends first, or somebody else is alone.
func (g *gate) alone(ctx context.Context) (open func()) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	g.closed = true
	open = func() {
		g.mu.Lock()
		g.closed = false
		g.tell()
		g.mu.Unlock()
	}
	for g.inside > 0 {
		changed := g.await()
		g.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
		}
		g.mu.Lock()
		if ctx.Err() != nil && g.inside > 0 {
			g.closed = false
			g.tell()
			return nil
		}
	}
	return open
}

// keyed is one lock for each sandbox, for as long as somebody wants it.
type keyed struct {
	mu    sync.Mutex
	locks map[string]*keyLock
}

type keyLock struct {
	held  chan struct{} // full while held
	users int
}

func (k *keyed) use(key string) *keyLock {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.locks == nil {
		k.locks = map[string]*keyLock{}
	}
	l := k.locks[key]
	if l == nil {
		l = &keyLock{held: make(chan struct{}, 1)}
		k.locks[key] = l
	}
	l.users++
	return l
}

func (k *keyed) drop(key string, l *keyLock) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if l.users--; l.users == 0 {
		delete(k.locks, key)
	}
}

// lock waits for key.
func (k *keyed) lock(ctx context.Context, key string) (unlock func(), err error) {
	l := k.use(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; k.drop(key, l) }, nil
	case <-ctx.Done():
		k.drop(key, l)
		return nil, fmt.Errorf("waiting for another operation on the network of sandbox %s: %w", key, ctx.Err())
	}
}

// try takes key if nobody has it, else it returns nil.
func (k *keyed) try(key string) (unlock func()) {
	l := k.use(key)
	select {
	case l.held <- struct{}{}:
		return func() { <-l.held; k.drop(key, l) }
	default:
		k.drop(key, l)
		return nil
	}
}

package status

import (
	"context"
	"errors"
	"sync"
)

// maxWatchers and maxPending bound what watchers can make the agent hold.
const (
	maxWatchers = 256
	maxPending  = 16384
)

var (
	errTooMany = errors.New("too many watchers already: end one of them, or ask again later")
	errTooSlow = errors.New("the watcher is too slow: too many changes wait for it; watch anew")
)

// hub passes on the latest value of each key to its watchers.
type hub[K comparable, V any] struct {
	mu       sync.Mutex
	watchers map[*watcher[K, V]]bool
}

// watcher holds what one reader has not been told yet: of each key the latest
// value, in the order in which the keys first changed.
type watcher[K comparable, V any] struct {
	pending map[K]V
	order   []K
	tooSlow bool
	// wake has room for one: several changes wake once, and no poster waits.
	wake chan struct{}
}

// post tells all watchers that k is now v. It does not block.
func (h *hub[K, V]) post(k K, v V) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for w := range h.watchers {
		if _, waits := w.pending[k]; !waits {
			if len(w.order) >= maxPending {
				w.tooSlow = true
				continue
			}
			w.order = append(w.order, k)
		}
		w.pending[k] = v
		select {
		case w.wake <- struct{}{}:
		default:
		}
	}
}

// join adds a watcher; leave takes it away again.
func (h *hub[K, V]) join() (*watcher[K, V], error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.watchers) >= maxWatchers {
		return nil, errTooMany
	}
	if h.watchers == nil {
		h.watchers = map[*watcher[K, V]]bool{}
	}
	w := &watcher[K, V]{pending: map[K]V{}, wake: make(chan struct{}, 1)}
	h.watchers[w] = true
	return w, nil
}

func (h *hub[K, V]) leave(w *watcher[K, V]) {
	h.mu.Lock()
	defer h.mu.Unlock()
	delete(h.watchers, w)
}

// take returns what waits for w, in order.
func (h *hub[K, V]) take(w *watcher[K, V]) ([]V, error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	if w.tooSlow {
		return nil, errTooSlow
	}
	values := make([]V, 0, len(w.order))
	for _, k := range w.order {
		values = append(values, w.pending[k])
	}
	clear(w.pending)
	w.order = w.order[:0]
	return values, nil
}

// follow passes what is posted to emit until ctx ends or emit fails.
func (h *hub[K, V]) follow(ctx context.Context, w *watcher[K, V], emit func(V) error) error {
	for {
		values, err := h.take(w)
		if err != nil {
			return err
		}
		for _, v := range values {
			if err := emit(v); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-w.wake:
		}
	}
}

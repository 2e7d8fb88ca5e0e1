package status

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"github.com/berthd/berth/agent/pod"
)

// Store holds the latest snapshot of every pod, and their events. Its methods
// may be called from any goroutine; none but Watch and WatchEvents blocks.
type Store struct {
	node string

	mu     sync.RWMutex
	pods   map[pod.UID]*pod.Snapshot
	events ring

	podHub   hub[pod.UID, change]
	eventHub hub[eventKey, *record]
}

// change is what a watcher of pods is told.
type change struct {
	snapshot *pod.Snapshot
	gone     bool
}

// New returns an empty Store for the node of that name.
func New(node string) *Store {
	return &Store{node: node, pods: map[pod.UID]*pod.Snapshot{}, events: newRing()}
}

// Set makes s the latest snapshot of its pod. The last one of a pod, with Gone
// set, forgets it.
func (t *Store) Set(s pod.Snapshot) {
	if s.Gone {
		t.forget(s.UID, &s)
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.pods[s.UID] = &s
	t.podHub.post(s.UID, change{snapshot: &s})
}

// Forget removes a pod; its events stay for a while. One that is not there has
// been forgotten already.
func (t *Store) Forget(uid pod.UID) { t.forget(uid, nil) }

func (t *Store) forget(uid pod.UID, last *pod.Snapshot) {
	t.mu.Lock()
	defer t.mu.Unlock()
	known, ok := t.pods[uid]
	if !ok {
		return
	}
	if last == nil {
		last = known
	}
	delete(t.pods, uid)
	t.podHub.post(uid, change{snapshot: last, gone: true})
}

// List returns the latest snapshots, by namespace, name and age of the pods.
func (t *Store) List() []pod.Snapshot {
	t.mu.RLock()
	defer t.mu.RUnlock()
	return t.sorted()
}

// sorted needs the lock.
func (t *Store) sorted() []pod.Snapshot {
	all := make([]pod.Snapshot, 0, len(t.pods))
	for _, s := range t.pods {
		all = append(all, *s)
	}
	slices.SortFunc(all, func(a, b pod.Snapshot) int {
		p, q := a.Desired.Pod, b.Desired.Pod
		return cmp.Or(cmp.Compare(p.Namespace, q.Namespace), cmp.Compare(p.Name, q.Name), started(a).Compare(started(b)), cmp.Compare(a.UID, b.UID))
	})
	return all
}

// Get returns the snapshot of the pod of that name: the elder one, if its
// successor waits for its end.
func (t *Store) Get(namespace, name string) (pod.Snapshot, bool) {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var found *pod.Snapshot
	for _, s := range t.pods {
		p := s.Desired.Pod
		if p.Namespace == namespace && p.Name == name && (found == nil || started(*s).Before(started(*found))) {
			found = s
		}
	}
	if found == nil {
		return pod.Snapshot{}, false
	}
	return *found, true
}

// Watch calls emit with every pod there is, synced once after the last of them,
// and emit again with every change: gone tells that the pod is no more, and s is
// its last snapshot. Of several changes of one pod a slow watcher gets the
// latest. It returns ctx's error, emit's or synced's, or says that there are too
// many watchers or that this one is too slow.
func (t *Store) Watch(ctx context.Context, emit func(s pod.Snapshot, gone bool) error, synced func() error) error {
	w, err := t.podHub.join()
	if err != nil {
		return err
	}
	defer t.podHub.leave(w)
	// Whatever changes from here on is told again below: that is harmless, and
	// nothing is missed.
	for _, s := range t.List() {
		if err := emit(s, false); err != nil {
			return err
		}
	}
	if err := synced(); err != nil {
		return err
	}
	return t.podHub.follow(ctx, w, func(c change) error { return emit(*c.snapshot, c.gone) })
}

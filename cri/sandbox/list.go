package sandbox

import (
	"fmt"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
)

// podUID is the label by which a kubelet asks for the sandboxes of one pod.
const podUID = "io.kubernetes.pod.uid"

// index finds sandboxes by what never changes of them: ID, pod and age. It is
// guarded by the Store's mu.
type index struct {
	byID  map[ID]*box
	order []*box // oldest first
	byPod map[string][]*box
}

func newIndex() index { return index{byID: map[ID]*box{}, byPod: map[string][]*box{}} }

// older orders sandboxes; no two are equal.
func older(a, b *box) int {
	if c := a.created.Compare(b.created); c != 0 {
		return c
	}
	return strings.Compare(string(a.id), string(b.id))
}

func insert(all []*box, b *box) []*box {
	at, _ := slices.BinarySearchFunc(all, b, older)
	return slices.Insert(all, at, b)
}

func without(all []*box, b *box) []*box {
	if at, ok := slices.BinarySearchFunc(all, b, older); ok {
		return slices.Delete(all, at, at+1)
	}
	return all
}

// add enters b, whose created and podUID are set.
func (x *index) add(b *box) {
	x.byID[b.id] = b
	x.order = insert(x.order, b)
	if b.podUID != "" {
		x.byPod[b.podUID] = insert(x.byPod[b.podUID], b)
	}
}

func (x *index) drop(b *box) {
	if x.byID[b.id] != b {
		return
	}
	delete(x.byID, b.id)
	x.order = without(x.order, b)
	if left := without(x.byPod[b.podUID], b); len(left) > 0 {
		x.byPod[b.podUID] = left
	} else {
		delete(x.byPod, b.podUID)
	}
}

// Filter chooses sandboxes; zero fields choose all. ID may be a prefix.
type Filter struct {
	ID     string
	Ready  *bool
	Labels map[string]string
}

func (f Filter) chooses(s Status) bool {
	if !strings.HasPrefix(string(s.ID), f.ID) || f.Ready != nil && *f.Ready != s.Ready {
		return false
	}
	have := s.Config.GetLabels()
	for k, v := range f.Labels {
		if got, ok := have[k]; !ok || got != v {
			return false
		}
	}
	return true
}

// List returns the status of every sandbox, oldest first. One whose creation
// still runs is not listed; one whose creation was cut short is, not ready.
func (s *Store) List() []Status { return s.Select(Filter{}) }

// Select is List of those that f chooses.
func (s *Store) Select(f Filter) []Status {
	var out []Status
	for _, b := range s.candidates(f) {
		if b.hidden() {
			continue
		}
		if st := b.status(); f.chooses(st) {
			out = append(out, st)
		}
	}
	return out
}

// candidates are a superset of what f chooses, as small as the index allows.
func (s *Store) candidates(f Filter) []*box {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if b, ok := s.boxes.byID[ID(f.ID)]; ok {
		return []*box{b}
	}
	if uid, ok := f.Labels[podUID]; ok && uid != "" {
		return slices.Clone(s.boxes.byPod[uid])
	}
	return slices.Clone(s.boxes.order)
}

// Resolve returns the one sandbox whose ID begins with prefix. It fails with
// errdefs.ErrNotFound, or errdefs.ErrInvalidArgument if there are several.
func (s *Store) Resolve(prefix string) (ID, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if _, ok := s.boxes.byID[ID(prefix)]; ok {
		return ID(prefix), nil
	}
	var found ID
	for id := range s.boxes.byID {
		if prefix == "" || !strings.HasPrefix(string(id), prefix) {
			continue
		}
		if found != "" {
			return "", fmt.Errorf("sandbox ID %q is ambiguous: give more of it: %w", prefix, errdefs.ErrInvalidArgument)
		}
		found = id
	}
	if found == "" {
		return "", fmt.Errorf("sandbox %q: %w", prefix, errdefs.ErrNotFound)
	}
	return found, nil
}

func (s *Store) get(id ID) (*box, error) {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if b, ok := s.boxes.byID[id]; ok {
		return b, nil
	}
	return nil, fmt.Errorf("sandbox %q: %w", id, errdefs.ErrNotFound)
}

func (s *Store) all() []*box {
	s.mu.RLock()
	defer s.mu.RUnlock()
	return slices.Clone(s.boxes.order)
}

package record

import (
	"fmt"
	"sync"

	"github.com/containerd/errdefs"
)

// Names keeps names unique among living objects: each name has at most one
// holder. It is memory only; at start the owner fills it from its records. A
// reservation ends with the operation that made it, if that fails, or else with
// the object. The zero value is ready for use.
type Names struct {
	mu     sync.Mutex
	byName map[string]string
	byID   map[string]string
}

// TakenError says who holds a name. It is an errdefs.ErrAlreadyExists.
type TakenError struct{ Name, Holder string }

func (e *TakenError) Error() string {
	return fmt.Sprintf("name %q is reserved for %s", e.Name, e.Holder)
}

// Is makes errors.Is(err, errdefs.ErrAlreadyExists) true.
func (e *TakenError) Is(target error) bool { return target == errdefs.ErrAlreadyExists }

// Unwrap lets errdefs.IsAlreadyExists see through.
func (e *TakenError) Unwrap() error { return errdefs.ErrAlreadyExists }

// Reserve gives name to id. It fails with a *TakenError if another ID holds the
// name; reserving again for the holder succeeds. An ID holds one name.
func (n *Names) Reserve(name, id string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if holder, ok := n.byName[name]; ok {
		if holder == id {
			return nil
		}
		return &TakenError{Name: name, Holder: holder}
	}
	if held, ok := n.byID[id]; ok {
		return fmt.Errorf("reserving name %q: %s already holds %q: %w", name, id, held, errdefs.ErrFailedPrecondition)
	}
	if n.byName == nil {
		n.byName, n.byID = map[string]string{}, map[string]string{}
	}
	n.byName[name], n.byID[id] = id, name
	return nil
}

// Release gives up whatever name id holds.
func (n *Names) Release(id string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if name, ok := n.byID[id]; ok {
		delete(n.byName, name)
		delete(n.byID, id)
	}
}

// Holder returns who holds name.
func (n *Names) Holder(name string) (id string, ok bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	id, ok = n.byName[name]
	return id, ok
}

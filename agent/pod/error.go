package pod

import (
	"errors"
	"fmt"
)

// Kind tells the machine what to do about an error. The set is closed.
type Kind int

// The kinds.
const (
	// Internal is our own bug: retried slowly, logged with a stack.
	Internal Kind = iota
	// Invalid cannot succeed until an input (spec, Secret, ConfigMap) changes.
	Invalid
	// NotFound is a missing dependency: back off, and wake when it appears.
	NotFound
	// Unavailable is a service that does not answer now: back off.
	Unavailable
	// Denied is a refusal for want of credentials: back off.
	Denied
	// Exhausted is a resource used up: reject at admission, later back off.
	Exhausted
	// Timeout may have happened or not: observe before trying again.
	Timeout
	// Corrupt is an unreadable record: quarantine, rebuild from observation.
	Corrupt
	// Canceled is the answer to our own change of mind: silent.
	Canceled
)

var kindNames = [...]string{"Internal", "Invalid", "NotFound", "Unavailable", "Denied", "Exhausted", "Timeout", "Corrupt", "Canceled"}

func (k Kind) String() string {
	if k < 0 || int(k) >= len(kindNames) {
		return fmt.Sprintf("Kind(%d)", int(k))
	}
	return kindNames[k]
}

// Error is a failed operation on a pod: Kind for the machine, Reason for the
// status, Err for the person who reads the message.
type Error struct {
	Op     string // what was tried: "pull image", "create sandbox"
	Kind   Kind
	Reason Reason // Kubernetes' word, may be empty
	Err    error  // what failed, on what, why, and what to do about it
}

func (e *Error) Error() string {
	if e.Op == "" {
		return e.Err.Error()
	}
	return e.Op + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the Kind of the first *Error in err's chain, else Internal.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Internal
}

package volume

import (
	"errors"
	"fmt"
	"strings"

	utilerrors "k8s.io/apimachinery/pkg/util/errors"
)

// Code tells the machine what to do about a volume that failed. The set is
// closed and maps one to one on the agent's kinds of errors.
type Code int

// The codes.
const (
	// Internal is our own bug, or an answer of the kernel that was not expected.
	Internal Code = iota
	// Invalid cannot succeed until the pod or an object it refers to changes.
	Invalid
	// NotFound is a missing ConfigMap, Secret, key or host path: it may appear.
	NotFound
	// Denied is a refusal of the host: read-only file system, no permission.
	Denied
	// Exhausted is no space, no inodes, no memory, no file descriptors.
	Exhausted
	// Timeout is a host that did not answer in time; the work may still end.
	Timeout
	// Canceled is the caller's change of mind.
	Canceled
)

var codeNames = [...]string{"Internal", "Invalid", "NotFound", "Denied", "Exhausted", "Timeout", "Canceled"}

func (c Code) String() string {
	if c < 0 || int(c) >= len(codeNames) {
		return fmt.Sprintf("Code(%d)", int(c))
	}
	return codeNames[c]
}

// The operations an Error can name, as Kubernetes' events name them.
const (
	OpSetUp    = "MountVolume.SetUp"
	OpTearDown = "UnmountVolume.TearDown"
	OpSubPath  = "MountVolume.SubPath"
)

// Error is one volume's failure. Volume is empty where the whole pod is meant.
type Error struct {
	Op     string
	Volume string
	Code   Code
	Err    error
}

// Error renders the failure as the kubelet's FailedMount events do.
func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + " failed")
		if e.Volume != "" {
			fmt.Fprintf(&b, " for volume %q", e.Volume)
		}
		b.WriteString(" : ")
	}
	b.WriteString(e.Err.Error())
	return b.String()
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// Errors are the failures of several volumes of one pod, in the pod's order;
// errors.As finds the first.
type Errors []*Error

// Error joins the sentences on one line, as a status message needs it.
func (e Errors) Error() string {
	lines := make([]string, len(e))
	for i := range e {
		lines[i] = e[i].Error()
	}
	return strings.Join(lines, "; ")
}

// Unwrap returns the failures.
func (e Errors) Unwrap() []error {
	all := make([]error, len(e))
	for i := range e {
		all[i] = e[i]
	}
	return all
}

// aggregate makes one error of several, as Kubernetes writes them: "[a, b]". It
// is Invalid if one of them is: then waiting for the others is in vain.
func aggregate(failed []error) error {
	switch len(failed) {
	case 0:
		return nil
	case 1:
		return failed[0]
	}
	code := Internal
	for i, err := range failed {
		var e *Error
		if errors.As(err, &e) && (i == 0 || e.Code == Invalid) {
			code = e.Code
		}
	}
	return &Error{Code: code, Err: utilerrors.NewAggregate(failed)}
}

// invalid and notFound make the errors of this package; the caller that knows
// operation and volume fills those in.
func invalid(format string, args ...any) error {
	return &Error{Code: Invalid, Err: fmt.Errorf(format, args...)}
}

func notFound(format string, args ...any) error {
	return &Error{Code: NotFound, Err: fmt.Errorf(format, args...)}
}

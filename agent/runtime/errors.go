package runtime

import (
	"context"
	"errors"
	"strings"

	"github.com/berthd/berth/agent/pod"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// kinds is the only place where codes of CRI become kinds.
var kinds = map[codes.Code]pod.Kind{
	codes.Canceled:           pod.Canceled,
	codes.Unknown:            pod.Unavailable, // containerd and CRI-O say Unknown for most of what fails on the host
	codes.InvalidArgument:    pod.Invalid,
	codes.DeadlineExceeded:   pod.Timeout,
	codes.NotFound:           pod.NotFound,
	codes.AlreadyExists:      pod.Unavailable, // of a half-made one: gone after the next look
	codes.PermissionDenied:   pod.Denied,
	codes.ResourceExhausted:  pod.Exhausted,
	codes.FailedPrecondition: pod.Unavailable,
	codes.Aborted:            pod.Unavailable,
	codes.OutOfRange:         pod.Invalid,
	codes.Unimplemented:      pod.Invalid,
	codes.Internal:           pod.Unavailable,
	codes.Unavailable:        pod.Unavailable,
	codes.DataLoss:           pod.Unavailable,
	codes.Unauthenticated:    pod.Denied,
}

// op is an operation as errors name it, and the reason of its failures.
type op struct {
	what   string
	reason pod.Reason
}

var (
	opObserve   = op{"observe pod", ""}
	opMount     = op{"set up volumes", pod.FailedMount}
	opUnmount   = op{"take down volumes", pod.FailedMount}
	opSandbox   = op{"create sandbox", pod.FailedCreatePodSandBox}
	opStopBox   = op{"stop sandbox", pod.FailedKillPod}
	opRemoveBox = op{"remove sandbox", pod.FailedKillPod}
	opPull      = op{"pull image", pod.ErrImagePull}
	opInspect   = op{"inspect image", pod.ImageInspectError}
	opConfig    = op{"configure container", pod.CreateContainerConfigError}
	opCreate    = op{"create container", pod.CreateContainerError}
	opStart     = op{"start container", pod.RunContainerError}
	opPostStart = op{"run postStart hook", pod.PostStartHookError}
	opPreStop   = op{"run preStop hook", pod.FailedPreStopHook}
	opStop      = op{"stop container", pod.FailedKillPod}
	opRemove    = op{"remove container", pod.FailedKillPod}
	opCleanup   = op{"clean up after pod", pod.FailedKillPod}
)

// fail is err as the planner knows errors: one that has a kind keeps it, one
// from CRI gets it from the table, another is Unavailable: the host's doing.
func fail(o op, err error) error {
	if err == nil {
		return nil
	}
	var known *pod.Error
	if errors.As(err, &known) {
		return err
	}
	kind := kindOf(err)
	if o == opSandbox && kind == pod.NotFound {
		kind = pod.Unavailable // nothing that an input could bring
	}
	reason := o.reason
	switch s, _ := status.FromError(err); {
	case o == opPull:
		reason = pullReason(err)
	case o == opCreate && strings.Contains(s.Message(), imageVolumeFailed+": "):
		reason = imageVolumeFailed
	}
	return &pod.Error{Op: o.what, Kind: kind, Reason: reason, Err: plain(err)}
}

// Failed is err, which the runtime answered when doing what was asked of it, as
// the rest of the agent knows errors; nil if err is.
func Failed(doing string, err error) error { return fail(op{doing, ""}, err) }

// failAs is fail with the kind known beforehand.
func failAs(o op, kind pod.Kind, err error) error {
	return &pod.Error{Op: o.what, Kind: kind, Reason: o.reason, Err: plain(err)}
}

func kindOf(err error) pod.Kind {
	if s, ok := status.FromError(err); ok {
		if k, ok := kinds[s.Code()]; ok {
			return k
		}
	}
	switch {
	case errors.Is(err, context.Canceled):
		return pod.Canceled
	case errors.Is(err, context.DeadlineExceeded):
		return pod.Timeout
	}
	return pod.Unavailable
}

// imageVolumeFailed is the word in a runtime's message about an image
// volume that it cannot mount (k8s.io/cri-api/pkg/errors), and the waiting reason.
const imageVolumeFailed = "ImageVolumeMountFailed"

// pullReason: runtimes mark an unreachable registry and a bad signature by the
// first word of the message (k8s.io/cri-api/pkg/errors).
func pullReason(err error) pod.Reason {
	s, _ := status.FromError(err)
	switch {
	case strings.HasPrefix(s.Message(), "RegistryUnavailable"):
		return pod.RegistryUnavailable
	case strings.HasPrefix(s.Message(), "SignatureValidationFailed"):
		return "SignatureValidationFailed"
	case s.Code() == codes.InvalidArgument:
		return pod.InvalidImageName
	}
	return pod.ErrImagePull
}

// plainError shows a CRI error without the "rpc error: code = X desc =" that
// tells a person nothing.
type plainError struct{ err error }

func (e plainError) Error() string {
	text := e.err.Error()
	for {
		at := strings.Index(text, "rpc error: code = ")
		if at < 0 {
			return text
		}
		_, desc, ok := strings.Cut(text[at:], " desc = ")
		if !ok {
			return text
		}
		text = text[:at] + desc
	}
}

func (e plainError) Unwrap() error { return e.err }

func plain(err error) error { return plainError{err} }

// gone says that the runtime does not know what was asked for: success, where it is to go.
func gone(err error) bool { return status.Code(err) == codes.NotFound }

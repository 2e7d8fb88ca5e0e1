package plan

import (
	"errors"
	"fmt"
	"time"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

// message is what a person reads of err: without the operation, which the
// reason names already.
func message(err error) string {
	var e *pod.Error
	if errors.As(err, &e) && e.Err != nil {
		return e.Err.Error()
	}
	return err.Error()
}

func reason(err error) pod.Reason {
	var e *pod.Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

// defaultReason is the word for a failure that brought none.
func defaultReason(op pod.Op) pod.Reason {
	switch op {
	case pod.OpPullImage:
		return pod.ErrImagePull
	case pod.OpStartContainer:
		return pod.RunContainerError
	case pod.OpPostStart:
		return pod.PostStartHookError
	case pod.OpPreStop:
		return pod.FailedPreStopHook
	case pod.OpMountVolumes, pod.OpUnmountVolumes:
		return pod.FailedMount
	case pod.OpCreateSandbox:
		return pod.FailedCreatePodSandBox
	}
	return pod.FailedKillPod
}

// podWithUID names a pod in messages as the kubelet does.
func podWithUID(namespace, name string, uid types.UID) string {
	return fmt.Sprintf("%s_%s(%s)", name, namespace, uid)
}

func imageOf(p *v1.Pod, name pod.ContainerName) string {
	for _, cs := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range cs {
			if cs[i].Name == string(name) {
				return cs[i].Image
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if p.Spec.EphemeralContainers[i].Name == string(name) {
			return p.Spec.EphemeralContainers[i].Image
		}
	}
	return ""
}

// imageOfAction is the image that a pulls: a container's or a volume's.
func imageOfAction(p *v1.Pod, a pod.Action) string {
	if a.Volume != "" {
		return volumeImage(p, a.Volume)
	}
	return imageOf(p, a.Container)
}

// successEvents tells of an action that was done.
func successEvents(p *v1.Pod, r pod.Result, now time.Time) []pod.Event {
	name := r.Action.Container
	say := func(reason pod.Reason, message string) pod.Event {
		return pod.Event{Reason: reason, Message: message, Container: name, At: now}
	}
	switch r.Action.Op {
	case pod.OpStartContainer:
		return []pod.Event{say(pod.CreatedReason, "Container created"), say(pod.Started, "Container started")}
	case pod.OpPullImage:
		image := imageOfAction(p, r.Action)
		if !r.Image.Pulled {
			return []pod.Event{say(pod.Pulled, fmt.Sprintf("Container image %q already present on machine", image))}
		}
		took := r.Took.Truncate(time.Millisecond)
		return []pod.Event{say(pod.Pulled, fmt.Sprintf("Successfully pulled image %q in %v (%v including waiting). Image size: %d bytes.", image, took, took, r.Image.Size))}
	}
	return nil
}

// failureEvents tells of an action that failed.
func failureEvents(p *v1.Pod, a pod.Action, f pod.Failure, now time.Time) []pod.Event {
	say := func(reason pod.Reason, format string, args ...any) pod.Event {
		return pod.Event{Warning: true, Reason: reason, Message: fmt.Sprintf(format, args...), Container: a.Container, At: now}
	}
	switch a.Op {
	case pod.OpPullImage:
		return pullFailureEvents(imageOfAction(p, a), f, say)
	case pod.OpStartContainer:
		return []pod.Event{say(pod.FailedReason, "Error: %s", f.Message)}
	case pod.OpPostStart:
		return []pod.Event{say(pod.FailedPostStartHook, "PostStartHook failed: %s", f.Message)}
	case pod.OpPreStop:
		return []pod.Event{say(pod.FailedPreStopHook, "PreStopHook failed: %s", f.Message)}
	case pod.OpMountVolumes:
		switch f.Reason {
		case pod.FailedCreatePodContainer:
			return []pod.Event{say(f.Reason, "unable to ensure pod container exists: %s", f.Message)}
		case pod.FailedReason:
			return []pod.Event{say(f.Reason, "error making pod data directories: %s", f.Message)}
		}
		return []pod.Event{say(pod.FailedMount, "Unable to attach or mount volumes: %s", f.Message)}
	case pod.OpCreateSandbox:
		if f.Reason == pod.NetworkNotReady {
			return []pod.Event{say(pod.NetworkNotReady, "network is not ready: %s", f.Message)}
		}
		return []pod.Event{say(pod.FailedCreatePodSandBox, "Failed to create pod sandbox: %s", f.Message)}
	}
	return []pod.Event{say(pod.FailedKillPod, "error killing pod: %s", f.Message)}
}

func pullFailureEvents(image string, f pod.Failure, say func(pod.Reason, string, ...any) pod.Event) []pod.Event {
	switch f.Reason {
	case pod.ErrImageNeverPull:
		return []pod.Event{say(pod.ErrImageNeverPull, "Container image %q is not present with pull policy of Never", image), say(pod.FailedReason, "Error: %s", f.Reason)}
	case pod.InvalidImageName, pod.ImageInspectError:
		return []pod.Event{say("InspectFailed", "%s", f.Message), say(pod.FailedReason, "Error: %s", f.Reason)}
	}
	backOff := say(pod.BackOff, "Back-off pulling image %q", image)
	backOff.Warning = false
	return []pod.Event{
		say(pod.FailedReason, "Failed to pull image %q: %s", image, f.Message),
		say(pod.FailedReason, "Error: %s", f.Reason), backOff, say(pod.FailedReason, "Error: %s", pod.ImagePullBackOff),
	}
}

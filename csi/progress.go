package csi

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	v1 "k8s.io/api/core/v1"
)

// progress is how far one Mount has come. Its work may be stuck in the kernel
// when its caller gives up and wants to say on what.
type progress struct {
	planned []volume.Volume
	refused volume.Errors // by the plan: never begun

	mu     sync.Mutex
	begun  bool     // it is this work's turn
	at     string   // being set up
	left   []string // not set up
	failed volume.Errors
}

func newProgress(planned []volume.Volume, refused volume.Errors) *progress {
	w := &progress{planned: planned, refused: refused}
	for _, one := range planned {
		w.left = append(w.left, one.Name)
	}
	return w
}

func (w *progress) begin(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.begun, w.at = true, name
}

func (w *progress) done(name string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = ""
	w.left = slices.DeleteFunc(w.left, func(s string) bool { return s == name })
}

func (w *progress) fail(err *volume.Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.at = ""
	w.failed = append(w.failed, err)
}

// result is the error of work that came to its end: every failure.
func (w *progress) result() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	all := slices.Concat(w.refused, w.failed)
	switch len(all) {
	case 0:
		return nil
	case 1:
		return all[0]
	}
	return all
}

// cut is the error of work that did not end before its context did, in the
// words of the kubelet's FailedMount event, and with what it hangs on.
func (w *progress) cut(ended error) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	code := volume.Timeout
	if errors.Is(ended, context.Canceled) {
		code = volume.Canceled
	}
	var refused []string
	for _, e := range w.refused {
		refused = append(refused, e.Volume)
	}
	err := fmt.Errorf("unmounted volumes=%v, unattached volumes=[], failed to process volumes=%v: %w",
		slices.Concat(refused, w.left), refused, ended)
	if all := slices.Concat(w.refused, w.failed); len(all) > 0 {
		err = fmt.Errorf("%w; %s", err, all.Error())
	}
	if !w.begun {
		err = fmt.Errorf("%w; earlier work on this pod's volumes has not ended (is a host path on a dead network file system?)", err)
	}
	for _, one := range w.planned {
		switch {
		case one.Name != w.at:
		case one.Kind == volume.HostPath:
			err = fmt.Errorf("%w; the host has not answered for %s of volume %q (is it on a dead network file system?)", err, one.Source.HostPath.Path, w.at)
		default:
			err = fmt.Errorf("%w; the host is still setting up volume %q", err, w.at)
		}
	}
	return &volume.Error{Code: code, Err: err}
}

// slow tells that the change of a volume's group takes long.
func (v *Volumes) slow(pod *v1.Pod, name string, files int64, first bool) {
	dir := string(pod.UID) + "/volumes/" + name
	message := fmt.Sprintf("Setting volume ownership for %s, processed %d files.", dir, files)
	if first {
		message = fmt.Sprintf("Setting volume ownership for %s is taking longer than expected, consider using OnRootMismatch - https://kubernetes.io/docs/tasks/configure-pod-container/security-context/#configure-volume-permission-and-ownership-change-policy-for-pods", dir)
	}
	v.cfg.Event(Event{Pod: pod, Warning: true, Reason: "VolumePermissionChangeInProgress", Message: message})
}

func (v *Volumes) warnSwappable() {
	if !mount.Swappable() {
		return
	}
	const message = "The tmpfs noswap option is not supported. Memory-backed volumes (e.g. secrets, emptyDirs, etc.) might be swapped to disk and should no longer be considered secure."
	v.cfg.Logger.Warn(message + " Turn swap off, or run a kernel of 6.4 or later.")
	v.cfg.Event(Event{Warning: true, Reason: "PossibleMemoryBackedVolumesOnDisk", Message: message})
}

package worker

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthd/berth/agent/plan"
	"github.com/berthd/berth/agent/pod"
)

// maxAmendments bounds those that wait for one worker.
const maxAmendments = 16

var errEnded = errors.New("the pod is gone, or the agent ends")

// amendment is a change of the pod's state that somebody waits for.
type amendment struct {
	change func(*plan.State) error
	// done has room for the one answer.
	done chan error
}

// Amend has change applied to the pod's state by the worker, its only writer,
// and returns when what came of it is on disk. An error of change's is returned
// as it is, and nothing has changed then. change must be quick, and must not
// keep the state. When ctx ends first, the change may be applied or not.
func (w *Worker) Amend(ctx context.Context, change func(*plan.State) error) error {
	a := amendment{change: change, done: make(chan error, 1)}
	if !w.mail.amend(a) {
		return &pod.Error{Op: "amend pod", Kind: pod.Exhausted, Err: fmt.Errorf("%d changes wait for the pod already: ask again later", maxAmendments)}
	}
	select {
	case err := <-a.done:
		return err
	case <-w.ended:
		select {
		case err := <-a.done: // answered on the way out
			return err
		default:
			return &pod.Error{Op: "amend pod", Kind: pod.NotFound, Err: errEnded}
		}
	case <-ctx.Done():
		return ctx.Err()
	}
}

// apply applies amendments; those that succeed are answered once they are saved.
func (w *Worker) apply(amendments []amendment) {
	for _, a := range amendments {
		if err := a.change(&w.state); err != nil {
			a.done <- err
			continue
		}
		w.amended = append(w.amended, a)
	}
}

// confirm answers those whose changes are on disk now.
func (w *Worker) confirm() {
	for _, a := range w.amended {
		a.done <- nil
	}
	w.amended = nil
}

package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/cmd/internal/client"
)

// settle is how long a pod that was there before must stay as it is before it
// is taken for the one just applied, if the agent does not tell UIDs.
const settle = 500 * time.Millisecond

// errFollowed ends the watch.
var errFollowed = errors.New("all pods are where they were to come")

// followed is one pod on its way.
//
//	waiting ──▶ done (ready, or Succeeded)
//	   └──────▶ failed (phase Failed, or gone)
type followed struct {
	uid     string // wanted; "" any
	present bool   // in the first answer of the watch: perhaps an older pod
	told    string // the line last printed
	state   followState
	why     client.Explanation
}

type followState int

const (
	waiting followState = iota
	done
	failed
)

// follower prints how pods come along.
type follower struct {
	*app
	pods     map[client.PodKey]*followed
	untilEnd bool // ready is not the end, completed is
	changed  chan client.WatchEvent
}

func newFollower(a *app, pods map[client.PodKey]string) *follower {
	f := &follower{app: a, pods: map[client.PodKey]*followed{}, changed: make(chan client.WatchEvent)}
	for k, uid := range pods {
		f.pods[k] = &followed{uid: uid}
	}
	return f
}

// follow returns nil once every pod is done or failed.
func (f *follower) follow(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	watched := make(chan error, 1)
	go func() {
		watched <- f.client().Watch(ctx, "", func(e client.WatchEvent) error {
			select {
			case f.changed <- e:
				return nil
			case <-ctx.Done():
				return ctx.Err()
			}
		})
	}()
	err := f.loop(ctx, watched)
	cancel()
	if !errors.Is(err, errFollowed) {
		return err
	}
	<-watched // the goroutine ends with ctx
	return nil
}

func (f *follower) loop(ctx context.Context, watched <-chan error) error {
	begun, settled := false, time.NewTimer(settle)
	defer settled.Stop()
	for {
		select {
		case e := <-f.changed:
			if e.Type == client.Bookmark {
				begun = true
				break
			}
			f.see(e, begun)
		case <-settled.C:
			for _, p := range f.pods {
				p.present = false
			}
		case err := <-watched:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
		if begun && f.ended() {
			return errFollowed
		}
	}
}

func (f *follower) see(e client.WatchEvent, begun bool) {
	key := client.PodKey{Namespace: e.Pod.Namespace, Name: e.Pod.Name}
	p, ours := f.pods[key]
	if !ours || p.uid != "" && p.uid != string(e.Pod.UID) {
		return
	}
	p.present = !begun && p.uid == ""
	p.why = e.Explanation
	p.state = f.stateOf(e)
	line := f.line(e)
	if line != p.told {
		p.told = line
		fmt.Fprintf(f.Out, "pod/%s %s\n", e.Pod.Name, line)
	}
}

func (f *follower) stateOf(e client.WatchEvent) followState {
	switch {
	case e.Type == client.Deleted && e.Pod.DeletionTimestamp == nil, e.Pod.Status.Phase == v1.PodFailed:
		return failed
	case e.Pod.Status.Phase == v1.PodSucceeded:
		return done
	case e.Pod.DeletionTimestamp != nil:
		return waiting // an older pod of the name makes room
	case !f.untilEnd && !completes(&e.Pod) && e.Pod.Status.Phase == v1.PodRunning && condition(&e.Pod, v1.PodReady):
		return done
	}
	return waiting
}

// completes tells whether the pod is meant to end: being ready is then a step on its way.
func completes(p *v1.Pod) bool {
	return p.Spec.RestartPolicy == v1.RestartPolicyNever || p.Spec.RestartPolicy == v1.RestartPolicyOnFailure
}

// line tells a pod's state; the explanation says what it waits for.
func (f *follower) line(e client.WatchEvent) string {
	s := summarize(&e.Pod)
	switch {
	case e.Type == client.Deleted:
		return "gone"
	case e.Pod.Status.Phase == v1.PodFailed:
		return f.paint(red, s.status)
	case e.Pod.Status.Phase == v1.PodSucceeded:
		return f.paint(green, s.status)
	case condition(&e.Pod, v1.PodReady):
		return f.paint(green, "ready") + fmt.Sprintf(" (%d/%d)", s.ready, s.total)
	}
	line := s.status
	if e.Explanation.Cause != "" && !e.Explanation.Well {
		line += ": " + e.Explanation.Cause
	}
	return line
}

func (f *follower) ended() bool {
	for _, p := range f.pods {
		if p.state == waiting || p.present && p.state == done {
			return false
		}
	}
	return true
}

func (f *follower) failed() bool {
	for _, p := range f.pods {
		if p.state == failed {
			return true
		}
	}
	return false
}

func (f *follower) keys() []client.PodKey {
	keys := make([]client.PodKey, 0, len(f.pods))
	for k := range f.pods {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(x, y client.PodKey) int { return strings.Compare(x.String(), y.String()) })
	return keys
}

// names are the arguments that `berth stop` takes for the pods.
func (f *follower) names() string {
	var b strings.Builder
	for i, k := range f.keys() {
		if i > 0 {
			b.WriteByte(' ')
		}
		if k.Namespace != f.namespace {
			b.WriteString("-n " + k.Namespace + " ")
		}
		b.WriteString(k.Name)
	}
	return b.String()
}

// explain says why pods failed, or else why they are not done.
func (f *follower) explain(failedOnly bool) {
	for _, k := range f.keys() {
		p := f.pods[k]
		if p.state == done || failedOnly && p.state != failed {
			continue
		}
		p.why.Pod = k.String()
		writeWhy(f.Err, p.why, time.Now(), func(_, text string) string { return text })
	}
}

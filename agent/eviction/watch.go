package eviction

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"path/filepath"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// period is how often limits are looked at, as the kubelet does.
const period = 10 * time.Second

// Measurer tells how much things take. Calls may take long, and end with ctx.
type Measurer interface {
	// Tree measures a directory with all below it, in bytes; one that is not there takes nothing.
	Tree(ctx context.Context, path string) (int64, error)
	// Own measures what the agent has given to the pod to write to: /etc/hosts and the
	// termination messages (CVE-2020-8557).
	Own(ctx context.Context, uid pod.UID) (int64, error)
	// WritableLayer measures what a container wrote to its root filesystem.
	WritableLayer(ctx context.Context, id pod.ContainerID) (int64, error)
}

// Pods are those of this node.
type Pods interface {
	Snapshots() []pod.Snapshot
	// Terminate asks for a pod's end; it says whether there is such a pod.
	Terminate(uid pod.UID, t pod.Termination) bool
}

// Config is what a Watch works with. All fields are required.
type Config struct {
	Pods    Pods
	Measure Measurer
	// Exempt pods are told of, but not ended.
	Exempt func(*v1.Pod) bool
	// Events gets each event; it must not block.
	Events func(pod.UID, pod.Event)
	Log    *slog.Logger
}

// Watch evicts pods that exceed what they declared of local storage.
type Watch struct {
	Config
	// told are the exempt pods, and those that could not be measured, that were told of.
	told map[pod.UID]bool
}

// NewWatch returns a Watch that does nothing before Run.
func NewWatch(c Config) *Watch { return &Watch{Config: c, told: map[pod.UID]bool{}} }

// Run looks every ten seconds, one pod after the other, until ctx ends, and
// returns ctx's error. Where looking takes longer, it rests as long as it took.
func (w *Watch) Run(ctx context.Context) error {
	for took := time.Duration(0); ; {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(max(period, took) + rand.N(period/10)):
		}
		begun := time.Now()
		all := w.Pods.Snapshots()
		for i := range all {
			if ctx.Err() != nil {
				return ctx.Err()
			}
			w.look(ctx, &all[i])
		}
		w.forget(all)
		took = time.Since(begun)
	}
}

// look measures one pod, if it declares limits and runs, and evicts it if need be.
func (w *Watch) look(ctx context.Context, s *pod.Snapshot) {
	if s.Desired.Pod == nil || s.Desired.Rejection != nil || s.Desired.Termination != nil || s.Status.Phase == v1.PodFailed || s.Status.Phase == v1.PodSucceeded {
		return
	}
	needs := NeedsOf(s.Desired.Pod)
	if needs.None() {
		return
	}
	usage, err := w.measure(ctx, s, needs)
	log := w.Log.With("pod", s.Desired.Pod.Namespace+"/"+s.Desired.Pod.Name, "uid", string(s.UID))
	if err != nil && ctx.Err() == nil && !w.told[s.UID] {
		w.told[s.UID] = true
		log.Warn("not all of the pod's storage could be measured; what could be counts", "error", err)
	}
	if ctx.Err() != nil {
		return
	}
	t := Exceeded(s.Desired.Pod, usage, time.Now())
	if t == nil {
		return
	}
	if w.Exempt(s.Desired.Pod) {
		if !w.told[s.UID] {
			w.told[s.UID] = true
			log.Warn("a critical pod exceeds its storage limits; it is not evicted", "why", t.Message)
		}
		return
	}
	if w.Pods.Terminate(s.UID, *t) {
		log.Info("pod evicted", "why", t.Message)
		w.Events(s.UID, pod.Event{Warning: true, Reason: pod.Evicted, Message: t.Message, At: t.Requested})
	}
}

// measure returns what could be measured, and the last error of what could not.
func (w *Watch) measure(ctx context.Context, s *pod.Snapshot, needs Needs) (Usage, error) {
	u := Usage{Containers: map[pod.ContainerName]int64{}, Volumes: map[string]int64{}}
	var failed error
	for _, name := range needs.Volumes {
		v, ok := s.Observed.Volumes[name]
		if !ok {
			continue
		}
		n, err := w.Measure.Tree(ctx, v.HostPath)
		if err != nil {
			failed = err
			continue
		}
		u.Volumes[name] = n
	}
	if !needs.Containers {
		return u, failed
	}
	own, err := w.Measure.Own(ctx, s.UID)
	if err != nil {
		failed = err
	}
	u.Own = own
	for _, c := range s.Observed.Containers {
		if c.State != pod.Running {
			continue
		}
		n, err := w.Measure.WritableLayer(ctx, c.ID)
		if err != nil {
			failed = err
		}
		if c.LogPath != "" { // rotated ones lie beside it
			logs, err := w.Measure.Tree(ctx, filepath.Dir(c.LogPath))
			if err != nil {
				failed = err
			}
			n += logs
		}
		u.Containers[c.Name] = n
	}
	return u, failed
}

// forget drops what was told of pods that are gone.
func (w *Watch) forget(all []pod.Snapshot) {
	if len(w.told) == 0 {
		return
	}
	there := make(map[pod.UID]bool, len(all))
	for i := range all {
		there[all[i].UID] = true
	}
	for uid := range w.told {
		if !there[uid] {
			delete(w.told, uid)
		}
	}
}

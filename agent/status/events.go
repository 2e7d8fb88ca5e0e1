package status

import (
	"cmp"
	"context"
	"fmt"
	"hash/fnv"
	"slices"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/berthd/berth/agent/pod"
)

// The ring holds so many events, of one pod so many, and of a message so many
// bytes: a pod in trouble does not push out what others have to say.
const (
	maxEvents    = 2000
	maxPodEvents = 60
	maxMessage   = 1024
)

// eventKey tells events apart; those of one key are counted, not listed.
type eventKey struct {
	uid       pod.UID
	container pod.ContainerName
	warning   bool
	reason    pod.Reason
	message   string
}

// record is an event with its count. It is immutable: a repetition makes another.
type record struct {
	key             eventKey
	namespace, name string
	fieldPath       string
	count           int32
	first, last     time.Time
	// turn orders records by their last occurrence.
	turn uint64
}

// ring is a bounded set of events: where there is no room, the event that has
// not happened for the longest time goes.
type ring struct {
	records map[eventKey]*record
	perPod  map[pod.UID]int
	turn    uint64
}

func newRing() ring {
	return ring{records: map[eventKey]*record{}, perPod: map[pod.UID]int{}}
}

func (r *ring) add(n record) *record {
	r.turn++
	n.count, n.turn = 1, r.turn
	if old, ok := r.records[n.key]; ok {
		n.count, n.first = old.count+1, old.first
	} else {
		if r.perPod[n.key.uid] >= maxPodEvents {
			r.dropOldest(func(o *record) bool { return o.key.uid == n.key.uid })
		} else if len(r.records) >= maxEvents {
			r.dropOldest(func(*record) bool { return true })
		}
		r.perPod[n.key.uid]++
	}
	r.records[n.key] = &n
	return &n
}

func (r *ring) dropOldest(of func(*record) bool) {
	var oldest *record
	for _, o := range r.records {
		if of(o) && (oldest == nil || o.turn < oldest.turn) {
			oldest = o
		}
	}
	delete(r.records, oldest.key)
	if r.perPod[oldest.key.uid]--; r.perPod[oldest.key.uid] == 0 {
		delete(r.perPod, oldest.key.uid)
	}
}

// Event adds an event of pod uid. It does not block.
func (t *Store) Event(uid pod.UID, e pod.Event) {
	if len(e.Message) > maxMessage {
		e.Message = strings.ToValidUTF8(e.Message[:maxMessage-3], "") + "..."
	}
	n := record{
		key:  eventKey{uid: uid, container: e.Container, warning: e.Warning, reason: e.Reason, message: e.Message},
		name: string(uid), first: e.At, last: e.At,
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if s, ok := t.pods[uid]; ok {
		p := s.Desired.Pod
		n.namespace, n.name, n.fieldPath = p.Namespace, p.Name, fieldPath(p, string(e.Container))
	}
	added := t.events.add(n)
	t.eventHub.post(added.key, added)
}

func fieldPath(p *v1.Pod, container string) string {
	if container == "" {
		return ""
	}
	for _, c := range p.Spec.InitContainers {
		if c.Name == container {
			return "spec.initContainers{" + container + "}"
		}
	}
	for _, c := range p.Spec.EphemeralContainers {
		if c.Name == container {
			return "spec.ephemeralContainers{" + container + "}"
		}
	}
	return "spec.containers{" + container + "}"
}

// Events returns the events that are remembered, the oldest first; of all
// namespaces if namespace is empty, and of all pods if name is.
func (t *Store) Events(namespace, name string) []v1.Event {
	t.mu.RLock()
	defer t.mu.RUnlock()
	var records []*record
	for _, r := range t.events.records {
		if r.of(namespace, name) {
			records = append(records, r)
		}
	}
	slices.SortFunc(records, func(a, b *record) int { return cmp.Or(a.last.Compare(b.last), cmp.Compare(a.turn, b.turn)) })
	events := make([]v1.Event, 0, len(records))
	for _, r := range records {
		events = append(events, t.event(r))
	}
	return events
}

func (r *record) of(namespace, name string) bool {
	return (namespace == "" || r.namespace == namespace) && (name == "" || r.name == name)
}

// WatchEvents calls emit with what Events returns, and then with each event as
// it happens; one that is repeated while emit is busy comes once, with its count.
func (t *Store) WatchEvents(ctx context.Context, namespace, name string, emit func(v1.Event) error) error {
	w, err := t.eventHub.join()
	if err != nil {
		return err
	}
	defer t.eventHub.leave(w)
	for _, e := range t.Events(namespace, name) {
		if err := emit(e); err != nil {
			return err
		}
	}
	return t.eventHub.follow(ctx, w, func(r *record) error {
		if !r.of(namespace, name) {
			return nil
		}
		return emit(t.event(r))
	})
}

// event renders r as Kubernetes' API would.
func (t *Store) event(r *record) v1.Event {
	h := fnv.New64a()
	fmt.Fprintf(h, "%s\x00%s\x00%v\x00%s\x00%s", r.key.uid, r.key.container, r.key.warning, r.key.reason, r.key.message)
	kind := v1.EventTypeNormal
	if r.key.warning {
		kind = v1.EventTypeWarning
	}
	return v1.Event{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Event"},
		ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprintf("%s.%016x", r.name, h.Sum64()), Namespace: r.namespace, CreationTimestamp: metav1.NewTime(r.first)},
		InvolvedObject: v1.ObjectReference{
			APIVersion: "v1", Kind: "Pod", Namespace: r.namespace, Name: r.name, UID: types.UID(r.key.uid), FieldPath: r.fieldPath,
		},
		Reason: string(r.key.reason), Message: r.key.message, Type: kind, Count: r.count,
		FirstTimestamp: metav1.NewTime(r.first), LastTimestamp: metav1.NewTime(r.last),
		Source: v1.EventSource{Component: "berth", Host: t.node}, ReportingController: "berth", ReportingInstance: t.node,
	}
}

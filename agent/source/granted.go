package source

import (
	"encoding/json"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path/filepath"

	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// granted remembers which classes each pod was taken in with, in
// ROOT/source/classes.json: neither a change of a class nor its removal touches
// a pod that runs, a restart of the agent in between or not. It is written
// without fsync: after a power cut no pod runs, and the classes of then count.
type granted struct {
	path string
	pods map[types.UID]*grantedPod
	// onDisk is what was last written.
	onDisk map[types.UID]grant
}

// grantedPod is a pod with what its classes give it.
type grantedPod struct {
	grant
	// base is the pod as its manifest has it, pod what became of it; nil as long as
	// no manifest gave it since the start.
	base, pod *v1.Pod
	handler   string
	// errs, unless empty, keep it from being taken in.
	errs field.ErrorList
}

// load reads what an earlier agent wrote.
func (g *granted) load(s *Set) {
	g.pods, g.onDisk = map[types.UID]*grantedPod{}, map[types.UID]grant{}
	b, err := os.ReadFile(g.path)
	if errors.Is(err, fs.ErrNotExist) {
		return
	}
	if err == nil {
		err = json.Unmarshal(b, &g.onDisk)
	}
	if err != nil {
		setAside(g.path, err, s.cfg.Logger)
		g.onDisk = map[types.UID]grant{}
	}
	for uid, had := range g.onDisk {
		if had.Priority != nil {
			defaultPriorityClass(had.Priority)
		}
		g.pods[uid] = &grantedPod{grant: had}
	}
}

// of returns base with what its classes give it: those it was taken in with, or
// else those of now. The same answer is the same pointer.
func (g *granted) of(base *v1.Pod, now *classes) *grantedPod {
	p := g.pods[base.UID]
	if p != nil && p.base == base && len(p.errs) == 0 && (p.Priority != nil || now.otherwise == nil) {
		return p
	}
	var had grant
	if p != nil && len(p.errs) == 0 {
		had = p.grant
	}
	next := &grantedPod{base: base, pod: base}
	next.grant, next.errs = now.grant(base, had)
	switch {
	case p != nil && p.base == base && p.grant == next.grant && len(p.errs) == 0 && len(next.errs) == 0:
		return p
	case next.grant != grant{}:
		next.pod = base.DeepCopy()
		var more field.ErrorList
		next.handler, more = next.apply(next.pod)
		next.errs = append(next.errs, more...)
	}
	g.pods[base.UID] = next
	return next
}

// settle writes down what pods were granted. Those that are not in force are
// forgotten, if all that could be in force is known.
func (g *granted) settle(s *Set, inForce map[types.UID]bool, all bool) {
	want := map[types.UID]grant{}
	for uid, p := range g.pods {
		switch {
		case all && !inForce[uid]:
			delete(g.pods, uid)
		case len(p.errs) == 0 && (p.Runtime != nil || p.Priority != nil):
			want[uid] = p.grant
		}
	}
	if maps.Equal(want, g.onDisk) {
		return
	}
	b, err := json.Marshal(want)
	if err == nil {
		failpoint.Hit("agent/source/classes-write")
		err = replace(g.path, b, false)
	}
	if err != nil {
		s.cfg.Logger.Warn("the classes of pods cannot be remembered: after a restart of the agent those of then count", "err", err)
		return
	}
	g.onDisk = want
}

func grantedPath(root string) string { return filepath.Join(root, "source", "classes.json") }

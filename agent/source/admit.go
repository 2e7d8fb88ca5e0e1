package source

import (
	"fmt"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// waiting is a document that is to replace another one, and why it cannot yet.
type waiting struct {
	entry *entry
	errs  field.ErrorList
}

// classes are all that manifests give, those of f, which is about to be put, included.
func (s *Set) classes(f *file) *classes {
	c := newClasses()
	for _, o := range s.origins {
		for _, name := range slices.Sorted(maps.Keys(o.files)) {
			for _, e := range o.files[name].entries {
				c.add(e)
			}
		}
	}
	if f != nil {
		for _, e := range f.entries {
			c.add(e)
		}
	}
	return c
}

// classesFirst puts classes before what may need them.
func classesFirst(entries []*entry) []*entry {
	class := func(e *entry) int {
		if kinds[e.ref.Kind].cluster {
			return 0
		}
		return 1
	}
	return slices.SortedStableFunc(slices.Values(entries), func(a, b *entry) int { return class(a) - class(b) })
}

// hold leaves the earlier version of a pod in force whose new one cannot be
// taken in for want of a class: release looks again.
func (s *Set) hold(f, old *file) {
	var now *classes
	for i, e := range f.entries {
		if e.pod == nil || len(e.lines) == 0 {
			continue // it has nothing to do with classes
		}
		earlier := slices.IndexFunc(old.entries, func(o *entry) bool { return o.ref == e.ref && string(o.raw) != string(e.raw) })
		if earlier < 0 {
			continue
		}
		if now == nil {
			now = s.classes(f)
		}
		if errs := now.refuse(e.pod); len(errs) > 0 {
			f.entries[i] = old.entries[earlier]
			f.waiting = append(f.waiting, waiting{e, errs})
		}
	}
}

// release puts into force what has been held and can be taken in now.
func (s *Set) release() {
	var now *classes
	for _, o := range s.origins {
		for name, f := range o.files {
			if len(f.waiting) == 0 {
				continue
			}
			if now == nil {
				now = s.classes(nil)
			}
			next := &file{entries: slices.Clone(f.entries), problems: f.problems, memo: f.memo, uid: f.uid}
			for _, w := range f.waiting {
				if w.errs = now.refuse(w.entry.pod); len(w.errs) > 0 {
					next.waiting = append(next.waiting, w)
					continue
				}
				for i, e := range next.entries {
					if e.ref == w.entry.ref {
						next.entries[i] = w.entry
					}
				}
			}
			next.pods = s.identify(o, name, next, f)
			o.files[name] = next
			s.memory.write(o, name, next, f)
		}
	}
}

// admit gives the pods of m what their classes give, and leaves out those that
// cannot be taken in. all: every origin has been read.
func (s *Set) admit(m *merge, all bool) {
	now := newClasses()
	for _, ref := range slices.SortedFunc(maps.Keys(m.objects), compareRefs) {
		now.add(m.objects[ref])
	}
	for ref, e := range m.objects {
		if pc := e.priorityClass; pc != nil && pc.GlobalDefault && pc != now.otherwise {
			m.problems = append(m.problems, Problem{File: m.first[ref], Line: e.line, Document: e.doc, Object: ref, FieldPath: "globalDefault",
				Message: fmt.Sprintf("the PriorityClass %s is the default, too, and the lowest counts: let there be one default", now.otherwise.Name)})
		}
	}
	inForce := map[types.UID]bool{}
	for _, g := range m.given {
		p := s.granted.of(g.pod, now)
		for _, err := range p.errs {
			m.problems = append(m.problems, g.entry.problem(g.file, err))
		}
		if inForce[g.pod.UID] = true; len(p.errs) == 0 {
			m.pods[g.source] = append(m.pods[g.source], p.pod)
		}
	}
	s.granted.settle(s, inForce, all)
}

package source

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// snapshot is what a source was last delivered.
type snapshot struct {
	pods     []*v1.Pod
	versions []string
}

func (a *snapshot) equal(b *snapshot) bool {
	return slices.Equal(a.pods, b.pods) && slices.Equal(a.versions, b.versions)
}

// publish merges all origins, delivers the sources that changed, and replaces the view.
func (s *Set) publish() {
	m := merge{first: map[Ref]string{}, objects: map[Ref]*entry{}, pods: map[pod.Source][]*v1.Pod{}}
	local := true
	waiting := map[pod.Source]bool{}
	for _, o := range s.origins {
		if !o.synced {
			waiting[o.source] = true
			local = local && !o.local
		}
	}
	if local {
		s.release()
	}
	for _, o := range s.origins {
		m.origin(o)
	}
	if local {
		s.admit(&m, len(waiting) == 0)
	}
	sortProblems(m.problems)
	old := s.view.Load()
	s.view.Store(&view{objects: m.objects, files: m.first, problems: m.problems})
	if s.cfg.Changed != nil && !slices.Equal(old.problems, m.problems) {
		s.cfg.Changed(slices.Clone(m.problems))
	}
	if !local {
		return // a ConfigMap may still be unread that pods of any source refer to
	}
	versions := versions{objects: m.objects, hashes: map[*entry]string{}}
	for _, src := range []pod.Source{pod.SourceFile, pod.SourceRun, pod.SourceHTTP} {
		if waiting[src] {
			continue
		}
		s.deliver(src, m.pods[src], versions)
	}
}

func (s *Set) deliver(src pod.Source, pods []*v1.Pod, v versions) {
	slices.SortFunc(pods, func(a, b *v1.Pod) int {
		return strings.Compare(a.Namespace+"/"+a.Name, b.Namespace+"/"+b.Name)
	})
	next := &snapshot{pods: pods}
	for _, p := range pods {
		next.versions = append(next.versions, v.of(p))
	}
	if last := s.delivered[src]; last != nil && last.equal(next) {
		return
	}
	s.delivered[src] = next
	desired := make([]pod.Desired, 0, len(pods))
	for i, p := range pods {
		desired = append(desired, pod.Desired{Pod: p, Source: src, RuntimeHandler: s.granted.pods[p.UID].handler, Inputs: pod.Inputs{Version: next.versions[i]}})
	}
	s.cfg.Deliver(src, desired)
}

// merge takes origins in order of precedence: the first to name an object gives it.
type merge struct {
	first    map[Ref]string // the file that gives it
	objects  map[Ref]*entry // ConfigMaps, Secrets and classes
	given    []given
	pods     map[pod.Source][]*v1.Pod // those that are taken in
	problems []Problem
}

// given is a pod as a file gives it, before its classes are asked.
type given struct {
	source pod.Source
	file   string
	entry  *entry
	pod    *v1.Pod
}

func (m *merge) origin(o *origin) {
	m.problems = append(m.problems, o.problems...)
	for _, name := range slices.Sorted(maps.Keys(o.files)) {
		f := o.files[name]
		m.problems = append(m.problems, f.problems...)
		file := redactName(o, name)
		if o.source == pod.SourceRun {
			file = "run"
		}
		for _, w := range f.waiting {
			for _, err := range w.errs {
				p := w.entry.problem(file, err)
				p.Message += "; what it held before stays in force"
				m.problems = append(m.problems, p)
			}
		}
		for _, e := range f.entries {
			if first, ok := m.first[e.ref]; ok {
				m.problems = append(m.problems, Problem{File: file, Line: e.line, Document: e.doc, Object: e.ref, FieldPath: "metadata.name",
					Message: fmt.Sprintf("%s already gives the %s, and that one is used: remove one of them", describe(first), e.ref)})
				continue
			}
			m.first[e.ref] = file
			if p := f.pods[e]; p != nil {
				m.given = append(m.given, given{o.source, file, e, p})
			} else {
				m.objects[e.ref] = e
			}
		}
	}
}

func describe(file string) string {
	if file == "run" {
		return "a document applied with berth run"
	}
	return file
}

// identify makes the pods of f as they are delivered: with a UID, the node's
// name and the annotations of a static pod. An unchanged pod is the same
// pointer as before. File and HTTP pods tolerate NoExecute taints, as the
// kubelet's static pods do.
func (s *Set) identify(o *origin, name string, f, old *file) map[*entry]*v1.Pod {
	pods := map[*entry]*v1.Pod{}
	seen := map[string]string{}
	for _, e := range f.entries {
		if e.pod == nil {
			continue
		}
		uid := string(e.pod.UID)
		if uid == "" {
			uid = f.uid
		}
		if uid == "" {
			uid = s.uid(o, name, e)
		}
		since := f.memo.Seen[uid]
		if since == "" {
			since = time.Now().Format(time.RFC3339Nano)
		}
		seen[uid] = since
		pods[e] = s.static(o, e, uid, since)
		for oe, op := range old.pods {
			if oe.ref == e.ref && string(op.UID) == uid && string(oe.raw) == string(e.raw) {
				pods[e] = op
			}
		}
	}
	f.memo.Seen = seen
	return pods
}

// uid is the hash of content, node and place: the same manifest in the same
// place is the same pod across restarts, any change makes another pod. It is
// made from the document before defaults, so that a new release of Berth with
// another default does not restart every pod.
func (s *Set) uid(o *origin, name string, e *entry) string {
	h := sha256.New()
	kind := "file"
	if o.source == pod.SourceHTTP {
		kind = "url"
	}
	fmt.Fprintf(h, "%s\x00host:%s\x00%s:%s", e.raw, s.cfg.Node, kind, name)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func (s *Set) static(o *origin, e *entry, uid, since string) *v1.Pod {
	p := e.pod.DeepCopy()
	p.UID = types.UID(uid)
	set(&p.Spec.NodeName, s.cfg.Node) // another one is for admission to refuse
	if p.Annotations == nil {
		p.Annotations = map[string]string{}
	}
	p.Annotations[pod.AnnotationSource] = string(o.source)
	p.Annotations[pod.AnnotationHash] = uid
	p.Annotations[pod.AnnotationSeen] = since
	forever := v1.Toleration{Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}
	if o.source != pod.SourceHTTP && !slices.Contains(p.Spec.Tolerations, forever) {
		p.Spec.Tolerations = append(p.Spec.Tolerations, forever)
	}
	return p
}

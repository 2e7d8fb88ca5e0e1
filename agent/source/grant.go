package source

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// grant is the classes that a pod was taken in with. As in a cluster, it stays
// what it is for as long as the pod lives: what becomes of the classes later
// concerns later pods.
type grant struct {
	Runtime  *nodev1.RuntimeClass        `json:"runtimeClass,omitempty"`
	Priority *schedulingv1.PriorityClass `json:"priorityClass,omitempty"`
}

// classes are those of the node at one moment.
type classes struct {
	runtimes   map[string]*nodev1.RuntimeClass
	priorities map[string]*schedulingv1.PriorityClass
	// otherwise is the priority class of pods that name none, nil if there is none.
	otherwise *schedulingv1.PriorityClass
}

func newClasses() *classes {
	c := &classes{runtimes: map[string]*nodev1.RuntimeClass{}, priorities: map[string]*schedulingv1.PriorityClass{}}
	for name, value := range systemPriorities {
		pc := &schedulingv1.PriorityClass{Value: value}
		pc.Name = name
		defaultPriorityClass(pc)
		c.priorities[name] = pc
	}
	return c
}

// add takes an entry that is a class, and ignores others.
func (c *classes) add(e *entry) {
	if rc := e.runtimeClass; rc != nil && c.runtimes[rc.Name] == nil {
		c.runtimes[rc.Name] = rc
	}
	pc := e.priorityClass
	if pc == nil || c.priorities[pc.Name] != nil {
		return
	}
	c.priorities[pc.Name] = pc
	// Of several defaults the lowest counts, as in the API server.
	if o := c.otherwise; pc.GlobalDefault && (o == nil || pc.Value < o.Value || pc.Value == o.Value && pc.Name < o.Name) {
		c.otherwise = pc
	}
}

// grant looks up the classes that p names. What it was taken in with before
// counts, where it still names it.
func (c *classes) grant(p *v1.Pod, had grant) (g grant, errs field.ErrorList) {
	if name := p.Spec.RuntimeClassName; name != nil {
		if g.Runtime = had.Runtime; g.Runtime == nil || g.Runtime.Name != *name {
			g.Runtime = c.runtimes[*name]
		}
		if g.Runtime == nil {
			errs = append(errs, field.Invalid(field.NewPath("spec", "runtimeClassName"), *name, unknown("RuntimeClass", c.runtimes)))
		}
	}
	name := p.Spec.PriorityClassName
	switch g.Priority = had.Priority; {
	case name == "" && p.Spec.Priority != nil:
		g.Priority = nil
	case name == "" && g.Priority == nil:
		g.Priority = c.otherwise
	case name != "" && (g.Priority == nil || g.Priority.Name != name):
		g.Priority = c.priorities[name]
	}
	// A pod that says its priority needs no class for it.
	if name != "" && g.Priority == nil && p.Spec.Priority == nil {
		errs = append(errs, field.Invalid(field.NewPath("spec", "priorityClassName"), name, unknown("PriorityClass", c.priorities)))
	}
	return g, errs
}

// refuse says why a pod that has not been taken in yet cannot be.
func (c *classes) refuse(p *v1.Pod) field.ErrorList {
	g, errs := c.grant(p, grant{})
	_, more := g.apply(p.DeepCopy())
	return append(errs, more...)
}

func unknown[T any](kind string, known map[string]T) string {
	names := "there are none"
	if len(known) > 0 {
		names = "known are " + strings.Join(slices.Sorted(maps.Keys(known)), ", ")
	}
	return "no manifest gives a " + kind + " of this name (" + names + "): the pod is taken in as soon as one does"
}

// apply gives p what its classes give, as the API server's admission does, and
// returns the runtime handler. p is changed.
func (g grant) apply(p *v1.Pod) (handler string, errs field.ErrorList) {
	if g.Runtime != nil {
		handler = g.Runtime.Handler
		errs = g.runtime(p)
	}
	if g.Priority != nil {
		errs = append(errs, g.priority(&p.Spec)...)
	}
	if len(errs) > 0 || g == (grant{}) {
		return handler, errs
	}
	podspec.Default(p)
	return handler, podspec.Validate(p)
}

func (g grant) runtime(p *v1.Pod) (errs field.ErrorList) {
	path, s, rc := field.NewPath("spec"), &p.Spec, g.Runtime
	if rc.Overhead != nil {
		if len(s.Overhead) > 0 && !apiequality.Semantic.DeepEqual(s.Overhead, rc.Overhead.PodFixed) {
			errs = append(errs, field.Forbidden(path.Child("overhead"), "the RuntimeClass "+rc.Name+" gives another one: remove it here"))
		}
		s.Overhead = rc.Overhead.DeepCopy().PodFixed
	}
	if rc.Scheduling == nil {
		return errs
	}
	selector := maps.Clone(rc.Scheduling.NodeSelector)
	for key, value := range s.NodeSelector {
		if other, ok := selector[key]; ok && other != value {
			errs = append(errs, field.Invalid(path.Child("nodeSelector").Key(key), value, fmt.Sprintf("the RuntimeClass %s asks for %q: a node cannot have both", rc.Name, other)))
		}
		if selector == nil {
			selector = map[string]string{}
		}
		selector[key] = value
	}
	s.NodeSelector = selector
	s.Tolerations = mergeTolerations(s.Tolerations, rc.Scheduling.Tolerations)
	return errs
}

func (g grant) priority(s *v1.PodSpec) (errs field.ErrorList) {
	path, pc := field.NewPath("spec"), g.Priority
	s.PriorityClassName = pc.Name
	if s.Priority != nil && *s.Priority != pc.Value {
		errs = append(errs, field.Forbidden(path.Child("priority"), fmt.Sprintf("the PriorityClass %s gives %d: remove it here", pc.Name, pc.Value)))
	}
	if s.PreemptionPolicy != nil && *s.PreemptionPolicy != *pc.PreemptionPolicy {
		errs = append(errs, field.Forbidden(path.Child("preemptionPolicy"), fmt.Sprintf("the PriorityClass %s gives %s: remove it here", pc.Name, *pc.PreemptionPolicy)))
	}
	value, policy := pc.Value, *pc.PreemptionPolicy
	s.Priority, s.PreemptionPolicy = &value, &policy
	return errs
}

// mergeTolerations joins two lists without what another one of them covers.
func mergeTolerations(first, second []v1.Toleration) (merged []v1.Toleration) {
	all := slices.Concat(first, second)
	for i, t := range all {
		covered := slices.ContainsFunc(merged, func(o v1.Toleration) bool { return covers(o, t) }) ||
			slices.ContainsFunc(all[i+1:], func(o v1.Toleration) bool { return !apiequality.Semantic.DeepEqual(o, t) && covers(o, t) })
		if !covered {
			merged = append(merged, *t.DeepCopy())
		}
	}
	return merged
}

// covers says whether a tolerates all that b does.
func covers(a, b v1.Toleration) bool {
	switch {
	case apiequality.Semantic.DeepEqual(a, b):
		return true
	case a.Key != b.Key && (a.Key != "" || a.Operator != v1.TolerationOpExists),
		a.Effect != b.Effect && a.Effect != "":
		return false
	case a.Effect == v1.TaintEffectNoExecute && a.TolerationSeconds != nil && (b.TolerationSeconds == nil || *b.TolerationSeconds > *a.TolerationSeconds):
		return false
	case a.Operator == v1.TolerationOpExists:
		return true
	case a.Operator == v1.TolerationOpEqual || a.Operator == "":
		return b.Operator == v1.TolerationOpEqual && a.Value == b.Value
	}
	return false
}

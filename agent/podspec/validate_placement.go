package podspec

import (
	"fmt"
	"slices"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	metavalidation "k8s.io/apimachinery/pkg/apis/meta/v1/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// placement checks what tells a scheduler where the pod may go.
func (c *checker) placement(spec *field.Path) {
	c.tolerations(c.spec.Tolerations, spec.Child("tolerations"))
	c.spread(spec.Child("topologySpreadConstraints"))
	a, at := c.spec.Affinity, spec.Child("affinity")
	if a == nil {
		return
	}
	if n := a.NodeAffinity; n != nil {
		c.nodeAffinity(n, at.Child("nodeAffinity"))
	}
	if p := a.PodAffinity; p != nil {
		c.podTerms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAffinity"))
	}
	if p := a.PodAntiAffinity; p != nil {
		c.podTerms(p.RequiredDuringSchedulingIgnoredDuringExecution, p.PreferredDuringSchedulingIgnoredDuringExecution, at.Child("podAntiAffinity"))
	}
}

func (c *checker) tolerations(all []v1.Toleration, at *field.Path) {
	for i, t := range all {
		at := at.Index(i)
		operator, effect := at.Child("operator"), at.Child("effect")
		if t.Key != "" {
			c.add(metavalidation.ValidateLabelName(t.Key, at.Child("key"))...)
		} else if t.Operator != v1.TolerationOpExists {
			c.invalid(operator, t.Operator, "operator must be Exists when `key` is empty, which means \"match all values and all keys\"")
		}
		if t.TolerationSeconds != nil && t.Effect != v1.TaintEffectNoExecute {
			c.invalid(effect, t.Effect, "effect must be 'NoExecute' when `tolerationSeconds` is set")
		}
		switch t.Operator {
		case v1.TolerationOpEqual, "":
			if len(validation.IsValidLabelValue(t.Value)) > 0 {
				c.invalid(operator, t.Value, "the value must be a valid value of a label")
			}
		case v1.TolerationOpExists:
			if t.Value != "" {
				c.invalid(operator, t.Value, "value must be empty when `operator` is 'Exists'")
			}
		default: // Lt and Gt are behind a gate that is off
			oneOf(&c.findings, operator, t.Operator, v1.TolerationOpEqual, v1.TolerationOpExists)
		}
		if t.Effect != "" {
			oneOf(&c.findings, effect, t.Effect, v1.TaintEffectNoSchedule, v1.TaintEffectPreferNoSchedule, v1.TaintEffectNoExecute)
		}
	}
}

func (c *checker) weight(at *field.Path, w int32) {
	if w < 1 || w > 100 {
		c.invalid(at, w, "must be in the range 1-100")
	}
}

func (c *checker) nodeAffinity(n *v1.NodeAffinity, at *field.Path) {
	const required, preferred = "requiredDuringSchedulingIgnoredDuringExecution", "preferredDuringSchedulingIgnoredDuringExecution"
	if s := n.RequiredDuringSchedulingIgnoredDuringExecution; s != nil {
		at := at.Child(required, "nodeSelectorTerms")
		if len(s.NodeSelectorTerms) == 0 {
			c.required(at, "must have at least one node selector term")
		}
		for i := range s.NodeSelectorTerms {
			c.nodeTerm(&s.NodeSelectorTerms[i], at.Index(i), true)
		}
	}
	for i := range n.PreferredDuringSchedulingIgnoredDuringExecution {
		t, at := &n.PreferredDuringSchedulingIgnoredDuringExecution[i], at.Child(preferred).Index(i)
		c.weight(at.Child("weight"), t.Weight)
		c.nodeTerm(&t.Preference, at.Child("preference"), false)
	}
}

// nodeTerm: a value that no label can have makes a term that nothing matches, which
// is a fault only where the term has to match.
func (c *checker) nodeTerm(t *v1.NodeSelectorTerm, at *field.Path, mustMatch bool) {
	for i, r := range t.MatchExpressions {
		at := at.Child("matchExpressions").Index(i)
		c.nodeExpression(r, at)
		for j, v := range r.Values {
			if mustMatch {
				c.invalid(at.Child("values").Index(j), v, validation.IsValidLabelValue(v)...)
			}
		}
	}
	for i, r := range t.MatchFields {
		at := at.Child("matchFields").Index(i)
		switch r.Operator {
		case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
			if len(r.Values) != 1 {
				c.required(at.Child("values"), "must be only one value when `operator` is 'In' or 'NotIn' for node field selector")
			}
		default:
			c.invalid(at.Child("operator"), r.Operator, "must be In or NotIn")
		}
		if r.Key != metav1.ObjectNameField {
			c.invalid(at.Child("key"), r.Key, "must be "+metav1.ObjectNameField)
			continue
		}
		for j, v := range r.Values {
			c.objectName(at.Child("values").Index(j), v)
		}
	}
}

func (c *checker) nodeExpression(r v1.NodeSelectorRequirement, at *field.Path) {
	values := at.Child("values")
	switch r.Operator {
	case v1.NodeSelectorOpIn, v1.NodeSelectorOpNotIn:
		if len(r.Values) == 0 {
			c.required(values, "must be specified when `operator` is 'In' or 'NotIn'")
		}
	case v1.NodeSelectorOpExists, v1.NodeSelectorOpDoesNotExist:
		if len(r.Values) > 0 {
			c.forbidden(values, "may not be specified when `operator` is 'Exists' or 'DoesNotExist'")
		}
	case v1.NodeSelectorOpGt, v1.NodeSelectorOpLt:
		if len(r.Values) != 1 {
			c.required(values, "must be specified single value when `operator` is 'Lt' or 'Gt'")
		}
	default:
		c.invalid(at.Child("operator"), r.Operator, "must be In, NotIn, Exists, DoesNotExist, Gt or Lt")
	}
	c.add(metavalidation.ValidateLabelName(r.Key, at.Child("key"))...)
}

func (c *checker) podTerms(required []v1.PodAffinityTerm, preferred []v1.WeightedPodAffinityTerm, at *field.Path) {
	for i := range required {
		c.podTerm(&required[i], at.Child("requiredDuringSchedulingIgnoredDuringExecution").Index(i))
	}
	for i := range preferred {
		at := at.Child("preferredDuringSchedulingIgnoredDuringExecution").Index(i)
		c.weight(at.Child("weight"), preferred[i].Weight)
		c.podTerm(&preferred[i].PodAffinityTerm, at.Child("podAffinityTerm"))
	}
}

func (c *checker) podTerm(t *v1.PodAffinityTerm, at *field.Path) {
	var strict metavalidation.LabelSelectorValidationOptions
	c.add(metavalidation.ValidateLabelSelector(t.LabelSelector, strict, at.Child("labelSelector"))...)
	c.add(metavalidation.ValidateLabelSelector(t.NamespaceSelector, strict, at.Child("namespaceSelector"))...)
	for _, name := range t.Namespaces {
		c.invalid(at.Child("namespace"), name, apivalidation.ValidateNamespaceName(name, false)...)
	}
	c.labelKeys(t.MatchLabelKeys, t.MismatchLabelKeys, t.LabelSelector, at)
	if t.TopologyKey == "" {
		c.required(at.Child("topologyKey"), "can not be empty")
	}
	c.add(metavalidation.ValidateLabelName(t.TopologyKey, at.Child("topologyKey"))...)
}

// labelKeys: keys whose values are taken from the pod's own labels. They become part
// of the selector, so there has to be one, and it may not name a matching key already.
func (c *checker) labelKeys(match, mismatch []string, selector *metav1.LabelSelector, at *field.Path) {
	for _, l := range []struct {
		name string
		keys []string
	}{{"matchLabelKeys", match}, {"mismatchLabelKeys", mismatch}} {
		at := at.Child(l.name)
		if len(l.keys) > 0 && selector == nil {
			c.forbidden(at, "must not be specified when labelSelector is not set")
			continue
		}
		for i, key := range l.keys {
			c.add(metavalidation.ValidateLabelName(key, at.Index(i))...)
		}
	}
	if selector != nil {
		named := sets.KeySet(selector.MatchLabels)
		for _, e := range selector.MatchExpressions {
			last := len(match) - 1
			for last >= 0 && match[last] != e.Key {
				last--
			}
			if last >= 0 && named.Has(e.Key) {
				c.invalid(at.Index(last), e.Key, "exists in both matchLabelKeys and labelSelector") // where the API files it
			}
			named.Insert(e.Key)
		}
	}
	for i, key := range match {
		if slices.Contains(mismatch, key) {
			c.invalid(at.Child("matchLabelKeys").Index(i), key, "exists in both matchLabelKeys and mismatchLabelKeys")
		}
	}
}

func (c *checker) spread(list *field.Path) {
	all := c.spec.TopologySpreadConstraints
	for i := range all {
		s, at := &all[i], list.Index(i)
		c.positive(at.Child("maxSkew"), s.MaxSkew)
		if s.TopologyKey == "" {
			c.required(at.Child("topologyKey"), "can not be empty")
		}
		oneOf(&c.findings, at.Child("whenUnsatisfiable"), s.WhenUnsatisfiable, v1.DoNotSchedule, v1.ScheduleAnyway)
		if slices.ContainsFunc(all[i+1:], func(o v1.TopologySpreadConstraint) bool {
			return o.TopologyKey == s.TopologyKey && o.WhenUnsatisfiable == s.WhenUnsatisfiable
		}) {
			c.add(field.Duplicate(at.Child("{topologyKey, whenUnsatisfiable}"), fmt.Sprintf("{%v, %v}", s.TopologyKey, s.WhenUnsatisfiable)))
		}
		if n := s.MinDomains; n != nil {
			c.positive(at.Child("minDomains"), *n)
			if s.WhenUnsatisfiable != v1.DoNotSchedule {
				c.invalid(at.Child("minDomains"), *n, "can only use minDomains if whenUnsatisfiable=DoNotSchedule")
			}
		}
		for _, p := range []struct {
			name   string
			policy *v1.NodeInclusionPolicy
		}{{"nodeAffinityPolicy", s.NodeAffinityPolicy}, {"nodeTaintsPolicy", s.NodeTaintsPolicy}} {
			if p.policy != nil {
				oneOf(&c.findings, at.Child(p.name), *p.policy, v1.NodeInclusionPolicyHonor, v1.NodeInclusionPolicyIgnore)
			}
		}
		c.labelKeys(s.MatchLabelKeys, nil, s.LabelSelector, at)
		c.add(metavalidation.ValidateLabelSelector(s.LabelSelector, metavalidation.LabelSelectorValidationOptions{}, at.Child("labelSelector"))...)
	}
}

func (c *checker) positive(at *field.Path, n int32) {
	if n <= 0 {
		c.invalid(at, n, "must be greater than zero")
	}
}

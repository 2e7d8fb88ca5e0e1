package differential

import (
	"fmt"
	"slices"

	"github.com/berthd/berth/agent/podspec"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"k8s.io/kubernetes/pkg/api/legacyscheme"
	podutil "k8s.io/kubernetes/pkg/api/pod"
	"k8s.io/kubernetes/pkg/apis/core"
	_ "k8s.io/kubernetes/pkg/apis/core/install" // the scheme's pods
	"k8s.io/kubernetes/pkg/apis/core/validation"
)

// difference is one thing that Berth and upstream do not say alike.
type difference struct {
	// side is who says it: "ours" or "upstream"; "defaults" for a field that is defaulted otherwise.
	side string
	// kind is the type of the error.
	kind string
	// path is the field.
	path string
	// detail is what was said.
	detail string
}

// signature is what differences of the same cause have alike.
func (d difference) signature() string { return d.side + " " + d.kind + " " + general(d.path) }

func (d difference) String() string {
	return fmt.Sprintf("%s %s %s: %s", d.side, d.kind, d.path, d.detail)
}

// internal is p, after defaults, as upstream's validation takes it.
func internal(p *v1.Pod) (*core.Pod, error) {
	p = p.DeepCopy()
	legacyscheme.Scheme.Default(p)
	in := &core.Pod{}
	return in, legacyscheme.Scheme.Convert(p, in, nil)
}

// upstreamCreate is what the API server finds wrong with a new pod.
func upstreamCreate(p *v1.Pod) field.ErrorList {
	in, err := internal(p)
	if err != nil {
		return field.ErrorList{field.InternalError(nil, err)}
	}
	options := podutil.GetValidationOptionsFromPodSpecAndMeta(&in.Spec, nil, &in.ObjectMeta, nil)
	options.ResourceIsPod = true // as the pod's registry does
	return validation.ValidatePodCreate(in, options)
}

func compareDefaults(p *v1.Pod) []difference {
	theirs, ours := p.DeepCopy(), p.DeepCopy()
	legacyscheme.Scheme.Default(theirs)
	podspec.Default(ours)
	a, b := asJSON(theirs), asJSON(ours)
	if a == b {
		return nil
	}
	var want, got any
	fromJSON(a, &want)
	fromJSON(b, &got)
	return diffJSON(want, got, "")
}

func compareCreate(p *v1.Pod) []difference {
	theirs := upstreamCreate(p)
	ours := p.DeepCopy()
	podspec.Default(ours)
	return diffErrors(theirs, podspec.Validate(ours))
}

// diffErrors compares the sets of types and fields.
func diffErrors(theirs, ours field.ErrorList) []difference {
	var all []difference
	missing := func(side string, these, those field.ErrorList) {
		seen := map[string]bool{}
		for _, e := range these {
			same := func(o *field.Error) bool { return o.Type == e.Type && o.Field == e.Field }
			key := string(e.Type) + " " + e.Field
			if !slices.ContainsFunc(those, same) && !seen[key] {
				seen[key] = true
				all = append(all, difference{side, string(e.Type), e.Field, clip(e.ErrorBody())})
			}
		}
	}
	missing("upstream", theirs, ours)
	missing("ours", ours, theirs)
	return all
}

func clip(s string) string {
	if len(s) > 300 {
		return s[:300] + "..."
	}
	return s
}

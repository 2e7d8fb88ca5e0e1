package podspec

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/cockroachdb/datadriven"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	"sigs.k8s.io/yaml"
)

// read decodes a pod of which a case gives what it is about: the rest is the
// smallest pod there is.
func read(t *testing.T, d *datadriven.TestData, text string) *v1.Pod {
	t.Helper()
	p := &v1.Pod{}
	if err := yaml.UnmarshalStrict([]byte(text), p); err != nil {
		d.Fatalf(t, "%v", err)
	}
	if p.Name == "" {
		p.Name = "p"
	}
	p.Namespace, p.UID = "default", "1"
	if p.Spec.Containers == nil {
		p.Spec.Containers = []v1.Container{{Name: "c"}}
	}
	for i := range p.Spec.Containers {
		if p.Spec.Containers[i].Image == "" {
			p.Spec.Containers[i].Image = "i"
		}
	}
	Default(p)
	return p
}

// told is what was found, one line for each path and type, without the words.
func told(errs field.ErrorList) string {
	if len(errs) == 0 {
		return "ok\n"
	}
	var lines []string
	for _, e := range errs {
		lines = append(lines, fmt.Sprintf("%s %s\n", strings.TrimPrefix(string(e.Type), "FieldValue"), e.Field))
	}
	slices.Sort(lines)
	return strings.Join(slices.Compact(lines), "")
}

// The answers in testdata are upstream's. Rewriting them (-rewrite) writes what this
// package says, which test/differential then holds against upstream's again.
func TestRefused(t *testing.T) {
	datadriven.Walk(t, "testdata/refused", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			p := read(t, d, d.Input)
			before := p.DeepCopy()
			errs := Validate(p)
			checkWords(t, d, errs)
			unchanged(t, d, before, p)
			return told(errs)
		})
	})
}

// A case of a change gives the pod before and after it.
func TestChanged(t *testing.T) {
	datadriven.Walk(t, "testdata/changed", func(t *testing.T, path string) {
		datadriven.RunTest(t, path, func(t *testing.T, d *datadriven.TestData) string {
			before, after, ok := strings.Cut(d.Input, "---\n")
			if !ok {
				d.Fatalf(t, "a case has two pods")
			}
			old, new := read(t, d, before), read(t, d, after)
			validate := map[string]func(new, old *v1.Pod) field.ErrorList{
				"ephemeral": ValidateEphemeralContainersUpdate, "resize": ValidateResize,
			}[d.Cmd]
			if errs := Validate(old); d.Cmd == "resize" && len(errs) > 0 {
				d.Fatalf(t, "the old pod is refused: %v", errs)
			}
			keep := new.DeepCopy()
			errs := validate(new, old)
			checkWords(t, d, errs)
			unchanged(t, d, keep, new)
			return told(errs)
		})
	})
}

func unchanged(t *testing.T, d *datadriven.TestData, before, after *v1.Pod) {
	t.Helper()
	if a, b := before.String(), after.String(); a != b {
		d.Fatalf(t, "validation changed the pod:\n%s\n%s", a, b)
	}
}

// checkWords: what is wrong is said, unless the type says it all.
func checkWords(t *testing.T, d *datadriven.TestData, errs field.ErrorList) {
	t.Helper()
	for _, e := range errs {
		if e.Detail == "" && e.Type != field.ErrorTypeRequired && e.Type != field.ErrorTypeDuplicate && e.Type != field.ErrorTypeNotFound {
			d.Fatalf(t, "no words for %s %s", e.Type, e.Field)
		}
	}
}

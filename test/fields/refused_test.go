package fields

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/berthd/berth/agent/source"
	"github.com/berthd/berth/test/support"
)

// some is a value of type t, as JSON has it.
func some(t reflect.Type) any {
	switch t {
	case reflect.TypeFor[resource.Quantity]():
		return "1"
	case reflect.TypeFor[intstr.IntOrString]():
		return 1
	case reflect.TypeFor[metav1.Time]():
		return "2026-01-01T00:00:00Z"
	}
	switch t.Kind() {
	case reflect.Bool:
		return true
	case reflect.String:
		return "x"
	case reflect.Slice:
		return []any{some(t.Elem())}
	case reflect.Map:
		return map[string]any{"a": some(t.Elem())}
	case reflect.Struct:
		return map[string]any{}
	}
	return 1
}

// with puts a value at path below spec, making what stands between.
func with(spec map[string]any, path string, value any) {
	name, rest, more := strings.Cut(path, ".")
	list := strings.HasSuffix(name, "[]")
	name = strings.TrimSuffix(name, "[]")
	if !more && !list {
		spec[name] = value
		return
	}
	if list {
		elements, _ := spec[name].([]any)
		if len(elements) == 0 {
			elements = []any{map[string]any{}}
			spec[name] = elements
		}
		if more {
			with(elements[0].(map[string]any), rest, value)
		}
		return
	}
	inner, _ := spec[name].(map[string]any)
	if inner == nil {
		inner = map[string]any{}
		spec[name] = inner
	}
	with(inner, rest, value)
}

// TestRefusedLeavesAreRefused gives every leaf that the table calls refused a
// value, and sees that the sentence of the table comes back.
func TestRefusedLeavesAreRefused(t *testing.T) {
	refused, n := refusals(), 0
	for _, l := range support.Leaves() {
		why, ok := refused[l.Path]
		if !ok {
			continue
		}
		n++
		main := map[string]any{"name": "c", "image": "i"}
		spec := map[string]any{"containers": []any{main}}
		with(spec, l.Path, some(l.Type))
		body, err := json.Marshal(map[string]any{"apiVersion": "v1", "kind": "Pod", "metadata": map[string]any{"name": "p"}, "spec": spec})
		if err != nil {
			t.Fatal(err)
		}
		_, problems, err := source.Check("p.json", strings.NewReader(string(body)))
		if err != nil {
			t.Fatal(err)
		}
		var all []string
		for _, p := range problems {
			all = append(all, p.Message)
		}
		if text := strings.Join(all, "\n"); !strings.Contains(text, why) {
			t.Errorf("%s: it is not refused by %q, but:\n%s", l.Path, why, text)
		}
	}
	if n < 100 {
		t.Errorf("only %d leaves are refused", n)
	}
}

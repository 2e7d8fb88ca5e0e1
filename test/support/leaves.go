// Package support knows every leaf field of a pod's spec and what this project
// does with it: each has an integration test that sees its effect, or a refusal,
// or waits for a cluster. docs/support.md is generated from it.
package support

import (
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Leaf is one field of v1.PodSpec that holds a value of its own.
type Leaf struct {
	// Path is the way to it in JSON names; "[]" stands for each element of a list:
	// containers[].env[].name.
	Path string
	// Owner is the struct type that declares it, Field its JSON name there.
	Owner reflect.Type
	Field string
	// Type is the leaf's own type, without its pointer.
	Type reflect.Type
}

// opaque types are leaves although they are structs.
var opaque = map[reflect.Type]bool{
	reflect.TypeFor[resource.Quantity]():  true,
	reflect.TypeFor[intstr.IntOrString](): true,
	reflect.TypeFor[metav1.Time]():        true,
}

// Leaves lists every leaf of v1.PodSpec in the order of declaration.
func Leaves() []Leaf {
	var all []Leaf
	walk(reflect.TypeFor[v1.PodSpec](), "", &all)
	return all
}

func walk(t reflect.Type, prefix string, all *[]Leaf) {
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		if strings.Contains(options, "inline") || name == "" && f.Anonymous {
			walk(f.Type, prefix, all)
			continue
		}
		path, inner := prefix+name, f.Type
		if inner.Kind() == reflect.Pointer {
			inner = inner.Elem()
		}
		if inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct {
			path, inner = path+"[]", inner.Elem()
		}
		if inner.Kind() == reflect.Struct && !opaque[inner] {
			before := len(*all)
			walk(inner, path+".", all)
			if len(*all) > before {
				continue
			}
		}
		*all = append(*all, Leaf{Path: path, Owner: t, Field: name, Type: inner})
	}
}

// Set lists the leaves that a pod's spec, decoded from YAML or JSON into plain
// maps, gives a value to, an empty or false one included.
func Set(spec map[string]any) []string {
	known := map[string]bool{}
	for _, l := range Leaves() {
		known[l.Path] = true
	}
	found := map[string]bool{}
	var visit func(v any, path string)
	visit = func(v any, path string) {
		if known[path] {
			found[path] = true
			return
		}
		switch v := v.(type) {
		case map[string]any:
			for name, inner := range v {
				at := name
				if path != "" {
					at = path + "." + name
				}
				if list, ok := inner.([]any); ok && !known[at] {
					for _, element := range list {
						visit(element, at+"[]")
					}
					continue
				}
				visit(inner, at)
			}
		}
	}
	visit(spec, "")
	list := make([]string, 0, len(found))
	for path := range found {
		list = append(list, path)
	}
	slices.Sort(list)
	return list
}

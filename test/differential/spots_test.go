package differential

import (
	"encoding/json"
	"fmt"
	"reflect"
	"strings"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// spot is a value inside a pod that can be changed in place.
type spot struct {
	path string
	v    reflect.Value
}

// metaFields are the fields of a pod's metadata that are changed.
var metaFields = map[string]bool{"name": true, "generateName": true, "namespace": true, "labels": true, "annotations": true, "finalizers": true, "ownerReferences": true, "uid": true, "generation": true, "deletionGracePeriodSeconds": true}

// spots lists everything of p that can be changed, outside in.
func spots(p *v1.Pod) []spot {
	var all []spot
	collect(reflect.ValueOf(&p.ObjectMeta).Elem(), "metadata", &all)
	collect(reflect.ValueOf(&p.Spec).Elem(), "spec", &all)
	return all
}

func collect(v reflect.Value, path string, all *[]spot) {
	if v.Type() != reflect.TypeFor[v1.PodSpec]() && v.Type() != reflect.TypeFor[metav1.ObjectMeta]() {
		*all = append(*all, spot{path, v})
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct {
			collectFields(v.Elem(), path, all)
		}
	case reflect.Struct:
		collectFields(v, path, all)
	case reflect.Slice:
		for i := range v.Len() {
			collect(v.Index(i), fmt.Sprintf("%s[%d]", path, i), all)
		}
	}
}

func collectFields(v reflect.Value, path string, all *[]spot) {
	if reflect.PointerTo(v.Type()).Implements(unmarshaler) {
		return
	}
	for i := range v.NumField() {
		f := v.Type().Field(i)
		name, inline := jsonName(f)
		switch {
		case name == "-":
		case path == "metadata" && !metaFields[name]:
		case inline:
			collectFields(v.Field(i), path, all)
		default:
			collect(v.Field(i), path+"."+name, all)
		}
	}
}

func jsonName(f reflect.StructField) (name string, inline bool) {
	name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
	if !f.IsExported() {
		return "-", false
	}
	return name, name == "" || strings.Contains(options, "inline")
}

// asJSON is p for comparing and copying.
func asJSON(p any) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err) // an API type always becomes JSON
	}
	return string(b)
}

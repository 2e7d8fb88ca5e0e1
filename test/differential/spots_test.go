package differential

import (
	"encoding/json"
	"reflect"
	"strconv"
	"strings"
	"sync"

	v1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// spot is a value inside a pod that can be changed in place.
type spot struct {
	path string
	// kind is path without its indexes.
	kind string
	v    reflect.Value
}

// metaFields are the fields of a pod's metadata that are changed.
var metaFields = map[string]bool{"name": true, "generateName": true, "namespace": true, "labels": true, "annotations": true, "finalizers": true, "ownerReferences": true, "uid": true, "generation": true, "deletionGracePeriodSeconds": true}

// spots lists everything of p that can be changed, outside in.
func spots(p *v1.Pod) []spot {
	c := collector{}
	c.collect(reflect.ValueOf(&p.ObjectMeta).Elem(), "metadata", "metadata")
	c.collect(reflect.ValueOf(&p.Spec).Elem(), "spec", "spec")
	return c.all
}

type collector struct{ all []spot }

func (c *collector) collect(v reflect.Value, path, kind string) {
	if v.Type() != reflect.TypeFor[v1.PodSpec]() && v.Type() != reflect.TypeFor[metav1.ObjectMeta]() {
		c.all = append(c.all, spot{path, kind, v})
	}
	switch v.Kind() {
	case reflect.Pointer:
		if !v.IsNil() && v.Elem().Kind() == reflect.Struct {
			c.fields(v.Elem(), path, kind)
		}
	case reflect.Struct:
		c.fields(v, path, kind)
	case reflect.Slice:
		for i := range v.Len() {
			c.collect(v.Index(i), path+"["+strconv.Itoa(i)+"]", kind+"[]")
		}
	}
}

func (c *collector) fields(v reflect.Value, path, kind string) {
	if reflect.PointerTo(v.Type()).Implements(unmarshaler) {
		return
	}
	for i, f := range fieldsOf(v.Type()) {
		switch {
		case f.name == "-" || path == "metadata" && !metaFields[f.name]:
		case f.inline:
			c.fields(v.Field(i), path, kind)
		default:
			c.collect(v.Field(i), path+"."+f.name, kind+"."+f.name)
		}
	}
}

type named struct {
	name   string
	inline bool
}

var known sync.Map // reflect.Type → []named

func fieldsOf(t reflect.Type) []named {
	if all, ok := known.Load(t); ok {
		return all.([]named)
	}
	var all []named
	for i := range t.NumField() {
		name, inline := jsonName(t.Field(i))
		all = append(all, named{name, inline})
	}
	known.Store(t, all)
	return all
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

package differential

import (
	"encoding/json"
	"reflect"
	"slices"
	"strings"
)

// leaves lists the JSON paths of everything in t that holds no fields of its
// own; "[]" stands for any element of a list, "[*]" for any value of a map.
func leaves(t reflect.Type) []string {
	seen := map[string]bool{}
	addLeaves(t, "", seen)
	var all []string
	for path := range seen {
		all = append(all, path)
	}
	slices.Sort(all)
	return all
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

func addLeaves(t reflect.Type, path string, seen map[string]bool) {
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	switch {
	case reflect.PointerTo(t).Implements(unmarshaler):
		seen[path] = true
	case t.Kind() == reflect.Struct:
		fields := 0
		for _, f := range reflect.VisibleFields(t) {
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if !f.IsExported() || len(f.Index) > 1 || name == "-" {
				continue
			}
			fields++
			at := strings.TrimPrefix(path+"."+name, ".")
			if name == "" || strings.Contains(options, "inline") {
				at = path
			}
			addLeaves(f.Type, at, seen)
		}
		if fields == 0 {
			seen[path] = true
		}
	case t.Kind() == reflect.Slice && t.Elem().Kind() != reflect.Uint8:
		addLeaves(t.Elem(), path+"[]", seen)
	case t.Kind() == reflect.Map:
		addLeaves(t.Elem(), path+"[*]", seen)
	default:
		seen[path] = true
	}
}

package differential

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strings"
)

func fromJSON(s string, to any) {
	if err := json.Unmarshal([]byte(s), to); err != nil {
		panic(err) // it was written just before
	}
}

// diffJSON lists where two trees differ.
func diffJSON(want, got any, path string) []difference {
	switch w := want.(type) {
	case map[string]any:
		g, ok := got.(map[string]any)
		if !ok {
			break
		}
		keys := maps.Clone(w)
		maps.Copy(keys, g)
		var all []difference
		for _, k := range slices.Sorted(maps.Keys(keys)) {
			all = append(all, diffJSON(w[k], g[k], strings.TrimPrefix(path+"."+k, "."))...)
		}
		return all
	case []any:
		g, ok := got.([]any)
		if !ok || len(g) != len(w) {
			break
		}
		var all []difference
		for i := range w {
			all = append(all, diffJSON(w[i], g[i], fmt.Sprintf("%s[%d]", path, i))...)
		}
		return all
	}
	if reflect.DeepEqual(want, got) {
		return nil
	}
	return []difference{{"defaults", "value", path, fmt.Sprintf("upstream has %v, ours has %v", want, got)}}
}

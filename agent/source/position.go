package source

import (
	"strconv"
	"strings"
)

// lineOf returns the line of the field that path names below root, or of the
// nearest thing around it that is there.
func lineOf(root *node, path string) int {
	at, line := root, root.line
	for _, step := range steps(path) {
		next := at.get(step)
		if next == nil && at.shape == list {
			if i, err := strconv.Atoi(step); err == nil && i >= 0 && i < len(at.items) {
				next = at.items[i]
			}
		}
		if next == nil {
			return line
		}
		line = next.line
		for i := range at.fields { // the line of the field's name, not of its value
			if at.fields[i].value == next {
				line = at.fields[i].line
			}
		}
		at = next
	}
	return line
}

// steps cuts "spec.containers[0].resources.limits[cpu]" into its names and keys.
func steps(path string) []string {
	var out []string
	for path != "" {
		if path[0] == '[' {
			end := strings.IndexByte(path, ']')
			if end < 0 {
				return append(out, path[1:])
			}
			out = append(out, path[1:end])
			path = strings.TrimPrefix(path[end+1:], ".")
			continue
		}
		end := strings.IndexAny(path, ".[")
		if end < 0 {
			return append(out, path)
		}
		out = append(out, path[:end])
		path = strings.TrimPrefix(path[end:], ".")
	}
	return out
}

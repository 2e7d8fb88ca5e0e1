package config

import (
	"fmt"
	"slices"
	"strings"
)

// Problem is something wrong with the configuration.
type Problem struct {
	File string // empty: a flag or a default
	Line int    // from 1; 0 if no line is to blame
	// Field is the path of the field, or the flag with its dashes.
	Field   string
	Message string
}

// String renders p on one line: `config.yaml:7: manifests.urls: unknown field ...`.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d", p.Line)
		}
		b.WriteString(": ")
	}
	if p.Field != "" {
		b.WriteString(p.Field + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Problems are all that is wrong with a configuration, by line.
type Problems []Problem

// Error tells one problem a line.
func (ps Problems) Error() string {
	all := make([]string, len(ps))
	for i, p := range ps {
		all[i] = p.String()
	}
	return strings.Join(all, "\n")
}

func sorted(ps []Problem) Problems {
	out := slices.Clone(ps)
	slices.SortStableFunc(out, func(a, b Problem) int { return a.Line - b.Line })
	return out
}

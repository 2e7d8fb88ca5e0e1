package differential

import (
	"os"
	"path"
	"reflect"
	"strings"
	"testing"
)

// rule allows a difference: "<test> <side> <error type> <field path>  # reason".
// In the path, "[]" is any index or key, and "*" anything between two dots.
type rule struct {
	line, side, kind, path string
	used                   bool
}

type rules []*rule

// readRules reads the lines of testdata/differences.txt for one test.
func readRules(t *testing.T, which string) rules {
	t.Helper()
	b, err := os.ReadFile("testdata/differences.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all rules
	for _, line := range strings.Split(string(b), "\n") {
		said, reason, _ := strings.Cut(line, "#")
		f := strings.Fields(said)
		switch {
		case len(f) == 0:
		case len(f) != 4 || len(strings.TrimSpace(reason)) < 10:
			t.Fatalf("testdata/differences.txt: expected \"<test> <side> <error type> <field path>  # reason\", got %q", line)
		case f[0] == which:
			all = append(all, &rule{line: line, side: f[1], kind: f[2], path: f[3]})
		}
	}
	return all
}

func (rs rules) allow(d difference) bool {
	for _, r := range rs {
		at := strings.NewReplacer(".", "/", "[]", "@").Replace(general(d.path))
		pattern := strings.NewReplacer(".", "/", "[]", "@").Replace(r.path)
		if fits, err := path.Match(pattern, at); err == nil && fits && r.side == d.side && r.kind == strings.ReplaceAll(d.kind, " ", "") {
			r.used = true
			return true
		}
	}
	return false
}

func (rs rules) unused(t *testing.T) {
	t.Helper()
	for _, r := range rs {
		if !r.used {
			t.Errorf("testdata/differences.txt: no pod needs the line %q: remove it", r.line)
		}
	}
}

// appendLists is list without its i-th element.
func appendLists(list reflect.Value, i int) reflect.Value {
	out := reflect.MakeSlice(list.Type(), 0, list.Len())
	out = reflect.AppendSlice(out, list.Slice(0, i))
	return reflect.AppendSlice(out, list.Slice(i+1, list.Len()))
}

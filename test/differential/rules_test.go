package differential

import (
	"fmt"
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
	all, err := parseRules(string(b), which)
	if err != nil {
		t.Fatalf("testdata/differences.txt: %v", err)
	}
	return all
}

func parseRules(text, which string) (all rules, err error) {
	for _, line := range strings.Split(text, "\n") {
		said, reason, _ := strings.Cut(line, "#")
		f := strings.Fields(said)
		switch {
		case len(f) == 0:
		case len(f) != 4 || len(strings.TrimSpace(reason)) < 10:
			return nil, fmt.Errorf("expected \"<test> <side> <error type> <field path>  # reason\", got %q", line)
		case f[0] == which:
			all = append(all, &rule{line: line, side: f[1], kind: f[2], path: f[3]})
		}
	}
	return all, nil
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

// unused lists the lines that allowed nothing.
func (rs rules) unused() (lines []string) {
	for _, r := range rs {
		if !r.used {
			lines = append(lines, r.line)
		}
	}
	return lines
}

func TestRules(t *testing.T) {
	rs, err := parseRules("# said\ncreate ours FieldValueInvalid spec.*[].x  # for a good reason\nresize ours FieldValueInvalid a  # for another reason\n", "create")
	if err != nil || len(rs) != 1 || len(rs.unused()) != 1 {
		t.Fatalf("%v %v", rs, err)
	}
	for _, d := range []difference{{"upstream", "FieldValueInvalid", "spec.y[1].x", ""}, {"ours", "FieldValueForbidden", "spec.y[1].x", ""}, {"ours", "FieldValueInvalid", "spec.y[1].x.z", ""}} {
		if rs.allow(d) {
			t.Errorf("%v is allowed", d)
		}
	}
	if !rs.allow(difference{"ours", "FieldValueInvalid", "spec.y[1].x", ""}) || len(rs.unused()) != 0 {
		t.Error("what the line says is not allowed")
	}
	if _, err := parseRules("create ours FieldValueInvalid spec.x", "create"); err == nil {
		t.Error("a line without a reason is taken")
	}
}

// appendLists is list without its i-th element.
func appendLists(list reflect.Value, i int) reflect.Value {
	out := reflect.MakeSlice(list.Type(), 0, list.Len())
	out = reflect.AppendSlice(out, list.Slice(0, i))
	return reflect.AppendSlice(out, list.Slice(i+1, list.Len()))
}

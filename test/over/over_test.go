package main

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/berthd/berth/test/fields"
	"github.com/berthd/berth/test/node"
)

// marks are the reasons by which tests say that they do not hold over containerd.
func marks(t *testing.T) map[string]bool {
	t.Helper()
	all := map[string]bool{}
	for _, dir := range []string{"testdata", "faults"} {
		cases, err := fields.Load("../fields/" + dir)
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range cases {
			if why, ok := c.Not[node.Containerd]; ok {
				all[why] = true
			}
		}
	}
	files, err := filepath.Glob("../node/*_test.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range files {
		f, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) != 3 {
				return true
			}
			name, ok := call.Fun.(*ast.Ident)
			over, is := call.Args[1].(*ast.Ident)
			if !ok || name.Name != "NotOver" || !is || over.Name != "Containerd" {
				return true
			}
			lit, ok := call.Args[2].(*ast.BasicLit)
			if !ok {
				t.Errorf("%s: the reason of a NotOver is no literal", path)
				return true
			}
			why, err := strconv.Unquote(lit.Value)
			if err != nil {
				t.Fatal(err)
			}
			all[why] = true
			return true
		})
	}
	return all
}

// TestPageTellsEveryMark: what is said not to hold over containerd stands in the
// page, and what stands there is said by a test.
func TestPageTellsEveryMark(t *testing.T) {
	body, err := os.ReadFile("../../docs/results/containerd.md")
	if err != nil {
		t.Fatal(err)
	}
	_, part, _ := strings.Cut(string(body), "## What does not hold over it")
	part, _, _ = strings.Cut(part, "\n## ")
	all := marks(t)
	if len(all) == 0 {
		t.Error("no test says that it does not hold over containerd")
	}
	for why := range all {
		if len(strings.Fields(why)) < 3 || !strings.Contains(part, "| "+why+" |") {
			t.Errorf("docs/results/containerd.md does not tell %q: make test-containerd", why)
		}
	}
	for line := range strings.Lines(part) {
		cells := strings.Split(strings.TrimSpace(line), " | ")
		if len(cells) == 2 && strings.Contains(cells[0], "Test") && !all[strings.TrimSuffix(cells[1], " |")] {
			t.Errorf("the page says %q, and no test does", line)
		}
	}
}

// TestLedger: what has passed is not run again, and a test passes when all below
// it have, whichever run that was in.
func TestLedger(t *testing.T) {
	l := ledger{Outcomes: map[string]record{}}
	if got := l.left("node"); got != "." {
		t.Errorf("of an empty ledger %q is left", got)
	}
	l.add(outcomes{"fields.TestF": {"fail", ""}, "fields.TestF/runc": {"fail", ""}, "fields.TestF/runc/a": {"pass", ""}, "fields.TestF/runc/b": {"fail", ""},
		"node.TestN": {"fail", ""}, "node.TestN/x": {"fail", ""}, "node.TestM": {"pass", ""}}, "one")
	if f, n := l.left("fields"), l.left("node"); f != "^(TestF)$/^(runc)$/^(b)$" || n != "^(TestN)$" {
		t.Errorf("left: %q, %q", f, n)
	}
	l.add(outcomes{"fields.TestF/runc/b": {"pass", ""}, "node.TestN": {"pass", ""}, "node.TestN/x": {"pass", ""}}, "two")
	if f, n := l.left("fields"), l.left("node"); f != "" || n != "" || len(l.outcomes().with("fail")) > 0 || len(l.Commits) != 2 {
		t.Errorf("left: %q, %q, %v", f, n, l)
	}
}

// TestTake: what go test says becomes outcomes; a failing test's parent is not counted.
func TestTake(t *testing.T) {
	s, said := outcomes{}, map[string]*strings.Builder{}
	for _, e := range []event{
		{"output", "a/node", "TestA/x", "    a_test.go:3: not over containerd: it has no monitor\n"},
		{"skip", "a/node", "TestA/x", ""}, {"pass", "a/node", "TestA/y", ""}, {"pass", "a/node", "TestA", ""},
		{"output", "a/fields", "TestB", "    b.go:9: needs a thing\n"}, {"skip", "a/fields", "TestB", ""},
	} {
		s.take(e, said)
	}
	not, lacking := s.exempt(node.Containerd)
	if len(not) != 1 || not[0] != [2]string{"node.TestA/x", "it has no monitor"} || len(lacking) != 1 || lacking[0][1] != "needs a thing" {
		t.Errorf("%v, %v", not, lacking)
	}
	if n := s.leaves("node", "pass"); n != 1 {
		t.Errorf("%d passed", n)
	}
	o := options{runtime: node.Containerd, parallel: 2, commit: "abc"}
	if page := s.markdown(o, 0); !strings.Contains(page, "| node.TestA/x | it has no monitor |") || !strings.Contains(page, "abc") {
		t.Error(page)
	}
}

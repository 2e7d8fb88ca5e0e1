package fields

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// reasonLine is one line of reasons.txt.
type reasonLine struct {
	number            int
	kind, words, test string
}

const gap = "…"

// reasonKinds are the kinds of words, with the command of a script that asserts each; any may, where none is named.
var reasonKinds = map[string]string{
	"waiting": "waiting", "terminated": "terminated", "condition": "condition", "event": "event", "phase": "phase", "status": "status", "rule": "",
}

func readReasons(t *testing.T) []reasonLine {
	body, err := os.ReadFile("reasons.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []reasonLine
	for i, line := range strings.Split(string(body), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		f := strings.SplitN(line, " | ", 3)
		if len(f) != 3 || f[1] == "" || f[2] == "" {
			t.Errorf("reasons.txt:%d: want KIND | WORDS | TEST: %q", i+1, line)
			continue
		}
		if _, ok := reasonKinds[f[0]]; !ok {
			t.Errorf("reasons.txt:%d: no kind %q", i+1, f[0])
		}
		all = append(all, reasonLine{i + 1, f[0], f[1], f[2]})
	}
	return all
}

// TestReasonsAreProduced sees that each line of reasons.txt names a test that is
// there and asserts its words, or says why a node without a cluster cannot say them.
func TestReasonsAreProduced(t *testing.T) {
	cases, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	packages := map[string]*goTests{}
	produced := 0
	for _, l := range readReasons(t) {
		if why, never := strings.CutPrefix(l.test, "-"); never {
			if len(strings.Fields(why)) < 3 {
				t.Errorf("reasons.txt:%d: say why %q cannot occur", l.number, l.words)
			}
			continue
		}
		if produced++; strings.Contains(l.test, ".go:") {
			err = inGoTest(l, packages)
		} else {
			err = l.inCase(cases)
		}
		if err != nil {
			t.Errorf("reasons.txt:%d: %s %q: %v", l.number, l.kind, l.words, err)
		}
	}
	t.Logf("%d words are produced", produced)
}

var escape = regexp.MustCompile(`\\(.)`)

// inCase looks for a step of the named case that asserts the words.
func (l reasonLine) inCase(cases []Case) error {
	i := slices.IndexFunc(cases, func(c Case) bool { return c.Name == l.test })
	if i < 0 {
		return fmt.Errorf("testdata has no case %s", l.test)
	}
	for _, s := range cases[i].Steps {
		if verb := reasonKinds[l.kind]; verb != "" && s.Verb != verb {
			continue
		}
		text := s.Verb + " " + s.Args + " -> " + s.Want
		if l.isOf(s) && (inOrder(text, l.words) || inOrder(escape.ReplaceAllString(text, "$1"), l.words)) {
			return nil
		}
	}
	return fmt.Errorf("no step of %s asserts it", l.test)
}

// isOf says that the step is about the line's own reason and not one that begins or ends like it.
func (l reasonLine) isOf(s Step) bool {
	first := strings.TrimSpace(strings.SplitN(l.words, gap, 2)[0])
	switch l.kind {
	case "waiting", "terminated":
		_, args, _ := strings.Cut(s.Args, " ")
		return args == first || strings.HasPrefix(first, args+" ")
	case "condition", "phase":
		return s.Args == first
	case "event":
		return strings.HasPrefix(s.Args+" ", first+" ")
	}
	return true
}

func inOrder(text, words string) bool {
	for part := range strings.SplitSeq(words, gap) {
		_, after, ok := strings.Cut(text, strings.TrimSpace(part))
		if !ok {
			return false
		}
		text = after
	}
	return true
}

// goTests are the functions of a package, tests and others.
type goTests struct {
	fset  *token.FileSet
	funcs map[string]*ast.FuncDecl
}

func parseTests(dir string) (*goTests, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		return nil, err
	}
	g := &goTests{fset: token.NewFileSet(), funcs: map[string]*ast.FuncDecl{}}
	for _, path := range files {
		f, err := parser.ParseFile(g.fset, path, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				g.funcs[fn.Name.Name] = fn
			}
		}
	}
	return g, nil
}

// strings are all that the function and what it calls in its package say.
func (g *goTests) strings(name string, seen map[string]bool, to *bytes.Buffer) {
	fn, ok := g.funcs[name]
	if !ok || seen[name] {
		return
	}
	seen[name] = true
	var called []string
	ast.Inspect(fn, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.BasicLit:
			if text, err := strconv.Unquote(n.Value); n.Kind == token.STRING && err == nil {
				fmt.Fprintln(to, text)
			}
		case *ast.Ident:
			called = append(called, n.Name)
		}
		return true
	})
	for _, other := range called {
		g.strings(other, seen, to)
	}
}

// begun says that some test of the package calls name.
func (g *goTests) begun(name string) bool {
	for test := range g.funcs {
		if seen := map[string]bool{}; strings.HasPrefix(test, "Test") {
			if g.strings(test, seen, &bytes.Buffer{}); seen[name] {
				return true
			}
		}
	}
	return false
}

func inGoTest(l reasonLine, packages map[string]*goTests) error {
	file, name, _ := strings.Cut(l.test, ":")
	dir := filepath.Dir(filepath.Join("..", file))
	g := packages[dir]
	if g == nil {
		var err error
		if g, err = parseTests(dir); err != nil {
			return err
		}
		packages[dir] = g
	}
	fn, ok := g.funcs[name]
	if !ok || filepath.Base(g.fset.Position(fn.Pos()).Filename) != filepath.Base(file) {
		return fmt.Errorf("%s has no function %s", file, name)
	}
	if !g.begun(name) {
		return fmt.Errorf("no test calls %s", name)
	}
	var said bytes.Buffer
	g.strings(name, map[string]bool{}, &said)
	if !inOrder(said.String(), l.words) {
		return fmt.Errorf("%s does not assert it", l.test)
	}
	return nil
}

// TestReasonsAreComplete sees that reasons.txt knows every reason that agent/pod has.
func TestReasonsAreComplete(t *testing.T) {
	lines := readReasons(t)
	g := token.NewFileSet()
	for _, file := range []string{"reason.go", "resize.go"} {
		f, err := parser.ParseFile(g, filepath.Join("../../agent/pod", file), nil, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(n ast.Node) bool {
			spec, ok := n.(*ast.ValueSpec)
			if !ok {
				return true
			}
			if kind, ok := spec.Type.(*ast.Ident); !ok || kind.Name != "Reason" {
				return true
			}
			for _, v := range spec.Values {
				lit, ok := v.(*ast.BasicLit)
				if !ok {
					continue
				}
				word, err := strconv.Unquote(lit.Value)
				if err != nil {
					t.Fatal(err)
				}
				if whole := regexp.MustCompile(`\b` + word + `\b`); !slices.ContainsFunc(lines, func(l reasonLine) bool { return whole.MatchString(l.words) }) {
					t.Errorf("agent/pod has the reason %s, which reasons.txt does not have", word)
				}
			}
			return true
		})
	}
}

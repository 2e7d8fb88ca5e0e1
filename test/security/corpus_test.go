package security

import (
	"bytes"
	"flag"
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

var rewrite = flag.Bool("rewrite", false, "write docs/security.md anew")

// known are the rows that must have a verdict.
const known = `CVE-2025-31133 CVE-2025-52565 CVE-2025-52881 CVE-2024-21626 CVE-2021-30465 CVE-2019-5736 RUNC-PATHS CVE-2025-24965
CVE-2026-53488 CVE-2026-53492 CVE-2026-50195 CVE-2026-53489 CVE-2026-47262 CVE-2024-8676 CVE-2024-3154 CVE-2024-5154 CVE-2022-0811
CVE-2022-23648 CVE-2021-43816 CVE-2022-31030 CVE-2022-23471 CVE-2025-64329 CVE-2020-15257 CVE-2025-47291 CVE-2023-25153 CVE-2023-25173
CVE-2021-32760 CVE-2024-40635 CVE-2024-25621 CVE-2025-0426 CVE-2024-10220 CVE-2025-1767 CVE-2021-25741 CVE-2023-2431 CVE-2020-8557
CVE-2019-11245 CVE-2025-5187 CVE-2025-4563 NODES-PROXY CVE-2023-2878 CVE-2024-3744 CVE-2025-7445 CVE-2019-11250 CVE-2026-2270 CVE-2026-76654`

// row is a line of corpus.txt or bounds.txt.
type row struct {
	line   int
	fields []string
	tests  []string
}

func readRows(t *testing.T, file string, fields, tests int) []row {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var all []row
	for i, line := range strings.Split(string(body), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		r := row{line: i + 1, fields: strings.Split(line, " | ")}
		if len(r.fields) != fields || slices.Contains(r.fields, "") {
			t.Errorf("%s:%d: want %d fields with \" | \" between them, none of them empty", file, i+1, fields)
			continue
		}
		if named := r.fields[tests]; named != "-" {
			r.tests = strings.Split(named, ", ")
		}
		all = append(all, r)
	}
	return all
}

// TestCorpus sees that every row has a verdict, and that the tests of each that is
// blocked are there.
func TestCorpus(t *testing.T) {
	seen := map[string]int{}
	for _, r := range readRows(t, "corpus.txt", 6, 4) {
		for id := range strings.SplitSeq(r.fields[0], ", ") {
			if seen[id]++; seen[id] > 1 {
				t.Errorf("corpus.txt:%d: %s has a verdict already", r.line, id)
			}
			if !regexp.MustCompile(`^(CVE-\d{4}-\d{4,6}|[A-Z]+-[A-Z]+)$`).MatchString(id) {
				t.Errorf("corpus.txt:%d: %q is no ID", r.line, id)
			}
		}
		switch verdict := r.fields[3]; {
		case verdict == "blocked" && len(r.tests) == 0:
			t.Errorf("corpus.txt:%d: which test sees that it is blocked?", r.line)
		case verdict == "not ours" && len(r.tests) > 0:
			t.Errorf("corpus.txt:%d: not ours, but there is a test", r.line)
		case verdict != "blocked" && verdict != "not ours":
			t.Errorf("corpus.txt:%d: no verdict %q", r.line, verdict)
		case len(strings.Fields(r.fields[5])) < 5:
			t.Errorf("corpus.txt:%d: say what is done, or why not, in a sentence", r.line)
		}
		exist(t, "corpus.txt", r)
	}
	for id := range strings.FieldsSeq(known) {
		if seen[id] == 0 {
			t.Errorf("%s has no verdict", id)
		}
	}
}

// exist sees that the tests that a row names are there.
func exist(t *testing.T, file string, r row) {
	t.Helper()
	for _, name := range r.tests {
		pkg, test, ok := strings.Cut(name, ".")
		test, sub, _ := strings.Cut(test, "/")
		if !ok || !strings.HasPrefix(test, "Test") && !strings.HasPrefix(test, "Fuzz") {
			t.Errorf("%s:%d: %q is not package.Test", file, r.line, name)
			continue
		}
		tests, err := testsOf(pkg)
		if err != nil {
			t.Errorf("%s:%d: %v", file, r.line, err)
		} else if words, ok := tests[test]; !ok {
			t.Errorf("%s:%d: %s has no %s", file, r.line, pkg, test)
		} else if sub != "" && !slices.Contains(words, sub) {
			t.Errorf("%s:%d: %s of %s has no subtest %q", file, r.line, test, pkg, sub)
		}
	}
}

// testsOf are the tests of a package, and the words in each.
func testsOf(pkg string) (map[string][]string, error) {
	files, err := filepath.Glob(filepath.Join("../..", pkg, "*_test.go"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("package %s has no tests: %v", pkg, err)
	}
	out := map[string][]string{}
	fset := token.NewFileSet()
	for _, file := range files {
		f, err := parser.ParseFile(fset, file, nil, parser.SkipObjectResolution)
		if err != nil {
			return nil, err
		}
		for _, d := range f.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Recv != nil {
				continue
			}
			words := []string{}
			ast.Inspect(fn, func(n ast.Node) bool {
				if lit, ok := n.(*ast.BasicLit); ok && lit.Kind == token.STRING {
					if s, err := strconv.Unquote(lit.Value); err == nil {
						words = append(words, s)
					}
				}
				return true
			})
			out[fn.Name.Name] = words
		}
	}
	return out, nil
}

// TestBounds sees that each bound has a test, or says why it has none.
func TestBounds(t *testing.T) {
	for _, r := range readRows(t, "bounds.txt", 5, 4) {
		if strings.HasPrefix(r.fields[4], "- ") {
			continue
		}
		exist(t, "bounds.txt", r)
	}
}

const page = "../../docs/security.md"

// TestPage sees that docs/security.md is as corpus and bounds say.
func TestPage(t *testing.T) {
	body, err := os.ReadFile("page.md")
	if err != nil {
		t.Fatal(err)
	}
	var corpus, bounds, exempt strings.Builder
	blocked, ours := 0, 0
	for _, r := range readRows(t, "corpus.txt", 6, 4) {
		ids := len(strings.Split(r.fields[0], ", "))
		tests := "–"
		if ours += ids; r.fields[3] == "blocked" {
			blocked += ids
			tests = "`" + strings.Join(r.tests, "`, `") + "`"
		}
		fmt.Fprintf(&corpus, "| %s | %s | %s | %s | %s | %s |\n", r.fields[0], r.fields[1], r.fields[2], r.fields[3], tests, r.fields[5])
	}
	for _, r := range readRows(t, "bounds.txt", 5, 4) {
		tests := "`" + strings.Join(r.tests, "`, `") + "`"
		if why, none := strings.CutPrefix(r.fields[4], "- "); none {
			tests = why
		}
		fmt.Fprintf(&bounds, "| %s | %s | %s | %s | %s |\n", r.fields[0], r.fields[1], r.fields[2], r.fields[3], tests)
	}
	for _, e := range readExempt(t) {
		fmt.Fprintf(&exempt, "| `%s` | %s | %s |\n", e.file, strings.Replace("`"+e.function+"`", "`*`", "all", 1), e.why)
	}
	out := strings.NewReplacer(
		"{{corpus}}", strings.TrimSpace(corpus.String()), "{{bounds}}", strings.TrimSpace(bounds.String()), "{{exempt}}", strings.TrimSpace(exempt.String()),
		"{{blocked}}", strconv.Itoa(blocked), "{{all}}", strconv.Itoa(ours),
	).Replace(string(body))
	if *rewrite {
		if err := os.WriteFile(page, []byte(out), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	have, err := os.ReadFile(page)
	if err != nil || !bytes.Equal(have, []byte(out)) {
		t.Errorf("docs/security.md is not what corpus.txt, bounds.txt and exempt.txt say (%v): go test ./test/security -run Page -rewrite", err)
	}
}

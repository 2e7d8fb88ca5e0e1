// Package imports holds the module to its import rules (docs/architecture.md):
// which package of the project may import which, and what the pure ones and the
// binary must never import.
package imports

import (
	"bytes"
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

const module = "github.com/berthd/berth/"

// rule says what a package (or a tree, ending in "/") may import of the project.
type rule struct {
	of  string
	may []string // packages, or trees ending in "/"
}

// The first rule whose "of" matches a package holds.
var rules = []rule{
	{"agent/pod", nil},
	{"agent/plan", []string{"agent/pod"}},
	{"agent/admission", []string{"agent/pod"}},
	{"agent/worker", []string{"agent/pod", "agent/plan"}},
	{"agent/dispatch", []string{"agent/pod", "agent/plan", "agent/worker"}},
	{"agent/podspec", nil},
	{"agent/source", []string{"agent/pod", "agent/podspec"}},
	{"agent/runtime", []string{"agent/pod", "cri/api"}},
	{"agent/status", []string{"agent/pod", "agent/plan"}},
	{"agent/server", []string{"agent/pod", "agent/plan"}},
	{"agent/", []string{"agent/pod"}},
	{"cri/", []string{"cri/"}},
	{"cni", []string{"cni/"}},
	{"cni/", []string{"cni/"}},
	{"csi", []string{"csi/"}},
	{"csi/", []string{"csi/"}},
	{"probes", []string{"probes/"}},
	{"probes/", []string{"probes/"}},
	{"stats", []string{"stats", "stats/"}},
	{"stats/", []string{"stats", "stats/"}},
	{"cmd/", []string{"agent/", "cri/", "cni", "cni/", "csi", "csi/", "probes", "probes/", "stats", "stats/", "cmd/"}},
	{"examples/", []string{"test/"}},
	{"test/", []string{"test/", "agent/", "cri/", "cni", "cni/", "csi", "csi/", "probes", "probes/", "stats", "stats/"}},
}

// pure packages decide; they can neither do nor look.
var pure = []string{"agent/pod", "agent/podspec", "agent/plan", "agent/admission", "agent/allocation", "cri/ocispec"}

var impure = []string{"context", "os", "log", "log/slog", "net", "net/http", "k8s.io/client-go/", "google.golang.org/grpc", "os/exec", "syscall"}

type listed struct {
	ImportPath string
	Dir        string
	Imports    []string
	Deps       []string
	GoFiles    []string
}

func list(t *testing.T, args ...string) []listed {
	t.Helper()
	cmd := exec.Command("go", append([]string{"list", "-json=ImportPath,Dir,Imports,Deps,GoFiles"}, args...)...)
	cmd.Dir = "../.."
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, stderr.String())
	}
	var all []listed
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		if err := d.Decode(&p); err == io.EOF {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all = append(all, p)
	}
}

func matches(pattern, pkg string) bool {
	if strings.HasSuffix(pattern, "/") {
		return strings.HasPrefix(pkg, pattern)
	}
	return pattern == pkg || strings.HasPrefix(pkg, pattern+"/") && !strings.Contains(pattern, "/")
}

func TestImportRules(t *testing.T) {
	for _, p := range list(t, "./...") {
		pkg := strings.TrimPrefix(p.ImportPath, module)
		r := find(pkg)
		if r == nil {
			t.Errorf("%s: no import rule covers this package: add one here and to docs/architecture.md", pkg)
			continue
		}
		for _, i := range p.Imports {
			imported, ours := strings.CutPrefix(i, module)
			if !ours || imported == "test/failpoint" || strings.HasPrefix(imported, pkg+"/") {
				continue
			}
			if !allowed(*r, imported) {
				t.Errorf("%s imports %s, which the rule for %q does not allow", pkg, imported, r.of)
			}
			if strings.HasPrefix(imported, "cmd/") && !strings.HasPrefix(pkg, "cmd/") {
				t.Errorf("%s imports %s: cmd is never imported", pkg, imported)
			}
		}
	}
}

func find(pkg string) *rule {
	for i, r := range rules {
		if matches(r.of, pkg) || r.of == pkg {
			return &rules[i]
		}
	}
	for i, r := range rules { // packages below a named one share its rule
		if strings.HasPrefix(pkg, r.of+"/") {
			return &rules[i]
		}
	}
	return nil
}

func allowed(r rule, imported string) bool {
	for _, m := range r.may {
		if matches(m, imported) {
			return true
		}
	}
	return false
}

func TestPurePackages(t *testing.T) {
	for _, name := range pure {
		for _, p := range list(t, "./"+name) {
			for _, i := range p.Imports {
				for _, bad := range impure {
					if i == bad || strings.HasSuffix(bad, "/") && strings.HasPrefix(i, bad) {
						t.Errorf("%s is pure and must not import %s", name, i)
					}
				}
			}
			for _, f := range p.GoFiles {
				readsClock(t, filepath.Join(p.Dir, f))
			}
		}
	}
}

func readsClock(t *testing.T, file string) {
	t.Helper()
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(f, func(n ast.Node) bool {
		s, ok := n.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		if x, ok := s.X.(*ast.Ident); ok && x.Name == "time" {
			switch s.Sel.Name {
			case "Now", "Since", "Until", "After", "AfterFunc", "NewTimer", "NewTicker", "Sleep", "Tick":
				t.Errorf("%s: a pure package calls time.%s", fset.Position(s.Pos()), s.Sel.Name)
			}
		}
		return true
	})
}

func TestBinaryNeverImportsTheKubelet(t *testing.T) {
	for _, p := range list(t, "./cmd/...") {
		for _, d := range p.Deps {
			if strings.HasPrefix(d, "k8s.io/kubernetes") {
				t.Errorf("%s depends on %s", p.ImportPath, d)
			}
		}
	}
}

func TestTopLevel(t *testing.T) {
	want := map[string]bool{"agent": true, "cri": true, "cni": true, "csi": true, "probes": true, "stats": true, "cmd": true, "test": true, "docs": true, "examples": true,
		"go.mod": true, "go.sum": true, "README.md": true, "LICENSE": true, "Makefile": true, ".ci": true, ".gitignore": true}
	cmd := exec.Command("git", "-c", "safe.directory=*", "ls-tree", "--name-only", "HEAD")
	cmd.Dir = "../.."
	out, err := cmd.Output()
	if err != nil {
		t.Skipf("no git checkout here (%v): the top level cannot be listed", err)
	}
	for _, name := range strings.Fields(string(out)) {
		if !want[name] {
			t.Errorf("%s does not belong at the top level", name)
		}
	}
}

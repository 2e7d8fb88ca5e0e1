package security

import (
	"bytes"
	"fmt"
	"go/ast"
	"go/parser"
	"go/printer"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// touching are the functions that reach a file by its path, following links
// (openat2, os.Root and everything that takes a descriptor are the others).
var touching = map[string][]string{
	"os": {"Chmod", "Chown", "Chtimes", "Create", "CreateTemp", "CopyFS", "DirFS", "Lchown", "Link", "Lstat", "Mkdir", "MkdirAll", "MkdirTemp", "Open", "OpenFile",
		"ReadDir", "ReadFile", "Readlink", "Remove", "RemoveAll", "Rename", "Stat", "Symlink", "Truncate", "WriteFile"},
	"unix": {"Access", "Chmod", "Chown", "Chroot", "Lchown", "Lgetxattr", "Link", "Listxattr", "Llistxattr", "Lremovexattr", "Lsetxattr", "Lstat", "Mkdir", "Mkfifo",
		"Mknod", "Mount", "Open", "Readlink", "Removexattr", "Rename", "Rmdir", "Setxattr", "Stat", "Statfs", "Symlink", "Truncate", "Unlink", "Unmount", "Utimes"},
	"syscall":  {"Mount", "Unmount", "Open", "Mkdir", "Rmdir", "Unlink"},
	"filepath": {"EvalSymlinks", "Glob", "Walk", "WalkDir"},
	"net":      {"Listen", "ListenUnix", "DialUnix"},
}

// untrusted are the words by which an expression tells that its path lies where
// containers or images decide what is there: root filesystems, volumes, logs,
// sources of mounts, unpacked layers.
var untrusted = []string{"rootfs", "hostpath", "logpath", "logdir", "volume", "upper", "target", "source", "src", "dst", "subpath", "layer", "mount", "root", "log"}

// wholly are the trees in which every path that is no constant is doubtful.
var wholly = []string{"cri/logfile/", "cri/snapshot/", "cri/container/", "cri/cdi/", "csi/", "agent/runtime/message.go", "agent/runtime/hosts.go", "agent/runtime/loglinks.go"}

// constant tells paths that are written out.
func constant(args []ast.Expr) bool {
	for _, a := range args[:min(2, len(args))] {
		if lit, ok := a.(*ast.BasicLit); ok && lit.Kind == token.STRING {
			return true
		}
	}
	return false
}

// reach is one call.
type reach struct{ file, function, call, why string }

func (r reach) key() string { return r.file + " " + r.function + " " + r.call }

// reaches finds the calls in the trees of the project that reach a path which
// comes from somewhere else than a constant.
func reaches(t *testing.T) []reach {
	t.Helper()
	var all []reach
	fset := token.NewFileSet()
	for _, tree := range []string{"cri", "csi", "agent"} {
		err := filepath.WalkDir(filepath.Join("../..", tree), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(fset, path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Body != nil {
					all = append(all, inFunction(fset, strings.TrimPrefix(filepath.ToSlash(path), "../../"), fn)...)
				}
			}
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return all
}

func inFunction(fset *token.FileSet, file string, fn *ast.FuncDecl) []reach {
	var all []reach
	made := assignments(fset, fn.Body)
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		call, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := call.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		pkg, ok := sel.X.(*ast.Ident)
		if !ok || !slices.Contains(touching[pkg.Name], sel.Sel.Name) {
			return true
		}
		doubtful := slices.ContainsFunc(wholly, func(tree string) bool { return strings.HasPrefix(file, tree) }) && !constant(call.Args)
		var args []string
		for _, a := range call.Args {
			text := source(fset, a)
			args = append(args, text)
			doubtful = doubtful || suspect(text, made)
		}
		if doubtful {
			all = append(all, reach{file: file, function: fn.Name.Name, call: pkg.Name + "." + sel.Sel.Name + "(" + strings.Join(args[:min(2, len(args))], ", ") + ")"})
		}
		return true
	})
	return all
}

// assignments are the expressions that a function's variables are made of.
func assignments(fset *token.FileSet, body *ast.BlockStmt) map[string]string {
	made := map[string]string{}
	ast.Inspect(body, func(n ast.Node) bool {
		if a, ok := n.(*ast.AssignStmt); ok && len(a.Lhs) == len(a.Rhs) {
			for i, l := range a.Lhs {
				if id, ok := l.(*ast.Ident); ok {
					made[id.Name] += " " + source(fset, a.Rhs[i])
				}
			}
		}
		return true
	})
	return made
}

// suspect says that a path is made of something untrusted, directly or by a
// variable of the function.
func suspect(text string, made map[string]string) bool {
	whole := strings.ToLower(text + " " + made[text])
	if strings.HasPrefix(text, `"`) && !strings.Contains(text, "+") {
		return false
	}
	return slices.ContainsFunc(untrusted, func(word string) bool { return strings.Contains(whole, word) })
}

func source(fset *token.FileSet, n ast.Node) string {
	var b bytes.Buffer
	printer.Fprint(&b, fset, n)
	return strings.Join(strings.Fields(b.String()), " ")
}

// readExempt reads exempt.txt: FILE FUNCTION CALL | WHY, each of which may end
// with "*".
func readExempt(t *testing.T) []reach {
	t.Helper()
	body, err := os.ReadFile("exempt.txt")
	if err != nil {
		t.Fatal(err)
	}
	var all []reach
	for i, line := range strings.Split(string(body), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		what, why, ok := strings.Cut(line, " | ")
		f := strings.SplitN(what, " ", 3)
		if !ok || len(f) != 3 || len(strings.Fields(why)) < 3 {
			t.Errorf("exempt.txt:%d: want FILE FUNCTION CALL | WHY", i+1)
			continue
		}
		all = append(all, reach{f[0], f[1], f[2], why})
	}
	return all
}

func (e reach) covers(r reach) bool {
	match := func(pattern, s string) bool {
		begin, open := strings.CutSuffix(pattern, "*")
		return open && strings.HasPrefix(s, begin) || pattern == s
	}
	return match(e.file, r.file) && match(e.function, r.function) && match(e.call, r.call)
}

// TestPaths sees that every call that reaches by its path below a root where
// containers or images decide what is there is in exempt.txt, with the reason why
// it may. Everything else there goes by descriptor: os.Root, openat2.
func TestPaths(t *testing.T) {
	exempt := readExempt(t)
	used := make([]bool, len(exempt))
	all := reaches(t)
	if len(all) < 50 {
		t.Fatalf("only %d calls were found: the search is broken", len(all))
	}
	for _, r := range all {
		i := slices.IndexFunc(exempt, func(e reach) bool { return e.covers(r) })
		if i < 0 {
			t.Errorf("%s: use os.Root or openat2 here, or say in test/security/exempt.txt why a path may be joined", r.key())
			continue
		}
		used[i] = true
	}
	for i, e := range exempt {
		if !used[i] {
			t.Errorf("exempt.txt: %s: there is no such call any more", e.key())
		}
	}
	t.Log(fmt.Sprint(len(all), " calls"))
}

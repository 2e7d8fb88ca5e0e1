// Package crash kills the agent at each of its failpoints and sees that it
// keeps its promises when it comes back.
//
// The list of failpoints is read from the source, and so is the list of
// external calls that must have one: a new call without a failpoint fails
// TestEveryExternalCallHasAFailpoint.
package crash

import (
	"fmt"
	"go/ast"
	"go/types"
	"path/filepath"
	"sort"
	"strconv"
	"strings"

	"golang.org/x/tools/go/packages"
)

const module = "github.com/berthd/berth"

// lifePackages are those whose calls make up a pod's life.
var lifePackages = []string{"./agent/checkpoint", "./agent/runtime", "./agent/userns", "./agent/cgroup", "./agent/source", "./cri/...", "./cni/...", "./csi/..."}

// external names the functions and methods that change something outside the
// process, by their full names as go/types prints them.
var external = map[string]bool{}

func init() {
	for pkg, names := range map[string]string{
		"os":                             "Rename Remove RemoveAll WriteFile Mkdir MkdirAll Create Symlink Link Truncate Chown Lchown Mkfifo",
		"(*os.Root)":                     "Rename Remove RemoveAll WriteFile Mkdir MkdirAll Create Symlink Link",
		"(*os.Process)":                  "Kill Signal",
		"golang.org/x/sys/unix":          "Mount Unmount MoveMount MountSetattr OpenTree Mkdirat Renameat Renameat2 Unlinkat Symlinkat Linkat Mknod Mknodat Mkfifo Kill PidfdSendSignal Fsync",
		"syscall":                        "Mount Unmount Kill Mkfifo",
		"(*os/exec.Cmd)":                 "Start Run Output CombinedOutput",
		"(*os.File)":                     "Sync",
		"(runtimeapi)":                   "",
		"github.com/vishvananda/netlink": "LinkAdd LinkDel LinkSetUp AddrAdd AddrDel RouteAdd RouteDel",
	} {
		for _, n := range strings.Fields(names) {
			external[pkg+"."+n] = true
		}
	}
}

// criCalls are the calls of agent/runtime that change something in the runtime.
var criCalls = map[string]bool{"RunPodSandbox": true, "StopPodSandbox": true, "RemovePodSandbox": true, "CreateContainer": true, "StartContainer": true, "StopContainer": true, "RemoveContainer": true, "PullImage": true, "ExecSync": true}

// Call is an external call in the source.
type Call struct {
	Pos  string // file:line, relative to the module
	Func string // "package.Function" that holds it
	What string
	// Covered says that the function holding it has a failpoint.
	Covered bool
}

// Point is a failpoint in the source.
type Point struct {
	Name string
	Pos  string
}

// Enumerate reads the source below root (the module's directory).
func Enumerate(root string) ([]Point, []Call, error) {
	cfg := &packages.Config{Dir: root, Mode: packages.NeedName | packages.NeedFiles | packages.NeedSyntax | packages.NeedTypes | packages.NeedTypesInfo | packages.NeedImports | packages.NeedDeps | packages.NeedExportFile}
	cfg.Mode &^= packages.NeedDeps // types of imports come from export data
	pkgs, err := packages.Load(cfg, lifePackages...)
	if err != nil {
		return nil, nil, err
	}
	abs, err := filepath.Abs(root)
	if err != nil {
		return nil, nil, err
	}
	var points []Point
	var calls []Call
	for _, p := range pkgs {
		if len(p.Errors) > 0 {
			return nil, nil, fmt.Errorf("%s: %v", p.PkgPath, p.Errors[0])
		}
		for _, f := range p.Syntax {
			for _, d := range f.Decls {
				fn, ok := d.(*ast.FuncDecl)
				if !ok || fn.Body == nil {
					continue
				}
				fp, fc := inspect(p, fn, abs)
				points, calls = append(points, fp...), append(calls, fc...)
			}
		}
	}
	sort.Slice(points, func(i, j int) bool { return points[i].Name < points[j].Name })
	return points, calls, nil
}

func inspect(p *packages.Package, fn *ast.FuncDecl, root string) ([]Point, []Call) {
	var points []Point
	var calls []Call
	name := strings.TrimPrefix(p.PkgPath, module+"/") + "." + funcName(fn)
	ast.Inspect(fn.Body, func(n ast.Node) bool {
		c, ok := n.(*ast.CallExpr)
		if !ok {
			return true
		}
		sel, ok := c.Fun.(*ast.SelectorExpr)
		if !ok {
			return true
		}
		callee, ok := p.TypesInfo.Uses[sel.Sel].(*types.Func)
		if !ok {
			return true
		}
		at := p.Fset.Position(c.Pos())
		rel, _ := filepath.Rel(root, at.Filename)
		pos := fmt.Sprintf("%s:%d", rel, at.Line)
		full := callee.FullName()
		switch {
		case full == module+"/test/failpoint.Hit":
			points = append(points, Point{Name: literal(c), Pos: pos})
		case external[full], strings.HasSuffix(p.PkgPath, "agent/runtime") && criCalls[callee.Name()]:
			calls = append(calls, Call{Pos: pos, Func: name, What: full})
		}
		return true
	})
	for i := range calls {
		calls[i].Covered = len(points) > 0
	}
	return points, calls
}

// literal is the name given to failpoint.Hit, or "" if it is not a literal.
func literal(c *ast.CallExpr) string {
	if len(c.Args) != 1 {
		return ""
	}
	l, ok := c.Args[0].(*ast.BasicLit)
	if !ok {
		return ""
	}
	s, _ := strconv.Unquote(l.Value)
	return s
}

func funcName(fn *ast.FuncDecl) string {
	if fn.Recv == nil || len(fn.Recv.List) == 0 {
		return fn.Name.Name
	}
	t := fn.Recv.List[0].Type
	if s, ok := t.(*ast.StarExpr); ok {
		t = s.X
	}
	if x, ok := t.(*ast.IndexExpr); ok {
		t = x.X
	}
	if id, ok := t.(*ast.Ident); ok {
		return id.Name + "." + fn.Name.Name
	}
	return fn.Name.Name
}

package crash

import (
	"bufio"
	"os"
	"strings"
	"testing"
)

// exempt reads testdata/exempt.txt: "package.Function<TAB>reason" a line.
func exempt(t *testing.T) map[string]string {
	t.Helper()
	f, err := os.Open("testdata/exempt.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	m := map[string]string{}
	for s := bufio.NewScanner(f); s.Scan(); {
		if strings.HasPrefix(s.Text(), "#") || s.Text() == "" {
			continue
		}
		name, reason, ok := strings.Cut(s.Text(), "\t")
		if !ok || strings.TrimSpace(reason) == "" {
			t.Errorf("exempt.txt: %q gives no reason", s.Text())
		}
		m[name] = reason
	}
	return m
}

func TestEveryExternalCallHasAFailpoint(t *testing.T) {
	points, calls, err := Enumerate("../..")
	if err != nil {
		t.Fatal(err)
	}
	names := map[string]string{}
	for _, p := range points {
		if p.Name == "" {
			t.Errorf("%s: a failpoint's name must be a string literal", p.Pos)
		}
		if other, ok := names[p.Name]; ok {
			t.Errorf("%s: failpoint %q is also at %s", p.Pos, p.Name, other)
		}
		names[p.Name] = p.Pos
	}
	exempt, used := exempt(t), map[string]bool{}
	covered := 0
	for _, c := range calls {
		entry := c.Func
		if dir := c.Func[:strings.LastIndex(c.Func, "/")+1] + strings.SplitN(c.Func[strings.LastIndex(c.Func, "/")+1:], ".", 2)[0] + ".*"; exempt[dir] != "" {
			entry = dir // the whole package
		}
		_, ok := exempt[entry]
		switch {
		case c.Covered && ok:
			t.Errorf("%s: %s is listed in exempt.txt and yet has a failpoint", c.Pos, c.Func)
		case c.Covered:
			covered++
		case ok:
			used[entry] = true
		default:
			t.Errorf("%s: %s calls %s without a failpoint.Hit (or a reason in test/crash/testdata/exempt.txt)", c.Pos, c.Func, c.What)
		}
	}
	for name := range exempt {
		if !used[name] {
			t.Errorf("exempt.txt: %s makes no external call any more", name)
		}
	}
	t.Logf("%d failpoints; %d external calls, %d of them behind failpoints, %d in %d exempt functions", len(points), len(calls), covered, len(calls)-covered, len(exempt))
}

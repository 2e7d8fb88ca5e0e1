package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"regexp"
	"slices"
	"strings"

	"github.com/berthd/berth/test/fields"
)

// outcome is what came of one test.
type outcome struct {
	action string // pass, fail or skip
	why    string // of a skip
}

// outcomes are by package and name: "node.TestLife/one_agent".
type outcomes map[string]outcome

// event is a line of go test -json.
type event struct{ Action, Package, Test, Output string }

// limits of a run.
const (
	testTime = "60m"
	maxLine  = 4 << 20
)

// tested runs the tests of a package that pattern chooses, and says what came of them.
func tested(o options, path, pattern string) (outcomes, error) {
	s := outcomes{}
	cmd := exec.Command("go", "test", "-json", "-count=1", "-timeout", testTime, "-parallel", fmt.Sprint(o.parallel), "-run", pattern, path)
	cmd.Env = append(os.Environ(), "BERTH_TEST_RUNTIME="+string(o.runtime))
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		return s, err
	}
	if err := cmd.Start(); err != nil {
		return s, err
	}
	said := map[string]*strings.Builder{}
	lines := bufio.NewScanner(out)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e event
		if json.Unmarshal(lines.Bytes(), &e) != nil {
			fmt.Println(lines.Text()) // of the build
			continue
		}
		s.take(e, said)
	}
	if err := lines.Err(); err != nil {
		return s, fmt.Errorf("read the output of %s: %w", path, err)
	}
	if err := cmd.Wait(); err != nil && !strings.HasPrefix(err.Error(), "exit status") {
		return s, err
	} else if err != nil && len(s.with("fail")) == 0 {
		return s, fmt.Errorf("go test %s: %w", path, err)
	}
	return s, nil
}

// take takes in one event; said gathers what each test prints.
func (s outcomes) take(e event, said map[string]*strings.Builder) {
	if e.Test == "" {
		return
	}
	name := e.Package[strings.LastIndex(e.Package, "/")+1:] + "." + e.Test
	switch e.Action {
	case "output":
		if said[name] == nil {
			said[name] = &strings.Builder{}
		}
		said[name].WriteString(e.Output)
		return
	case "pass", "fail", "skip":
	default:
		return
	}
	text := ""
	if b := said[name]; b != nil {
		text = b.String()
	}
	delete(said, name)
	s[name] = outcome{e.Action, because(text)}
	if e.Action == "fail" {
		fmt.Printf("--- FAIL: %s\n%s\n", name, text)
	}
}

var skipLine = regexp.MustCompile(`(?m)^\s+\w+\.go:\d+: (.*)$`)

// because is the last that a test has said, where it is skipped its reason.
func because(text string) string {
	all := skipLine.FindAllStringSubmatch(text, -1)
	if len(all) == 0 {
		return ""
	}
	return all[len(all)-1][1]
}

func (s outcomes) with(action string) []string {
	var names []string
	for name, o := range s {
		if o.action == action {
			names = append(names, name)
		}
	}
	slices.Sort(names)
	return names
}

// missing are the tests, cases and faults of which no outcome is known.
func (s outcomes) missing() ([]string, error) {
	var want []string
	for _, path := range []string{"node", "fields"} {
		out, err := exec.Command("go", "test", "-list", ".", "./test/"+path).Output()
		if err != nil {
			return nil, fmt.Errorf("list the tests of test/%s: %w", path, err)
		}
		for line := range strings.Lines(string(out)) {
			if line = strings.TrimSpace(line); strings.HasPrefix(line, "Test") {
				want = append(want, path+"."+line)
			}
		}
	}
	for dir, under := range map[string][]string{"testdata": {"TestFields/crun/case/", "TestFields/runc/case/"}, "faults": {"TestWhy/fault/"}} {
		cases, err := fields.Load("test/fields/" + dir)
		if err != nil {
			return nil, err
		}
		for _, c := range cases {
			for _, u := range under {
				want = append(want, "fields."+u+c.Name)
			}
		}
	}
	slices.Sort(want)
	known := maps.Clone(s)
	return slices.DeleteFunc(want, func(name string) bool { _, ok := known[name]; return ok }), nil
}

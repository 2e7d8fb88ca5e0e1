package plan

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// bug is one textual mutation of the package's source.
type bug struct{ name, file, from, to string }

// switchboard is the file that the mutated package has more than the real one.
const switchboard = `package plan

import "os"

var seededBug = os.Getenv("BERTH_SEEDED_BUG")

func seeded(name string) bool { return seededBug == name }
`

// TestBugs shows that the suite would notice: it builds a copy of the package
// with planner bugs, turns on one at a time, and expects golden scripts or
// properties to fail; with none turned on they must pass. A mutation that no
// longer applies, or does not compile, fails too.
func TestBugs(t *testing.T) {
	bugs := readBugs(t, "testdata/bugs.txt")
	if len(bugs) < 10 {
		t.Fatalf("only %d seeded bugs", len(bugs))
	}
	suite := buildMutant(t, bugs)
	if out, err := runSuite(t, suite, "", fewPods); err != nil {
		t.Fatalf("the suite fails without a bug: %v\n%s", err, out)
	}
	for _, b := range bugs {
		t.Run(strings.ReplaceAll(b.name, " ", "-"), func(t *testing.T) {
			out, err := runSuite(t, suite, b.name, fewPods)
			if err == nil { // some bugs need a rare coincidence
				out, err = runSuite(t, suite, b.name, manyPods)
			}
			if err == nil {
				t.Fatal("nobody noticed")
			}
			if !strings.Contains(out, "--- FAIL") && !strings.Contains(out, "panic:") {
				t.Fatalf("the suite did not run: %v\n%s", err, out)
			}
		})
	}
}

func readBugs(t *testing.T, path string) []bug {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var bugs []bug
	for part := range strings.SplitSeq(string(text), "\nbug ") {
		name, rest, _ := strings.Cut(part, "\n")
		file, rest, ok := strings.Cut(rest, "\n- ")
		if !ok {
			continue // the head of the file
		}
		from, to, ok := strings.Cut(rest, "\n+ ")
		if !ok {
			t.Fatalf("bug %q has no replacement", name)
		}
		to = strings.ReplaceAll(strings.TrimRight(to, "\n"), "BUG", fmt.Sprintf("seeded(%q)", name))
		bugs = append(bugs, bug{name, strings.TrimPrefix(file, "file "), from, to})
	}
	return bugs
}

// buildMutant compiles the package's tests with all bugs in place, none turned on.
func buildMutant(t *testing.T, bugs []bug) string {
	t.Helper()
	dir := t.TempDir()
	files := map[string]string{"seeded.go": switchboard}
	for _, b := range bugs {
		text, ok := files[b.file]
		if !ok {
			source, err := os.ReadFile(b.file)
			if err != nil {
				t.Fatal(err)
			}
			text = string(source)
		}
		if n := strings.Count(text, b.from); n != 1 {
			t.Fatalf("bug %q no longer applies: the text to replace occurs %d times in %s: %q", b.name, n, b.file, b.from)
		}
		files[b.file] = strings.Replace(text, b.from, b.to, 1)
	}
	replace := map[string]string{}
	for name, text := range files {
		source, err := filepath.Abs(name)
		if err != nil {
			t.Fatal(err)
		}
		replace[source] = filepath.Join(dir, name)
		if err := os.WriteFile(replace[source], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	overlay, err := json.Marshal(map[string]any{"Replace": replace})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "overlay.json"), overlay, 0o600); err != nil {
		t.Fatal(err)
	}
	suite := filepath.Join(dir, "suite.test")
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	out, err := exec.CommandContext(ctx, "go", "test", "-c", "-overlay", filepath.Join(dir, "overlay.json"), "-o", suite, ".").CombinedOutput()
	if err != nil {
		t.Fatalf("the seeded bugs do not compile: %v\n%s", err, out)
	}
	return suite
}

// How many random pods the properties are tried on.
const (
	fewPods  = 200
	manyPods = 3000
)

// runSuite runs the mutant's golden scripts and properties with one bug turned on.
func runSuite(t *testing.T, suite, bug string, pods int) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, suite, "-test.failfast", "-test.timeout=4m", "-test.run=TestGolden|TestLyingRuntime|TestDuplicate|TestProperty",
		"-rapid.nofailfile", fmt.Sprintf("-rapid.checks=%d", pods), "-rapid.shrinktime=0s")
	cmd.Env = append(os.Environ(), "BERTH_SEEDED_BUG="+bug)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

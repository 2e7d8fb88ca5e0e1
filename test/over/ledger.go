package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

// ledger keeps outcomes from one run to the next, so that a long run that was cut
// off, or that failed for want of time, goes on where it was.
type ledger struct {
	Commits  []string          // that the outcomes are of, in their order
	Outcomes map[string]record // by name
	Took     time.Duration     // all runs
}

type record struct{ Action, Why string }

func readLedger(path string) (ledger, error) {
	l := ledger{Outcomes: map[string]record{}}
	if path == "" {
		return l, nil
	}
	body, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return l, nil
	} else if err != nil {
		return l, err
	}
	return l, json.Unmarshal(body, &l)
}

func (l *ledger) write(path string) error {
	if path == "" {
		return nil
	}
	body, err := json.MarshalIndent(l, "", " ")
	if err != nil {
		return err
	}
	return os.WriteFile(path, append(body, '\n'), 0o644)
}

// add takes in newer outcomes.
func (l *ledger) add(s outcomes, commit string) {
	if !slices.Contains(l.Commits, commit) {
		l.Commits = append(l.Commits, commit)
	}
	for name, o := range s {
		l.Outcomes[name] = record{o.action, o.why}
	}
	// A test passes if all below it do, whichever run they passed in.
	for name, r := range l.Outcomes {
		if r.Action == "fail" && l.below(name) > 0 && !l.failedBelow(name) {
			l.Outcomes[name] = record{"pass", ""}
		}
	}
}

func (l *ledger) below(name string) (n int) {
	for other := range l.Outcomes {
		if strings.HasPrefix(other, name+"/") {
			n++
		}
	}
	return n
}

func (l *ledger) failedBelow(name string) bool {
	for other, r := range l.Outcomes {
		if strings.HasPrefix(other, name+"/") && r.Action == "fail" && l.below(other) == 0 {
			return true
		}
	}
	return false
}

func (l *ledger) outcomes() outcomes {
	s := outcomes{}
	for name, r := range l.Outcomes {
		s[name] = outcome{r.Action, r.Why}
	}
	return s
}

// left is the pattern of what is still to be run of a package: all of it if
// nothing is known, "" if nothing is left.
func (l *ledger) left(pkg string) string {
	known := false
	levels := []map[string]bool{}
	for name, r := range l.Outcomes {
		test, ok := strings.CutPrefix(name, pkg+".")
		if !ok {
			continue
		}
		known = true
		if r.Action != "fail" || l.below(name) > 0 && l.failedBelow(name) {
			continue
		}
		parts := strings.Split(test, "/")
		if pkg == "node" { // whose subtests build on each other
			parts = parts[:1]
		}
		for i, part := range parts {
			if i == len(levels) {
				levels = append(levels, map[string]bool{})
			}
			levels[i][regexp.QuoteMeta(part)] = true
		}
	}
	if !known {
		return "."
	}
	var pattern []string
	for _, names := range levels {
		var all []string
		for name := range names {
			all = append(all, name)
		}
		slices.Sort(all)
		pattern = append(pattern, "^("+strings.Join(all, "|")+")$")
	}
	return strings.Join(pattern, "/")
}

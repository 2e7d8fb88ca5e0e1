package main

import (
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// peer is the runtime that Berth is held against.
const peer = "containerd"

// lacking are the specs that the peer passes and ours does not.
func (v verdicts) lacking(ours string) []string {
	var all []string
	if v[peer] == nil || v[ours] == nil {
		return nil
	}
	for name, got := range v[peer].Specs {
		if got.State == "passed" && v[ours].Specs[name].State != "passed" {
			all = append(all, name)
		}
	}
	slices.Sort(all)
	return all
}

// faults are why the results are not good enough.
func (v verdicts) faults() error {
	var lines []string
	for _, p := range peers {
		if p.name == peer || v[p.name] == nil {
			continue
		}
		for name, got := range v[p.name].Specs {
			if got.State == "failed" {
				lines = append(lines, p.name+" fails: "+name)
			}
		}
		for _, name := range v.lacking(p.name) {
			lines = append(lines, p.name+" does not pass what containerd passes: "+name)
		}
	}
	if len(lines) == 0 {
		return nil
	}
	slices.Sort(lines)
	return fmt.Errorf("%s", strings.Join(lines, "\n"))
}

// writePage writes critest.md from the ledger and the verdicts. It fails if they
// are not good enough.
func writePage(dir string) error {
	v, err := readVerdicts(dir)
	if err != nil {
		return err
	}
	l, err := openLedger(dir)
	if err != nil {
		return err
	}
	if len(l.entries) == 0 {
		return fmt.Errorf("no round is recorded in %s", l.path())
	}
	if err := os.WriteFile(filepath.Join(dir, "critest.md"), []byte(page(v, l.entries)), 0o644); err != nil {
		return err
	}
	return v.faults()
}

const pageHead = `# critest

critest 1.36.0 against ` + "`berth runtime`" + ` and against containerd 2.4.2, on one machine with the same images from the same loopback
registry; made by ` + "`make critest`" + `. Every round has a new runtime in network and IPC namespaces of its own; rounds are in
[critest.txt](critest.txt). Of Berth the worst verdict of the rounds of its last code counts, of containerd the best of all.

- **The digest.** One spec pulls an image by a digest that only its publisher's bytes have. The copy of critest that is run names the
  digest of the image that was built for it; nothing else in it is changed.
- **The images** are built from local parts: Debian's static busybox (its shell is kept from running ls by itself, which a
  spec masks; pgrep and ipcs, which it lacks, are shell scripts), and a program of ours for nginx, httpd, nonewprivs and pause.
- **WebSocket** is what exec, attach and port-forward use in a round of its own; elsewhere it is SPDY.
- **SELinux and AppArmor**: critest registers its SELinux specs only where SELinux is on; those of AppArmor skip themselves.

`

func page(v verdicts, entries []entry) string {
	var b strings.Builder
	b.WriteString(pageHead)
	var shown []string
	b.WriteString("| runtime | commit | passed | failed | skipped | clean rounds of its code | its last round of each mode: passed, failed, skipped |\n|---|---|---|---|---|---|---|\n")
	for _, p := range peers {
		of := v[p.name]
		if of == nil {
			continue
		}
		shown = append(shown, p.name)
		o := outcome{Specs: of.Specs}
		fmt.Fprintf(&b, "| %s: %s | %s | %d | %d | %d | %s | %s |\n", p.name, p.what, of.Commit, o.count("passed"), o.count("failed"), o.count("skipped"), tally(p.name, entries), latest(p.name, entries))
	}
	for _, r := range shown {
		fmt.Fprintf(&b, "\n- %s: %s", r, v[r].About)
	}
	b.WriteString("\n")
	names := map[string]bool{}
	reasons := map[string]map[string]bool{}
	for _, r := range shown {
		for name, got := range v[r].Specs {
			names[name] = true
			if got.State != "passed" {
				k := got.State + ": " + reasonOf(got.Reason)
				if reasons[k] == nil {
					reasons[k] = map[string]bool{}
				}
				reasons[k][r] = true
			}
		}
	}
	b.WriteString("\n## Not passed, and why\n")
	for _, k := range sortedKeys(reasons) {
		fmt.Fprintf(&b, "- %s (%s)\n", k, strings.Join(sortedKeys(reasons[k]), ", "))
	}
	fmt.Fprintf(&b, "\n## Every spec\n| spec | %s |\n|---|%s\n", strings.Join(shown, " | "), strings.Repeat("---|", len(shown)))
	for _, name := range sortedKeys(names) {
		fmt.Fprintf(&b, "| %s |", strings.ReplaceAll(name, "|", "\\|"))
		for _, r := range shown {
			fmt.Fprintf(&b, " %s |", v[r].Specs[name].State)
		}
		b.WriteString("\n")
	}
	return b.String()
}

// reasonOf is a reason without what differs from spec to spec.
func reasonOf(s string) string { return strings.ReplaceAll(s, "|", "\\|") }

// modes are the kinds of rounds that are recorded.
var modes = []string{"serial", "parallel", "websocket"}

// latest tells of a runtime's last round of each mode.
func latest(runtime string, entries []entry) string {
	last := map[string]string{}
	for _, e := range entries {
		if e.Runtime == runtime {
			last[e.Mode] = fmt.Sprintf("%s %d, %d, %d in %d s", e.Mode, e.Passed, e.Failed, e.Skipped, e.Seconds)
		}
	}
	var parts []string
	for _, mode := range modes {
		if s := last[mode]; s != "" {
			parts = append(parts, s)
		}
	}
	return strings.Join(parts, "; ")
}

// tally counts the rounds since the last one that was not clean.
func tally(runtime string, entries []entry) string {
	n, unclean := map[string]int{}, 0
	for _, e := range entries {
		if e.Runtime != runtime {
			continue
		}
		if !e.clean() {
			unclean++
			clear(n)
			continue
		}
		n[e.Mode]++
	}
	var parts []string
	for _, mode := range modes {
		if n[mode] > 0 {
			parts = append(parts, fmt.Sprintf("%d %s", n[mode], mode))
		}
	}
	s := strings.Join(parts, ", ")
	if unclean > 0 {
		s += fmt.Sprintf(" (after %d that were not)", unclean)
	}
	return s
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

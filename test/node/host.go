package node

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"sort"
	"strings"
	"testing"
)

// Host is what can be left behind on a machine: each kind of thing, as a sorted list of lines.
type Host map[string][]string

// ReadHost lists mounts, network links, addresses' rules, cgroups and the
// processes a node agent starts. Things that come and go by themselves are left out.
func ReadHost(t testing.TB) Host {
	t.Helper()
	h := Host{}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range strings.Split(string(mounts), "\n") {
		if f := strings.Fields(l); len(f) > 5 {
			h["mount"] = append(h["mount"], f[4])
		}
	}
	links, err := os.ReadDir("/sys/class/net")
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		h["link"] = append(h["link"], l.Name())
	}
	for _, tool := range []string{"iptables-save", "ip6tables-save"} {
		out, err := exec.Command(tool).Output()
		if err != nil {
			continue // without the tool no plugin can have made a rule
		}
		for _, l := range strings.Split(string(out), "\n") {
			if strings.HasPrefix(l, "-A ") || strings.HasPrefix(l, ":") && !strings.Contains(l, "[") {
				h[tool] = append(h[tool], l)
			}
		}
	}
	_ = filepath.WalkDir("/sys/fs/cgroup", func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.IsDir() && (strings.Contains(path, "berth") || strings.Contains(path, "kubepods")) {
			h["cgroup"] = append(h["cgroup"], path)
		}
		return nil
	})
	procs, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, p := range procs {
		body, _ := os.ReadFile(p)
		program := filepath.Base(strings.SplitN(string(body), "\x00", 2)[0])
		switch program {
		case "conmon", "crun", "runc", "berth", "berth-failpoints":
			h["process"] = append(h["process"], fmt.Sprintf("%s %s", filepath.Base(filepath.Dir(p)), strings.ReplaceAll(string(body), "\x00", " ")))
		}
	}
	for _, l := range h {
		sort.Strings(l)
	}
	return h
}

// Added lists what h has and before had not, as far as it names one of marks.
// Other agents may come and go on the same host meanwhile: what is a's own bears
// a's directory, its cgroup root, its bridge or its addresses (Agent.Marks).
func (h Host) Added(before Host, marks []string) []string {
	var added []string
	for kind, lines := range h {
		had := map[string]int{}
		for _, l := range before[kind] {
			had[l]++
		}
		for _, l := range lines {
			own := func(mark string) bool { return names(l, mark) }
			if had[l]--; had[l] < 0 && slices.ContainsFunc(marks, own) {
				added = append(added, kind+": "+l)
			}
		}
	}
	sort.Strings(added)
	return added
}

// names says whether line has mark, and not as the beginning of a longer number:
// berth1 is not berth10.
func names(line, mark string) bool {
	for {
		i := strings.Index(line, mark)
		if i < 0 {
			return false
		}
		line = line[i+len(mark):]
		if line == "" || line[0] < '0' || line[0] > '9' {
			return true
		}
	}
}

package main

import (
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/test/node"
)

// exempt are the tests that say that they cannot hold, with their reasons; the
// others that were skipped lack something of the host.
func (s outcomes) exempt(o node.Over) (not, lacking [][2]string) {
	mark := node.Exempt(o, "")
	for _, name := range s.with("skip") {
		if why, ok := strings.CutPrefix(s[name].why, mark); ok {
			not = append(not, [2]string{name, why})
		} else {
			lacking = append(lacking, [2]string{name, s[name].why})
		}
	}
	return not, lacking
}

// leaves counts the outcomes of tests that have none below them.
func (s outcomes) leaves(pkg, action string) int {
	n := 0
	names := make([]string, 0, len(s))
	for name := range s {
		names = append(names, name)
	}
	slices.Sort(names)
	for i, name := range names {
		parent := false
		for _, next := range names[i+1:] {
			if !strings.HasPrefix(next, name) {
				break
			}
			parent = parent || strings.HasPrefix(next, name+"/")
		}
		if !parent && strings.HasPrefix(name, pkg+".") && s[name].action == action {
			n++
		}
	}
	return n
}

func (s outcomes) summary(o options, took time.Duration) string {
	not, lacking := s.exempt(o.runtime)
	return fmt.Sprintf("over %s: %d passed, %d failed, %d do not hold over it, %d lack something of this host; %v with -parallel %d",
		o.runtime, s.leaves("node", "pass")+s.leaves("fields", "pass"), s.leaves("node", "fail")+s.leaves("fields", "fail"),
		len(not), len(lacking), took.Round(time.Second), o.parallel)
}

func (s outcomes) markdown(o options, took time.Duration) string {
	var b strings.Builder
	title := map[node.Over]string{node.Containerd: "containerd 2.4.2", node.Socket: "`berth runtime` over its socket"}[o.runtime]
	fmt.Fprintf(&b, "# The tests of pods over %s\n\n", title)
	fmt.Fprintf(&b, "Written by `make test-containerd` (test/over). Commit %s, %s, %v with `-parallel %d`.\n\n", o.commit, host(), took.Round(time.Second), o.parallel)
	b.WriteString("| tests | passed | failed | skipped |\n|---|---|---|---|\n")
	for _, pkg := range []string{"node", "fields"} {
		fmt.Fprintf(&b, "| test/%s | %d | %d | %d |\n", pkg, s.leaves(pkg, "pass"), s.leaves(pkg, "fail"), s.leaves(pkg, "skip"))
	}
	not, lacking := s.exempt(o.runtime)
	b.WriteString("\n## What does not hold over it\n\nEach of these tests says so in one line.\n\n| test | reason |\n|---|---|\n")
	for _, row := range not {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	b.WriteString("\n## What this host lacks\n\n| test | reason |\n|---|---|\n")
	for _, row := range lacking {
		fmt.Fprintf(&b, "| %s | %s |\n", row[0], row[1])
	}
	if failed := s.with("fail"); len(failed) > 0 {
		b.WriteString("\n## Failed\n\n")
		for _, name := range failed {
			fmt.Fprintf(&b, "- %s\n", name)
		}
	}
	b.WriteString(differences)
	return b.String()
}

// host says what kind of machine this is.
func host() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // it is always there
	groups := "cgroup v1"
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		groups = "cgroup v2"
	} else if _, err := os.Stat("/sys/fs/cgroup/unified"); err == nil {
		groups = "cgroup v1 with an empty v2 beside it"
	}
	cpus, _ := exec.Command("nproc").Output() // for information
	return fmt.Sprintf("Linux %s, %s, %s processors", strings.TrimSpace(string(kernel)), groups, strings.TrimSpace(string(cpus)))
}

// differences is what a user notices; the cases have a line for each (those that
// begin with [containerd]).
const differences = `
## What is told otherwise

The agent tells what its runtime tells. Over containerd, with runc 1.5.2 or crun:

- A command that cannot be started ends with StartError and 128; over Berth's runtime with ContainerCannotRun and 126 or 127.
- A registry that cannot be reached is ErrImagePull, not RegistryUnavailable: containerd does not mark it.
- A container that the kernel killed for want of memory is OOMKilled, without a sentence that tells the limit.
- An image of another platform is pulled and run.
- A container that somebody removed while it ran is told as ContainerStatusUnknown, for it is gone before it can be looked at.
- A log shipper that follows the links may miss lines at a rotation: containerd makes the new file before it leaves the old one.
- What ended while containerd was away has the exit code 255, for it does not ask its shim.
- ` + "`berth images import` and `verify`" + ` and the progress of pulls are Berth's runtime's own: they are refused with a sentence, or left out.
- Debian's crun 1.8.1 refuses the OCI specification of containerd 2.4: these tests lower the version in a wrapper.
`

package ociruntime

import (
	"slices"
	"strconv"
	"strings"
)

// Hole is a known way out of containers that a version of an OCI runtime has.
type Hole struct {
	CVE string
	// What is possible, in a few words.
	What string
	// Fixed are the first versions without it, one of each branch that was mended.
	Fixed []string
}

// holes are those of versions that Find still accepts, from the projects' own
// advisories.
var holes = map[string][]Hole{
	"runc": {
		{"CVE-2022-29162", "capabilities of containers are inheritable", []string{"1.1.2"}},
		{"CVE-2023-27561", "volumes that race with the mount of /proc lift its protection", []string{"1.1.5"}},
		{"CVE-2023-28642", "a link at /proc in an image lifts AppArmor and SELinux", []string{"1.1.5"}},
		{"CVE-2024-21626", "a working directory on a leaked descriptor reaches the host's files", []string{"1.1.12"}},
		{"CVE-2024-45310", "volumes shared between containers create empty files on the host", []string{"1.1.14", "1.2.0-rc.3"}},
		{"CVE-2025-31133", "masked paths that race with a container reach the host's /proc", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}},
		{"CVE-2025-52565", "a console that races with a container reaches the host's /proc", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}},
		{"CVE-2025-52881", "writes to /proc can be led elsewhere", []string{"1.2.8", "1.3.3", "1.4.0-rc.3"}},
	},
	"crun": {
		{"CVE-2022-27650", "capabilities of containers are inheritable", []string{"1.4.4"}},
		{"CVE-2025-24965", "with the krun handler an image writes the host's files", []string{"1.20"}},
	},
}

// Holes are the known holes of b's version, as its project knows them. A
// distribution may have mended some without a new version: what b's own package
// says is counted, and the rest is for its changelog to tell.
func (b Binary) Holes() []Hole {
	v, ok := parseRelease(b.Version)
	if !ok {
		return nil
	}
	return slices.DeleteFunc(slices.Clone(holes[b.Name]), func(h Hole) bool {
		return !h.in(v) || h.CVE == "CVE-2025-24965" && !slices.Contains(b.Features, "+LIBKRUN")
	})
}

// in tells whether version v has the hole: it is older than the first mended
// version of its branch, or of an older branch than any that was mended.
func (h Hole) in(v release) bool {
	newest := release{}
	for _, s := range h.Fixed {
		f, _ := parseRelease(s) // the table's own
		if f.major == v.major && f.minor == v.minor {
			return v.before(f)
		}
		if newest.before(f) {
			newest = f
		}
	}
	return v.before(newest)
}

// release is a version that can be compared.
type release struct {
	major, minor, patch int
	candidate           int // of "-rc.N"; final ones have more than any
}

const final = 1 << 30

// parseRelease reads "1.8.1", "1.1.5+ds1", "1.20", "1.4.0-rc.3".
func parseRelease(s string) (r release, ok bool) {
	s, _, _ = strings.Cut(s, "+")
	s, rest, candidate := strings.Cut(s, "-rc")
	s, _, _ = strings.Cut(s, "-") // a distribution's
	r.candidate = final
	if candidate {
		n, err := strconv.Atoi(strings.TrimPrefix(rest, "."))
		if err != nil {
			n = 0
		}
		r.candidate = n
	}
	parts := strings.Split(s, ".")
	if len(parts) < 2 || len(parts) > 4 {
		return release{}, false
	}
	for i, to := range []*int{&r.major, &r.minor, &r.patch} {
		if i >= len(parts) {
			break
		}
		n, err := strconv.Atoi(parts[i])
		if err != nil {
			return release{}, false
		}
		*to = n
	}
	return r, true
}

func (r release) before(o release) bool {
	for _, c := range [][2]int{{r.major, o.major}, {r.minor, o.minor}, {r.patch, o.patch}, {r.candidate, o.candidate}} {
		if c[0] != c[1] {
			return c[0] < c[1]
		}
	}
	return false
}

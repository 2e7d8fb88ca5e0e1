package hostcheck

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/berthd/berth/cri/ociruntime"
)

// maxChangelog bounds what is read of a package's changelog.
const maxChangelog = 4 << 20

// holes says which known holes the OCI runtimes of this host have: the chosen
// one, and crun and runc as far as they are here, for any pod may name those.
func (h host) holes(ctx context.Context) []Check {
	var all []Check
	var seen []string
	for _, path := range []string{h.o.OCIRuntime, "crun", "runc"} {
		if path == "" || path == "auto" {
			continue
		}
		found, err := lookPath(path)
		if err != nil || slices.Contains(seen, found) {
			continue
		}
		seen = append(seen, found)
		b, err := ociruntime.Find(ctx, found)
		if err != nil {
			continue // told where the runtime is chosen, if it matters
		}
		all = append(all, holesOf(b, h.changelog(b.Name)))
	}
	return all
}

// holesOf tells the holes of b that changelog, its package's, does not call mended.
func holesOf(b ociruntime.Binary, changelog string) Check {
	name := "holes of " + b.Name
	var open, mended []string
	var versions []string
	for _, hole := range b.Holes() {
		if strings.Contains(changelog, hole.CVE) {
			mended = append(mended, hole.CVE)
			continue
		}
		open = append(open, hole.CVE+" ("+hole.What+")")
		versions = hole.Fixed
	}
	by := ""
	if len(mended) > 0 {
		by = "; by its changelog the distribution has mended " + strings.Join(mended, ", ")
	}
	if len(open) == 0 {
		return ok(programs, name, fmt.Sprintf("none known in %s%s", b.Version, by))
	}
	fix := fmt.Sprintf("use %s %s or newer", b.Name, strings.Join(versions, " or "))
	if strings.ContainsAny(b.Version, "+-~") || changelog != "" {
		fix += "; your distribution may have mended it without a new version: see its changelog (apt-get changelog " + b.Name + ", rpm -q --changelog " + b.Name + ")"
	}
	return warn(programs, name, fmt.Sprintf("%s at %s has %s%s", b.Version, b.Path, strings.Join(open, ", "), by), fix)
}

// changelog is that of a Debian package; empty if there is none.
func (h host) changelog(name string) string {
	f, err := os.Open(h.o.Root + "/usr/share/doc/" + name + "/changelog.Debian.gz")
	if err != nil {
		return ""
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return ""
	}
	b, _ := io.ReadAll(io.LimitReader(z, maxChangelog)) // what can be read
	return string(b)
}

package crash

import (
	"hash/fnv"
	"os"
	"sort"
	"strings"
	"testing"
)

// choose reads the places passed by a whole life, and takes of each failpoint
// its first two passings; for a sample, size of them.
func choose(t *testing.T, trace string, size int) []string {
	body, err := os.ReadFile(trace)
	if err != nil {
		t.Fatal(err)
	}
	seen, names := map[string]bool{}, map[string]bool{}
	var all []string
	for _, place := range strings.Fields(string(body)) {
		name, n, _ := strings.Cut(place, "#")
		names[name] = true
		if (n == "1" || n == "2") && !seen[place] {
			seen[place] = true
			all = append(all, place)
		}
	}
	points, _, err := Enumerate("../..")
	if err != nil {
		t.Fatal(err)
	}
	var not []string
	for _, p := range points {
		if !names[p.Name] {
			not = append(not, p.Name)
		}
	}
	t.Logf("%d failpoints in the source, %d passed by this life at %d places; not passed: %s", len(points), len(names), len(all), strings.Join(not, " "))
	if only := os.Getenv("BERTH_CRASH_AT"); only != "" {
		return strings.Fields(only)
	}
	if os.Getenv("BERTH_CRASH") == "full" {
		return all
	}
	return sample(all, size)
}

// sample takes size of the places, always the same ones.
func sample(all []string, size int) []string {
	rank := func(s string) uint32 { h := fnv.New32a(); h.Write([]byte(s)); return h.Sum32() }
	sort.Slice(all, func(i, j int) bool { return rank(all[i]) < rank(all[j]) })
	return all[:min(size, len(all))]
}

// onlyIn returns the first passing of each failpoint that is in trace first and
// not in again, and notes in passed the names in either.
func onlyIn(t *testing.T, first, again string, passed map[string]bool) (places []string) {
	t.Helper()
	later := map[string]bool{}
	for _, name := range traced(t, again) {
		later[name], passed[name] = true, true
	}
	for _, name := range traced(t, first) {
		if passed[name] = true; !later[name] {
			places = append(places, name+"#1")
			later[name] = true
		}
	}
	return places
}

// traced lists the failpoints of a trace, in order.
func traced(t *testing.T, file string) (names []string) {
	t.Helper()
	body, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	for _, place := range strings.Fields(string(body)) {
		name, _, _ := strings.Cut(place, "#")
		names = append(names, name)
	}
	return names
}

// elsewhere sees that each failpoint of the runtime was passed, or has a reason
// in testdata/elsewhere.txt why the lives over CRI do not pass it.
func elsewhere(t *testing.T, passed map[string]bool) {
	t.Helper()
	body, err := os.ReadFile("testdata/elsewhere.txt")
	if err != nil {
		t.Fatal(err)
	}
	reasons := map[string]bool{}
	for _, l := range strings.Split(string(body), "\n") {
		if name, why, found := strings.Cut(l, "\t"); found && strings.TrimSpace(why) != "" {
			reasons[name] = true
		}
	}
	points, _, err := Enumerate("../..")
	if err != nil {
		t.Fatal(err)
	}
	known := map[string]bool{}
	for _, p := range points {
		known[p.Name] = true
		if runtimePoint(p.Name) && !passed[p.Name] && !reasons[p.Name] {
			t.Errorf("no life over CRI passes %s (%s): add it to one, or to testdata/elsewhere.txt with the reason", p.Name, p.Pos)
		}
	}
	for name := range reasons {
		if !known[name] {
			t.Errorf("testdata/elsewhere.txt: there is no failpoint %s", name)
		}
	}
}

// runtimePoint says whether a failpoint is the runtime's.
func runtimePoint(name string) bool {
	return strings.HasPrefix(name, "cri/") || strings.HasPrefix(name, "cni/")
}

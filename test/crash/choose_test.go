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
	rank := func(s string) uint32 { h := fnv.New32a(); h.Write([]byte(s)); return h.Sum32() }
	sort.Slice(all, func(i, j int) bool { return rank(all[i]) < rank(all[j]) })
	return all[:min(size, len(all))]
}

package main

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

// resultsDir is where the recorded rounds lie.
const resultsDir = "../../docs/results"

func TestEntryIsReadAsItWasWritten(t *testing.T) {
	for _, e := range []entry{
		{Commit: "abc1234", Runtime: "crun", Mode: "serial", Passed: 108, Skipped: 9, Seconds: 90},
		{Commit: "abc1234-dirty", Runtime: "runc-peer", Mode: "parallel", Passed: 1, Failed: 2, Skipped: 3, Seconds: 4, Failures: []string{"a b", "c"}, Left: []string{"pod x", "process 7 sleep"}},
	} {
		e.When = time.Date(2026, 11, 21, 20, 0, 0, 0, time.UTC)
		got, err := parseEntry(e.String())
		if err != nil || !reflect.DeepEqual(got, e) {
			t.Errorf("%+v was read as %+v, %v", e, got, err)
		}
	}
	for _, line := range []string{"x", "2026 a b c passed=1 failed=2 skipped=3 seconds=4", "2026-11-21T20:00:00Z a b c passed=1 failed=x skipped=3 seconds=4"} {
		if e, err := parseEntry(line); err == nil {
			t.Errorf("%q was read as %+v", line, e)
		}
	}
}

func TestReport(t *testing.T) {
	const report = `[{"SpecReports":[
		{"LeafNodeType":"BeforeSuite","State":"passed"},
		{"ContainerHierarchyTexts":["[k8s.io] Image"],"LeafNodeType":"It","LeafNodeText":"is pulled","State":"passed"},
		{"ContainerHierarchyTexts":["[k8s.io] Image"],"LeafNodeType":"It","LeafNodeText":"benchmark","State":"skipped"},
		{"ContainerHierarchyTexts":["[k8s.io] AppArmor"],"LeafNodeType":"It","LeafNodeText":"x","State":"skipped","Failure":{"Message":"is\n disabled"}},
		{"ContainerHierarchyTexts":["[k8s.io] Pod"],"LeafNodeType":"It","LeafNodeText":"runs","State":"panicked","Failure":{"Message":"boom"}},
		{"LeafNodeType":"AfterSuite","State":"timedout","Failure":{"Message":"too long"}}]}]`
	got, err := parseReport([]byte(report))
	want := map[string]verdict{
		"Image is pulled": {State: "passed"}, "AppArmor x": {"skipped", "is disabled"}, "Pod runs": {"failed", "boom"}, "AfterSuite": {"failed", "too long"},
	}
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	for _, bad := range []string{"", "[]", `[{"SpecReports":[]}]`} {
		if got, err := parseReport([]byte(bad)); err == nil {
			t.Errorf("%q told of %v", bad, got)
		}
	}
}

// Of Berth the worst of the rounds of one code counts, of the peer the best.
func TestVerdicts(t *testing.T) {
	one := func(state string) outcome { return outcome{Specs: map[string]verdict{"s": {State: state}}} }
	same := func(c string) bool { return c != "old" }
	v := verdicts{}
	for _, r := range []struct {
		runtime, commit, state, want string
	}{
		{"crun", "old", "failed", "failed"}, {"crun", "new", "passed", "passed"}, {"crun", "new", "failed", "failed"}, {"crun", "new", "passed", "failed"},
		{peer, "old", "passed", "passed"}, {peer, "new", "failed", "passed"},
	} {
		v.add(entry{Runtime: r.runtime, Commit: r.commit}, one(r.state), same)
		if got := v[r.runtime].Specs["s"].State; got != r.want {
			t.Errorf("%+v made it %s", r, got)
		}
	}
	if got := v.lacking("crun"); !slices.Equal(got, []string{"s"}) || v.faults() == nil {
		t.Errorf("what the peer passes and Berth fails was not noticed: %v", got)
	}
	v["crun"].Specs["s"] = verdict{State: "passed"}
	if err := v.faults(); err != nil {
		t.Error(err)
	}
}

func TestOnlyCleanRoundsOfThisCodeCount(t *testing.T) {
	l := &ledger{dir: t.TempDir()}
	now := func(c string) bool { return c == "now" }
	for _, e := range []entry{
		{Runtime: "crun", Mode: "serial", Commit: "now"}, {Runtime: "crun", Mode: "serial", Commit: "old"}, {Runtime: "crun", Mode: "parallel", Commit: "now"},
		{Runtime: "crun", Mode: "serial", Commit: "now", Failed: 1}, {Runtime: "crun", Mode: "serial", Commit: "now", Left: []string{"pod x"}},
		{Runtime: "runc", Mode: "serial", Commit: "now"},
	} {
		if err := l.add(e, outcome{Specs: map[string]verdict{"s": {State: "passed"}}}, now); err != nil {
			t.Fatal(err)
		}
	}
	again, err := openLedger(l.dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range []*ledger{l, again} {
		if n := l.clean("crun", "serial", now); n != 1 {
			t.Errorf("%d rounds count, want 1", n)
		}
	}
}

// The recorded rounds: every spec that containerd passes, Berth passes, and it
// fails none.
func TestBerthPassesWhatContainerdPasses(t *testing.T) {
	if _, err := os.Stat(resultsDir + "/critest.json"); errors.Is(err, os.ErrNotExist) {
		t.Skip("no rounds are recorded in docs/results; make critest records them")
	}
	v, err := readVerdicts(resultsDir)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range []string{"crun", "runc", peer} {
		if v[r] == nil {
			t.Errorf("no round on %s is recorded", r)
		}
	}
	if err := v.faults(); err != nil {
		t.Error(err)
	}
	l, err := openLedger(resultsDir)
	if err != nil {
		t.Fatal(err)
	}
	written, err := os.ReadFile(resultsDir + "/critest.md")
	if err != nil || string(written) != page(v, l.entries) {
		t.Errorf("docs/results/critest.md is not what the ledger says: sh test/critest/run.sh page (%v)", err)
	}
}

func TestDigestIsReplaced(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(dir+"/critest", []byte("a "+publishedDigest+" b "+publishedDigest), 0o755); err != nil {
		t.Fatal(err)
	}
	own := strings.Repeat("1", 64)
	if err := ownDigest(dir+"/critest", dir+"/own", "sha256:"+own); err != nil {
		t.Fatal(err)
	}
	if body, err := os.ReadFile(dir + "/own"); err != nil || string(body) != "a "+own+" b "+own {
		t.Errorf("%q, %v", body, err)
	}
	if err := ownDigest(dir+"/own", dir+"/x", "sha256:"+own); err == nil {
		t.Error("a critest that names another digest was taken")
	}
}

func TestSamples(t *testing.T) {
	dir := t.TempDir()
	const set = `{"operationsNames":["Create","Stop"],"datapoints":[{"operationsDurationsNs":[3000000,5]},{"operationsDurationsNs":[1000000,6]},{"operationsDurationsNs":[2000000,7]}]}`
	if err := os.WriteFile(dir+"/image_listing_benchmark_data.json", []byte(set), 0o644); err != nil {
		t.Fatal(err)
	}
	got, err := readSamples(dir)
	if err != nil || len(got) != 2 {
		t.Fatalf("%v, %v", got, err)
	}
	all := got["image listing: Create"]
	if p50, p99 := quantile(all, 0.5), quantile(all, 0.99); p50 != 2*time.Millisecond || p99 != 3*time.Millisecond {
		t.Errorf("p50 %s, p99 %s", p50, p99)
	}
	if p := benchmarkPage("c", []string{"crun", peer}, map[string]samples{"crun": got}); !strings.Contains(p, "| image listing: Create | 2.0 / 3.0 | 0.0 / 0.0 |\n") {
		t.Error(p)
	}
}

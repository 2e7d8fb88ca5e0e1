package fields

import (
	"flag"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/berthd/berth/test/support"
)

var rewrite = flag.Bool("rewrite", false, "write docs/support.md")

// TestEveryLeafHasAVerdict sees that no field of a pod's spec is unknown to us,
// and that docs/support.md says what the table says.
func TestEveryLeafHasAVerdict(t *testing.T) {
	cases, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	rows, err := Table(cases)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range rows {
		if r.Verdict == Unknown {
			t.Errorf("%s: no case in testdata covers it, nothing refuses it, and cluster.txt does not know it", r.Path)
		}
	}
	results, err := readResults("../../docs/results")
	if err != nil {
		t.Fatal(err)
	}
	want := Markdown(rows, cases, results)
	const page = "../../docs/support.md"
	if *rewrite {
		if err := os.WriteFile(page, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if have, err := os.ReadFile(page); err != nil || string(have) != want {
		t.Errorf("docs/support.md is not what the table says (%v): go test ./test/fields -run EveryLeaf -rewrite", err)
	}
}

// TestLeavesOfThePodSpec sees that the walk finds what it must.
func TestLeavesOfThePodSpec(t *testing.T) {
	var paths []string
	for _, l := range support.Leaves() {
		paths = append(paths, l.Path)
	}
	for _, want := range []string{"hostUsers", "containers[].env[].valueFrom.fileKeyRef.key", "initContainers[].restartPolicyRules[].exitCodes.values",
		"ephemeralContainers[].targetContainerName", "volumes[].projected.sources[].podCertificate.userAnnotations", "resources.limits"} {
		if !slices.Contains(paths, want) {
			t.Errorf("%s is not among the %d leaves", want, len(paths))
		}
	}
	for _, not := range []string{"containers[]", "securityContext", "containers[].resources"} {
		if slices.Contains(paths, not) {
			t.Errorf("%s is among the leaves", not)
		}
	}
}

// TestCoveredLeafMustBeSet sees that a case cannot claim what it does not set.
func TestCoveredLeafMustBeSet(t *testing.T) {
	body := "# x\ncovers hostNetwork\nplace\n-- pod.yaml --\nkind: Pod\nspec: {hostPID: true}\n"
	if _, err := parse("x", []byte(body)); err == nil || !strings.Contains(err.Error(), "hostNetwork") {
		t.Errorf("a case that covers a field it does not set is accepted: %v", err)
	}
}

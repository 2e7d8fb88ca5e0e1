package differential

import (
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// pods reads the pods of a directory, by the names of their files.
func pods(t *testing.T, dir string) map[string]*v1.Pod {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		t.Fatalf("no pods in %s: %v", dir, err)
	}
	all := map[string]*v1.Pod{}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		p := &v1.Pod{}
		if err := yaml.UnmarshalStrict(b, p); err != nil {
			t.Fatalf("%s: %v", f, err)
		}
		all[strings.TrimSuffix(filepath.Base(f), ".yaml")] = p
	}
	return all
}

// seeds are the pods that all others are made from, in a fixed order: those of
// testdata/rich, their containers in the two other roles, and one pod with every
// field of the type set at once, which nobody would call valid.
func seeds(t *testing.T) []*v1.Pod {
	t.Helper()
	rich := pods(t, "testdata/rich")
	containers := rich["containers"]
	sidecars, ephemeral := containers.DeepCopy(), containers.DeepCopy()
	always := v1.ContainerRestartPolicyAlways
	for _, c := range containers.Spec.Containers {
		c.RestartPolicy = &always
		c.RestartPolicyRules = nil
		c.Name = "side-" + c.Name
		sidecars.Spec.InitContainers = append(sidecars.Spec.InitContainers, *c.DeepCopy())
		c.Name = "late-" + c.Name
		e := v1.EphemeralContainer{EphemeralContainerCommon: v1.EphemeralContainerCommon(*c.DeepCopy()), TargetContainerName: containers.Spec.Containers[0].Name}
		ephemeral.Spec.EphemeralContainers = append(ephemeral.Spec.EphemeralContainers, e)
	}
	for i := range containers.Spec.Containers {
		c := containers.Spec.Containers[i].DeepCopy()
		c.Name = "first-" + c.Name
		c.Lifecycle, c.LivenessProbe, c.ReadinessProbe, c.StartupProbe, c.ResizePolicy = nil, nil, nil, nil, c.ResizePolicy[:min(1, len(c.ResizePolicy))]
		sidecars.Spec.InitContainers = append(sidecars.Spec.InitContainers, *c)
	}
	sidecars.Name, ephemeral.Name = "sidecars", "ephemeral"
	rich["sidecars"], rich["ephemeral"] = sidecars, ephemeral
	everything := &v1.Pod{}
	everything.Name, everything.Namespace = "everything", "default"
	filler{rng: rand.New(rand.NewPCG(1, 1)), all: true}.fill(reflect.ValueOf(&everything.Spec).Elem(), "spec")
	rich["everything"] = everything
	var names []string
	for name := range rich {
		names = append(names, name)
	}
	slices.Sort(names)
	var all []*v1.Pod
	for _, name := range names {
		all = append(all, rich[name])
	}
	return all
}

// invalidSeeds cannot be valid: a pod is not created with ephemeral containers.
var invalidSeeds = []string{"debug", "ephemeral", "everything"}

func TestSeedsAreValid(t *testing.T) {
	for _, p := range seeds(t) {
		errs := upstreamCreate(p)
		if slices.Contains(invalidSeeds, p.Name) {
			if len(errs) == 0 {
				t.Errorf("%s: upstream takes it", p.Name)
			}
			continue
		}
		for _, e := range errs {
			t.Errorf("%s: %v", p.Name, e)
		}
	}
}

var index = regexp.MustCompile(`\[[^\]]*\]`)

// general is path without its indexes and keys.
func general(path string) string { return index.ReplaceAllString(path, "[]") }

func TestEveryLeafIsReached(t *testing.T) {
	valid, any := map[string]bool{}, map[string]bool{}
	for _, p := range seeds(t) {
		for _, s := range spots(p) {
			if s.v.IsZero() {
				continue
			}
			path := strings.TrimPrefix(s.kind, "spec.")
			for _, at := range []string{path, path + "[]"} { // the elements of a map are no spots of their own
				any[at] = true
				valid[at] = valid[at] || !slices.Contains(invalidSeeds, p.Name)
			}
		}
	}
	for _, leaf := range leaves(reflect.TypeFor[v1.PodSpec]()) {
		switch leaf = general(leaf); {
		case !any[leaf]:
			t.Errorf("no seed reaches spec.%s: add it to one of testdata/rich", leaf)
		case !valid[leaf] && !neverValid.MatchString(leaf):
			t.Errorf("no valid seed reaches spec.%s: add it to one of testdata/rich", leaf)
		}
	}
}

// neverValid are leaves that no pod can be created with: some by design, namespace for want of an alpha feature.
var neverValid = regexp.MustCompile(`^resources\.claims|readinessProbe\.terminationGracePeriodSeconds$|\.dataSourceRef\.namespace$|^ephemeralContainers\[\]|\.volumeClaimTemplate\.metadata\.`)

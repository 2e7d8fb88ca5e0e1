package source

import (
	"bytes"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"
	apiequality "k8s.io/apimachinery/pkg/api/equality"
)

var rewrite = flag.Bool("update", false, "write the golden files anew")

// TestProblems compares every report with a golden file: what a person reads
// when a manifest is wrong.
func TestProblems(t *testing.T) {
	files, err := filepath.Glob("testdata/problems/*.[yj]*")
	if err != nil || len(files) == 0 {
		t.Fatalf("no test data: %v", err)
	}
	for _, path := range files {
		t.Run(filepath.Base(path), func(t *testing.T) {
			content, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			refs, problems, err := Check(filepath.Base(path), bytes.NewReader(content))
			if err != nil {
				t.Fatal(err)
			}
			var got strings.Builder
			for _, r := range refs {
				got.WriteString("usable: " + r.String() + "\n")
			}
			for _, p := range problems {
				got.WriteString(p.String() + "\n")
			}
			golden := "testdata/golden/" + filepath.Base(path) + ".txt"
			if *rewrite {
				if err := os.WriteFile(golden, []byte(got.String()), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(golden)
			if err != nil {
				t.Fatal(err)
			}
			if got.String() != string(want) {
				t.Errorf("got:\n%s\nwant:\n%s", got.String(), want)
			}
			if strings.Contains(got.String(), "12345678") || strings.Contains(got.String(), "verysecret") {
				t.Error("a report shows what a Secret holds")
			}
		})
	}
}

func TestExamplesAreWell(t *testing.T) {
	files, _ := filepath.Glob("../../examples/*.yaml")
	more, _ := filepath.Glob("../../examples/*/*.yaml")
	if files = append(files, more...); len(files) < 8 {
		t.Fatalf("found %d examples, expected at least 8", len(files))
	}
	for _, path := range files {
		content, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		refs, problems, _ := Check(path, bytes.NewReader(content))
		if len(problems) > 0 || len(refs) == 0 {
			t.Errorf("%s: %d objects, problems %v", path, len(refs), problems)
		}
	}
}

// TestRefusalsAreOfFields: a refusal names a field that the API has, and says
// what to do instead.
func TestRefusalsAreOfFields(t *testing.T) {
	all := RefusedFields()
	if len(all) < 40 {
		t.Errorf("only %d fields are refused", len(all))
	}
	for _, r := range all {
		if f, ok := jsonFields(r.Owner)[r.Field]; !ok || f.owner != r.Owner {
			t.Errorf("%s has no field %s", r.Owner.Name(), r.Field)
		}
		if !strings.Contains(r.Why, ": ") || strings.HasSuffix(r.Why, ".") {
			t.Errorf("%s.%s: %q does not say what to do", r.Owner.Name(), r.Field, r.Why)
		}
		if why, only, is := Refusal(r.Owner, r.Field); !is || why != r.Why || only != r.Only {
			t.Errorf("%s.%s is listed but not refused", r.Owner.Name(), r.Field)
		}
	}
}

func mustPod(t *testing.T, manifest string) *v1.Pod {
	t.Helper()
	r := read("test.yaml", []byte(manifest))
	if len(r.problems) > 0 || len(r.entries) != 1 || r.entries[0].pod == nil {
		t.Fatalf("expected one pod, got %d entries, problems %v", len(r.entries), r.problems)
	}
	return r.entries[0].pod
}

func TestDefaults(t *testing.T) {
	got := mustPod(t, `
apiVersion: v1
kind: Pod
metadata: {name: d}
spec:
  hostNetwork: yes
  containers:
  - name: c
    image: registry:5000/a
    ports: [{containerPort: 80}]
    env: [{name: A, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
    resources: {limits: {cpu: 1, memory: 1Mi}, requests: {cpu: 100u}}
    livenessProbe: {httpGet: {port: 80}}
    readinessProbe: {grpc: {port: 80}}
    volumeMounts: [{name: v, mountPath: /v}]
  - {name: d, image: 'a:1'}
  - {name: e, image: 'a@sha256:0000000000000000000000000000000000000000000000000000000000000000'}
  volumes:
  - {name: v}
  - {name: m, configMap: {name: m}}
  - {name: h, hostPath: {path: /}}
`)
	want, err := os.ReadFile("testdata/defaults.json")
	if err != nil && !*rewrite {
		t.Fatal(err)
	}
	text, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if *rewrite {
		if err := os.WriteFile("testdata/defaults.json", text, 0o644); err != nil {
			t.Fatal(err)
		}
		want = text
	}
	if !bytes.Equal(text, want) {
		t.Errorf("got\n%s", text)
	}
}

func TestYAMLAsKubernetesReadsIt(t *testing.T) {
	r := read("x", []byte("\xef\xbb\xbf# comment\n---\n---\napiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: a\n  labels: &l {x: \"y\"}\ndata:\n  <<: *l\n  t: 2020-01-01\n  o: \"on\"\n  n: |\n    two\n    lines\n"))
	if len(r.problems) > 0 {
		t.Fatal(r.problems)
	}
	want := map[string]string{"x": "y", "t": "2020-01-01", "o": "on", "n": "two\nlines\n"}
	if got := r.entries[0].configMap.Data; !reflect.DeepEqual(got, want) {
		t.Errorf("got %v, want %v", got, want)
	}
	p := mustPod(t, "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: c, image: i}], volumes: [{name: v, configMap: {name: m, defaultMode: 0600}}], terminationGracePeriodSeconds: 3.0}}")
	if *p.Spec.Volumes[0].ConfigMap.DefaultMode != 0o600 || *p.Spec.TerminationGracePeriodSeconds != 3 {
		t.Errorf("octal mode or whole float misread: %+v", p.Spec)
	}
}

// FuzzManifest: no input ends the program, and what is accepted stays the same
// when it is written out and read again.
func FuzzManifest(f *testing.F) {
	for _, pattern := range []string{"testdata/problems/*.[yj]*", "../../examples/*.yaml", "../../examples/*/*.yaml"} {
		files, _ := filepath.Glob(pattern)
		for _, path := range files {
			if b, err := os.ReadFile(path); err == nil {
				f.Add(b)
			}
		}
	}
	f.Add([]byte("apiVersion: v1\nkind: List\nitems:\n- {apiVersion: v1, kind: Secret, metadata: {name: s}, stringData: {a: b}}\n"))
	f.Fuzz(func(t *testing.T, in []byte) {
		r := read("fuzz", in)
		for _, p := range r.problems {
			if p.Message == "" {
				t.Errorf("a problem says nothing: %+v", p)
			}
		}
		for _, e := range r.entries {
			text := e.bytes()
			again := read("again", text)
			if len(again.problems) > 0 || len(again.entries) != 1 {
				t.Fatalf("what was accepted is refused when written out: %v\n%s", again.problems, text)
			}
			if !apiequality.Semantic.DeepEqual(again.entries[0].object(), e.object()) {
				t.Fatalf("not stable:\n%s\n%s", text, again.entries[0].bytes())
			}
			if raw := read("raw", e.raw); len(raw.entries) != 1 || raw.entries[0].ref != e.ref || !bytes.Equal(raw.entries[0].raw, e.raw) {
				t.Fatalf("the remembered document is not the same: %s", e.raw)
			}
		}
	})
}

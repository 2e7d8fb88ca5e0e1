package fields

import (
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/source"
	"github.com/berthd/berth/test/support"
)

// Verdict says what becomes of a field.
type Verdict string

// The verdicts.
const (
	Works   Verdict = "works"
	Refused Verdict = "refused"
	Cluster Verdict = "needs a cluster"
	Unknown Verdict = ""
)

// Row is one leaf of the pod's spec.
type Row struct {
	Path    string
	Verdict Verdict
	Why     string   // of a field that does not work here
	Cases   []string // of TestFields, that see its effect or its refusal
}

// likeMain are the lists of containers that share the code of spec.containers:
// a field of theirs that no case covers itself is covered by containers[].
var likeMain = []string{"initContainers[].", "ephemeralContainers[]."}

// neverEphemeral are the fields that the API itself refuses in an ephemeral container.
var neverEphemeral = []string{"ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resources", "resizePolicy", "restartPolicy", "restartPolicyRules", "volumeDevices"}

// Table makes a row for every leaf, from the cases and from what the agent
// refuses. A leaf about which nothing is known has no verdict.
func Table(cases []Case) ([]Row, error) {
	seen := map[string][]string{}  // by path: the cases that see an effect
	never := map[string][]string{} // by path: those that see a refusal
	for _, c := range cases {
		into := seen
		if c.refuses() {
			into = never
		}
		for _, leaf := range c.Covers {
			into[leaf] = append(into[leaf], c.Name)
		}
	}
	cluster, err := clusterNotes()
	if err != nil {
		return nil, err
	}
	refused := refusals()
	var rows []Row
	for _, l := range support.Leaves() {
		row := Row{Path: l.Path}
		for _, path := range samePaths(l.Path) {
			if row.Cases = seen[path]; len(row.Cases) > 0 {
				row.Verdict = Works
				break
			}
			if row.Cases = never[path]; len(row.Cases) > 0 {
				row.Verdict = Refused
				row.Why = refused[path]
				break
			}
		}
		if row.Verdict == Unknown {
			row.decide(refused, cluster)
		}
		rows = append(rows, row)
	}
	return rows, nil
}

func (r *Row) decide(refused, cluster map[string]string) {
	if rest, ok := strings.CutPrefix(r.Path, "ephemeralContainers[]."); ok {
		for _, name := range neverEphemeral {
			if below(rest, name) {
				r.Verdict, r.Why = Refused, "the API forbids it in an ephemeral container"
				return
			}
		}
	}
	for _, path := range samePaths(r.Path) {
		if why, ok := refused[path]; ok {
			r.Verdict, r.Why = Refused, why
			return
		}
	}
	for pattern, why := range cluster {
		if r.Path == pattern || strings.HasSuffix(pattern, "**") && strings.HasPrefix(r.Path, strings.TrimSuffix(pattern, "**")) {
			r.Verdict, r.Why = Cluster, why
		}
	}
}

// samePaths are the leaf itself and, where the code is the same, that of containers[].
func samePaths(path string) []string {
	all := []string{path}
	for _, list := range likeMain {
		rest, ok := strings.CutPrefix(path, list)
		if !ok {
			continue
		}
		if rest == "targetContainerName" || list == "ephemeralContainers[]." && slices.ContainsFunc(neverEphemeral, func(n string) bool { return below(rest, n) }) {
			continue
		}
		// An init container that has a life of its own, a sidecar, has the code of the
		// others too: what differs is covered by init-restart and init-rules.
		all = append(all, "containers[]."+rest)
	}
	return all
}

func below(path, name string) bool {
	return path == name || strings.HasPrefix(path, name+".") || strings.HasPrefix(path, name+"[]")
}

// refuses says that the case shows a refusal and nothing else.
func (c Case) refuses() bool {
	refused := false
	for _, s := range c.Steps {
		if s.Verb == "place" {
			return false
		}
		refused = refused || s.Verb == "refused"
	}
	return refused
}

// refusals lists the leaves that agent/source refuses, whatever their value.
func refusals() map[string]string {
	all := map[string]string{}
	var walk func(t reflect.Type, prefix, why string)
	walk = func(t reflect.Type, prefix, why string) {
		for i := range t.NumField() {
			f := t.Field(i)
			name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
			if strings.Contains(options, "inline") {
				walk(f.Type, prefix, why)
				continue
			}
			here := why
			if sentence, only, is := source.Refusal(t, name); is && only == nil && here == "" {
				here = sentence
			}
			path, inner := prefix+name, f.Type
			if inner.Kind() == reflect.Pointer {
				inner = inner.Elem()
			}
			if inner.Kind() == reflect.Slice && inner.Elem().Kind() == reflect.Struct {
				path, inner = path+"[]", inner.Elem()
			}
			if here != "" {
				all[path] = here
			}
			if inner.Kind() == reflect.Struct {
				walk(inner, path+".", here)
			}
		}
	}
	walk(reflect.TypeFor[v1.PodSpec](), "", "")
	for path := range all {
		if strings.HasPrefix(path, "ephemeralContainers[]") {
			delete(all, path) // in a manifest; berth debug adds them
		}
	}
	return all
}

// clusterNotes reads cluster.txt.
func clusterNotes() (map[string]string, error) {
	body, err := os.ReadFile("cluster.txt")
	if err != nil {
		return nil, err
	}
	all := map[string]string{}
	for i, line := range strings.Split(string(body), "\n") {
		if line = strings.TrimSpace(line); line == "" || line[0] == '#' {
			continue
		}
		pattern, why, ok := strings.Cut(line, " ")
		if !ok {
			return nil, fmt.Errorf("cluster.txt:%d: no reason for %s", i+1, pattern)
		}
		all[pattern] = why
	}
	return all, nil
}

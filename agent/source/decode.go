package source

import (
	"encoding/json"
	"fmt"
	"reflect"
	"regexp"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	nodev1 "k8s.io/api/node/v1"
	schedulingv1 "k8s.io/api/scheduling/v1"
	"k8s.io/apimachinery/pkg/util/validation/field"
	kjson "sigs.k8s.io/json"
)

// entry is one usable object of a manifest, defaulted and validated. It is immutable.
type entry struct {
	ref Ref
	// raw is the document in canonical JSON, before defaults.
	raw  []byte
	line int
	doc  int
	// prefix is the path of the object in its document, lines where some of its fields stand.
	prefix string
	lines  map[string]int
	// Exactly one of these is set.
	pod           *v1.Pod
	configMap     *v1.ConfigMap
	secret        *v1.Secret
	runtimeClass  *nodev1.RuntimeClass
	priorityClass *schedulingv1.PriorityClass
}

// reading is what the content of one file gave.
type reading struct {
	entries  []*entry
	problems []Problem
	// broken names the objects whose documents cannot be used. A document whose
	// object cannot be told counts as any object: anyBroken.
	broken    map[Ref]bool
	anyBroken bool
}

// decoder reads the documents of one file.
type decoder struct {
	file string
	out  reading
}

// read decodes content. It never fails: what is wrong becomes problems.
func read(file string, content []byte) reading {
	d := decoder{file: file, out: reading{broken: map[Ref]bool{}}}
	if len(content) > maxContent {
		d.fail(Problem{Message: fmt.Sprintf("the file has more than %d MiB", maxContent>>20)}, Ref{})
		return d.out
	}
	for _, p := range parse(content) {
		if p.err != nil {
			d.fail(Problem{Line: p.err.line, Document: p.index, Message: p.err.message}, Ref{})
			continue
		}
		d.document(p.root, p.index, "")
	}
	d.duplicates()
	sortProblems(d.out.problems)
	return d.out
}

// fail reports p, and marks the object it belongs to as broken.
func (d *decoder) fail(p Problem, ref Ref) {
	p.File = d.file
	p.Object = ref
	d.out.problems = append(d.out.problems, p)
	if ref.Name == "" || ref.Kind == "" {
		p.Object = Ref{}
		d.out.problems[len(d.out.problems)-1].Object = Ref{}
		d.out.anyBroken = true
		return
	}
	d.out.broken[ref] = true
}

// document takes one object, or each item of a list. prefix is the path of root
// in its document.
func (d *decoder) document(root *node, doc int, prefix string) {
	if root.shape != object {
		d.fail(Problem{Line: root.line, Document: doc, FieldPath: prefix, Message: "expected an object with apiVersion and kind, got " + root.kindWord()}, Ref{})
		return
	}
	kind, version := root.str("kind"), root.str("apiVersion")
	ref := Ref{Kind: kind, Namespace: root.get("metadata").str("namespace"), Name: root.get("metadata").str("name")}
	switch {
	case kinds[kind].cluster:
		ref.Namespace = ""
	case ref.Namespace == "":
		ref.Namespace = "default"
	}
	if n, path, message := misfit(root, kind, version); n != nil {
		d.fail(Problem{Line: n.line, Document: doc, FieldPath: join(prefix, path), Message: message}, ref)
		return
	}
	switch kind {
	case "Pod":
		d.pod(root, doc, prefix, ref)
	case "ConfigMap":
		d.configMap(root, doc, prefix, ref)
	case "Secret":
		d.secret(root, doc, prefix, ref)
	case "RuntimeClass":
		d.runtimeClass(root, doc, prefix, ref)
	case "PriorityClass":
		d.priorityClass(root, doc, prefix, ref)
	default:
		d.list(root, doc, prefix, kind)
	}
}

// misfit says what is wrong with a document's kind or version, and where; nil: nothing.
func misfit(root *node, kind, version string) (at *node, path, message string) {
	const known = "Pod, ConfigMap, Secret, RuntimeClass, PriorityClass or a list of them"
	path = "kind"
	switch k := kinds[kind]; {
	case kind == "":
		message = "expected " + known
	case k.version == "":
		message = fmt.Sprintf("a node by itself cannot run a %s: expected %s", clip(kind), known)
	case k.version != version:
		path, message = "apiVersion", fmt.Sprintf("expected %s, got %q", k.version, clip(version))
	default:
		return nil, "", ""
	}
	if at = root.get(path); at == nil {
		at = root
	}
	return at, path, message
}

// kinds are what a document may be: the API version of each, and whether it
// belongs to no namespace.
var kinds = map[string]struct {
	version string
	cluster bool
}{
	"Pod":               {version: "v1"},
	"ConfigMap":         {version: "v1"},
	"Secret":            {version: "v1"},
	"List":              {version: "v1"},
	"PodList":           {version: "v1"},
	"ConfigMapList":     {version: "v1"},
	"SecretList":        {version: "v1"},
	"RuntimeClass":      {version: "node.k8s.io/v1", cluster: true},
	"RuntimeClassList":  {version: "node.k8s.io/v1", cluster: true},
	"PriorityClass":     {version: "scheduling.k8s.io/v1", cluster: true},
	"PriorityClassList": {version: "scheduling.k8s.io/v1", cluster: true},
}

func (d *decoder) list(root *node, doc int, prefix, kind string) {
	for _, f := range root.fields {
		switch f.name {
		case "apiVersion", "kind", "metadata", "items":
		default:
			d.fail(Problem{Line: f.line, Document: doc, FieldPath: join(prefix, f.name), Message: "unknown field " + f.name + " of a " + kind}, Ref{})
		}
	}
	items := root.get("items")
	if items == nil || items.shape == scalar && items.value == nil {
		return
	}
	if items.shape != list || prefix != "" {
		d.fail(Problem{Line: items.line, Document: doc, FieldPath: join(prefix, "items"), Message: "expected a list of objects that are no lists themselves"}, Ref{})
		return
	}
	only := strings.TrimSuffix(kind, "List")
	for i, item := range items.items {
		path := fmt.Sprintf("%sitems[%d]", prefix, i)
		if only != "" && item.shape == object {
			// The items of a typed list may leave out what the list says.
			d.imply(item, "kind", only)
			d.imply(item, "apiVersion", kinds[only].version)
			if k := item.str("kind"); k != only {
				d.fail(Problem{Line: item.line, Document: doc, FieldPath: path + ".kind", Message: fmt.Sprintf("expected %s in a %s, got %q", only, kind, clip(k))}, Ref{})
				continue
			}
		}
		d.document(item, doc, path)
	}
}

func (d *decoder) imply(n *node, name, value string) {
	if n.get(name) == nil {
		n.fields = append(n.fields, pair{name, n.line, &node{line: n.line, value: value, text: value}})
	}
}

// into fills out from root, and says whether root fits its type exactly.
func (d *decoder) into(root *node, doc int, prefix string, ref Ref, out any) bool {
	ok := true
	report := func(line int, path, message string) {
		ok = false
		d.fail(Problem{Line: line, Document: doc, FieldPath: join(prefix, path), Message: message}, ref)
	}
	checker{report: report, hide: ref.Kind == "Secret"}.check(root, reflect.TypeOf(out), "")
	if !ok {
		return false
	}
	strict, err := kjson.UnmarshalStrict(root.json(), out)
	if err == nil && len(strict) > 0 {
		err = strict[0]
	}
	if err != nil { // what the checker lets pass that the API's own decoder does not
		message := err.Error()
		if ref.Kind == "Secret" {
			message = "the API's decoder refuses it"
		}
		report(root.line, "", message)
	}
	return ok
}

// invalid reports what validation found, each on the line of its field.
func (d *decoder) invalid(root *node, doc int, prefix string, ref Ref, errs field.ErrorList) bool {
	for _, e := range errs {
		d.fail(Problem{Line: lineOf(root, e.Field), Document: doc, FieldPath: join(prefix, e.Field), Message: e.ErrorBody()}, ref)
	}
	return len(errs) > 0
}

func (d *decoder) pod(root *node, doc int, prefix string, ref Ref) {
	pod := new(v1.Pod)
	refused := d.refuse(root, doc, prefix, ref)
	if !d.into(root, doc, prefix, ref, pod) {
		return
	}
	clearServerFields(&pod.ObjectMeta)
	pod.Generation = 1 // as the API server gives it; a resize adds one
	pod.Status = v1.PodStatus{}
	complete(pod)
	errs := slices.DeleteFunc(validatePod(pod), func(e *field.Error) bool {
		return slices.ContainsFunc(refused, func(path string) bool { return within(e.Field, path) })
	})
	if d.invalid(root, doc, prefix, ref, errs) || len(refused) > 0 {
		return
	}
	e := &entry{ref: ref, raw: root.json(), line: root.line, doc: doc, prefix: prefix, pod: pod, lines: map[string]int{}}
	for _, name := range []string{"runtimeClassName", "priorityClassName", "priority", "preemptionPolicy", "overhead", "nodeSelector"} {
		if path := "spec." + name; root.get("spec").get(name) != nil {
			e.lines[path] = lineOf(root, path)
		}
	}
	d.out.entries = append(d.out.entries, e)
}

// refuse reports the fields that this node cannot serve, and returns their
// paths: what else is wrong with them does not matter.
func (d *decoder) refuse(root *node, doc int, prefix string, ref Ref) (paths []string) {
	refusals(root.get("spec"), reflect.TypeFor[v1.PodSpec](), "spec", func(line int, path, message string) {
		paths = append(paths, path)
		d.fail(Problem{Line: line, Document: doc, FieldPath: join(prefix, path), Message: message}, ref)
	})
	return paths
}

// within says whether path is outer or below it.
func within(path, outer string) bool {
	rest, ok := strings.CutPrefix(path, outer)
	return ok && (rest == "" || rest[0] == '.' || rest[0] == '[')
}

func (d *decoder) configMap(root *node, doc int, prefix string, ref Ref) {
	cm := new(v1.ConfigMap)
	if !d.into(root, doc, prefix, ref, cm) {
		return
	}
	clearServerFields(&cm.ObjectMeta)
	cm.Namespace = ref.Namespace
	if d.invalid(root, doc, prefix, ref, validateConfigMap(cm)) {
		return
	}
	d.out.entries = append(d.out.entries, &entry{ref: ref, raw: root.json(), line: root.line, doc: doc, configMap: cm})
}

func (d *decoder) secret(root *node, doc int, prefix string, ref Ref) {
	s := new(v1.Secret)
	if !d.into(root, doc, prefix, ref, s) {
		return
	}
	clearServerFields(&s.ObjectMeta)
	defaultSecret(s, ref.Namespace)
	if d.invalid(root, doc, prefix, ref, validateSecret(s)) {
		return
	}
	d.out.entries = append(d.out.entries, &entry{ref: ref, raw: root.json(), line: root.line, doc: doc, secret: s})
}

func (d *decoder) runtimeClass(root *node, doc int, prefix string, ref Ref) {
	rc := new(nodev1.RuntimeClass)
	if !d.into(root, doc, prefix, ref, rc) {
		return
	}
	clearServerFields(&rc.ObjectMeta)
	if d.invalid(root, doc, prefix, ref, validateRuntimeClass(rc)) {
		return
	}
	d.out.entries = append(d.out.entries, &entry{ref: ref, raw: root.json(), line: root.line, doc: doc, runtimeClass: rc})
}

func (d *decoder) priorityClass(root *node, doc int, prefix string, ref Ref) {
	pc := new(schedulingv1.PriorityClass)
	if !d.into(root, doc, prefix, ref, pc) {
		return
	}
	clearServerFields(&pc.ObjectMeta)
	defaultPriorityClass(pc)
	if d.invalid(root, doc, prefix, ref, validatePriorityClass(pc)) {
		return
	}
	d.out.entries = append(d.out.entries, &entry{ref: ref, raw: root.json(), line: root.line, doc: doc, priorityClass: pc})
}

// duplicates keeps the first of each object within the file.
func (d *decoder) duplicates() {
	first := map[Ref]*entry{}
	kept := d.out.entries[:0]
	for _, e := range d.out.entries {
		if f, ok := first[e.ref]; ok {
			d.out.problems = append(d.out.problems, Problem{File: d.file, Line: e.line, Document: e.doc, Object: e.ref,
				FieldPath: "metadata.name", Message: fmt.Sprintf("the same %s stands in document %d, on line %d, and that one is used", e.ref.Kind, f.doc, f.line)})
			continue
		}
		first[e.ref] = e
		kept = append(kept, e)
	}
	d.out.entries = kept
}

// object returns what e holds, as the API writes it.
func (e *entry) object() any {
	switch {
	case e.pod != nil:
		return e.pod
	case e.configMap != nil:
		return e.configMap
	case e.runtimeClass != nil:
		return e.runtimeClass
	case e.priorityClass != nil:
		return e.priorityClass
	}
	return e.secret
}

// problem tells of something that is wrong with e as a part of the whole.
func (e *entry) problem(file string, err *field.Error) Problem {
	line, known := e.lines[index.ReplaceAllString(err.Field, "")]
	if !known {
		line = e.line
	}
	return Problem{File: file, Line: line, Document: e.doc, Object: e.ref, FieldPath: join(e.prefix, err.Field), Message: err.ErrorBody()}
}

var index = regexp.MustCompile(`\[[^]]*\]$`)

// bytes is e's object in JSON, for hashing: fields of Go types come in a fixed order, maps sorted.
func (e *entry) bytes() []byte {
	b, err := json.Marshal(e.object())
	if err != nil { // an API object that came from JSON can always become JSON
		return e.raw
	}
	return b
}

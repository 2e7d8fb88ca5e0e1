package source

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
)

// Problem is something wrong with a manifest, or with reading one, told so that
// a person can mend it without reading anything else.
type Problem struct {
	// File is the path, the URL, "stdin" or "run" that the manifest came from.
	File string `json:"file"`
	// Line counts from 1; 0 if no line is to blame.
	Line int `json:"line,omitempty"`
	// Document counts the documents of the file from 1; 0 for the file as a whole.
	Document int `json:"document,omitempty"`
	// Object is what the document describes, as far as that can be told.
	Object Ref `json:"object,omitzero"`
	// FieldPath is in Kubernetes' notation: spec.containers[0].image.
	FieldPath string `json:"fieldPath,omitempty"`
	// Message says what is wrong and what was expected.
	Message string `json:"message"`
}

// String renders p on one line: "web.yaml:7: document 2 (Pod default/web): spec.hostNetwork: expected true or false, got the string \"x\"".
func (p Problem) String() string {
	var b strings.Builder
	b.WriteString(p.File)
	if p.Line > 0 {
		fmt.Fprintf(&b, ":%d", p.Line)
	}
	b.WriteString(": ")
	switch {
	case p.Document > 0 && p.Object != Ref{}:
		fmt.Fprintf(&b, "document %d (%s): ", p.Document, p.Object)
	case p.Document > 0:
		fmt.Fprintf(&b, "document %d: ", p.Document)
	}
	if p.FieldPath != "" {
		b.WriteString(p.FieldPath + ": ")
	}
	b.WriteString(p.Message)
	return b.String()
}

// Ref names an object. The namespace of one that belongs to none is empty.
type Ref struct {
	Kind      string `json:"kind"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
}

func (r Ref) String() string {
	if r.Namespace == "" {
		return r.Kind + " " + r.Name
	}
	return r.Kind + " " + r.Namespace + "/" + r.Name
}

func compareRefs(a, b Ref) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}

func sortProblems(ps []Problem) {
	slices.SortStableFunc(ps, func(a, b Problem) int {
		return cmp.Or(cmp.Compare(a.File, b.File), cmp.Compare(a.Line, b.Line), cmp.Compare(a.Document, b.Document), cmp.Compare(a.FieldPath, b.FieldPath))
	})
}

// clip shortens what a message quotes of a manifest.
func clip(s string) string {
	const most = 60
	if len(s) > most {
		return s[:most] + "..."
	}
	return s
}

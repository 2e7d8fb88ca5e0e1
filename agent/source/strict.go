package source

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"reflect"
	"strconv"
	"strings"
	"sync"
)

// checker compares a tree with the Go type it is to become, and reports every
// difference at once, each with its line: unknown and repeated fields, and wrong
// types.
type checker struct {
	report func(line int, path, message string)
	// hide keeps values out of the messages: the object is a Secret.
	hide bool
}

// got says what n is.
func (c checker) got(n *node) string {
	if w := n.kindWord(); !c.hide || n.shape != scalar || n.value == nil {
		return w
	}
	switch n.value.(type) {
	case bool:
		return "a boolean"
	case json.Number:
		return "a number"
	}
	return "a string"
}

// goField is a field of an API type as JSON sees it.
type goField struct {
	typ reflect.Type
	// owner is the type that declares it, an inlined one where it is inlined.
	owner reflect.Type
}

var fieldsOf sync.Map // reflect.Type → map[string]goField

func jsonFields(t reflect.Type) map[string]goField {
	if m, ok := fieldsOf.Load(t); ok {
		return m.(map[string]goField)
	}
	m := map[string]goField{}
	for i := range t.NumField() {
		f := t.Field(i)
		name, options, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case name == "-" || !f.IsExported():
		case name == "" && (f.Anonymous || strings.Contains(options, "inline")):
			for n, inner := range jsonFields(f.Type) {
				m[n] = inner
			}
		default:
			m[name] = goField{typ: f.Type, owner: t}
		}
	}
	fieldsOf.Store(t, m)
	return m
}

var unmarshaler = reflect.TypeFor[json.Unmarshaler]()

// expectation says in words what a type that reads itself takes.
var expectation = map[string]string{
	"Quantity":    `a quantity such as "500m", 2 or "64Mi"`,
	"IntOrString": "a number or a string",
	"Time":        `a time such as "2006-01-02T15:04:05Z"`,
	"MicroTime":   `a time such as "2006-01-02T15:04:05.000000Z"`,
	"FieldsV1":    "an object",
}

// check reports what in n does not fit t. path is n's own.
func (c checker) check(n *node, t reflect.Type, path string) {
	for _, f := range n.again {
		first := 0
		for _, g := range n.fields {
			if g.name == f.name {
				first = g.line
			}
		}
		c.report(f.line, join(path, f.name), fmt.Sprintf("the field is given a second time; the first is on line %d", first))
	}
	if n.shape == scalar && n.value == nil {
		return // null leaves the field unset
	}
	for t.Kind() == reflect.Pointer {
		t = t.Elem()
	}
	if reflect.PointerTo(t).Implements(unmarshaler) {
		c.checkSelf(n, t, path)
		return
	}
	switch t.Kind() {
	case reflect.Struct:
		c.checkObject(n, t, path)
	case reflect.Map:
		if n.shape != object {
			c.expected(n, path, "an object")
			return
		}
		for _, f := range n.fields {
			c.check(f.value, t.Elem(), path+"["+f.name+"]")
		}
	case reflect.Slice:
		c.checkList(n, t, path)
	default:
		c.checkScalar(n, t, path)
	}
}

func (c checker) expected(n *node, path, what string) {
	c.report(n.line, path, "expected "+what+", got "+c.got(n))
}

func (c checker) checkObject(n *node, t reflect.Type, path string) {
	if n.shape != object {
		c.expected(n, path, "an object")
		return
	}
	known := jsonFields(t)
	for _, f := range n.fields {
		g, ok := known[f.name]
		at := join(path, f.name)
		if !ok {
			c.report(f.line, at, "unknown field "+strconv.Quote(clip(f.name))+suggest(f.name, known))
			continue
		}
		c.check(f.value, g.typ, at)
	}
}

func (c checker) checkList(n *node, t reflect.Type, path string) {
	if t.Elem().Kind() == reflect.Uint8 {
		s, ok := n.value.(string)
		if !ok {
			c.expected(n, path, "a string in base64")
		} else if _, err := base64.StdEncoding.DecodeString(s); err != nil {
			c.report(n.line, path, "expected a string in base64 (stringData takes plain text)")
		}
		return
	}
	if n.shape != list {
		c.expected(n, path, "a list")
		return
	}
	for i, item := range n.items {
		c.check(item, t.Elem(), fmt.Sprintf("%s[%d]", path, i))
	}
}

func (c checker) checkScalar(n *node, t reflect.Type, path string) {
	switch t.Kind() {
	case reflect.String:
		if _, ok := n.value.(string); !ok || n.shape != scalar {
			hint := ""
			if n.shape == scalar {
				hint = ": put it in quotes"
			}
			c.report(n.line, path, "expected a string, got "+c.got(n)+hint)
		}
	case reflect.Bool:
		if _, ok := n.value.(bool); !ok || n.shape != scalar {
			c.expected(n, path, "true or false")
		}
	case reflect.Int, reflect.Int32, reflect.Int64:
		num, ok := n.value.(json.Number)
		if !ok || n.shape != scalar {
			c.expected(n, path, "a whole number")
			return
		}
		if _, err := strconv.ParseInt(string(num), 10, t.Bits()); err != nil {
			c.expected(n, path, fmt.Sprintf("a whole number of %d bits", t.Bits()))
		}
	case reflect.Float64:
		if _, ok := n.value.(json.Number); !ok {
			c.expected(n, path, "a number")
		}
	}
}

// checkSelf asks a type that reads itself.
func (c checker) checkSelf(n *node, t reflect.Type, path string) {
	want := expectation[t.Name()]
	if want == "" {
		want = "a " + t.Name()
	}
	if n.shape != scalar && t.Name() != "FieldsV1" {
		c.expected(n, path, want)
		return
	}
	if err := json.Unmarshal(n.json(), reflect.New(t).Interface()); err != nil {
		c.expected(n, path, want)
	}
}

func join(path, name string) string {
	if path == "" {
		return name
	}
	return path + "." + name
}

// suggest names the known field that a misspelt one most likely stands for.
func suggest(name string, known map[string]goField) string {
	best, least := "", 1+len(name)/3
	for k := range known {
		if strings.EqualFold(k, name) {
			best, least = k, -1
			break
		}
		if d := distance(strings.ToLower(name), strings.ToLower(k)); d < least || d == least && (best == "" || k < best) {
			best, least = k, d
		}
	}
	if best == "" {
		return ""
	}
	return "; did you mean " + strconv.Quote(best) + "?"
}

// distance counts the letters to insert, delete, replace or swap with their
// neighbour to come from a to b.
func distance(a, b string) int {
	if len(a) > 64 || len(b) > 64 {
		return 64
	}
	var two, one, cur [65]int
	for j := range b {
		one[j+1] = j + 1
	}
	for i := range a {
		cur[0] = i + 1
		for j := range b {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			cur[j+1] = min(cur[j]+1, one[j+1]+1, one[j]+cost)
			if i > 0 && j > 0 && a[i] == b[j-1] && a[i-1] == b[j] {
				cur[j+1] = min(cur[j+1], two[j-1]+1)
			}
		}
		two, one = one, cur
	}
	return one[len(b)]
}

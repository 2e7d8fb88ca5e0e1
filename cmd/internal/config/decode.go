package config

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/api/resource"
	yaml "sigs.k8s.io/yaml/goyaml.v3"
)

// position is where a field was given.
type position struct {
	file string
	line int
}

// decoder turns a file into a Config and finds everything that does not fit at
// once. Its depth is that of the Go type, whatever the file holds.
type decoder struct {
	file      string
	problems  []Problem
	positions map[string]position // of each field that was given
}

func (d *decoder) blame(line int, field, format string, args ...any) {
	d.problems = append(d.problems, Problem{d.file, line, field, fmt.Sprintf(format, args...)})
}

var syntaxLine = regexp.MustCompile(`^(?:yaml: )?(?:line (\d+): )?`)

// syntax blames the line that a syntax error names.
func (d *decoder) syntax(err error) {
	text := err.Error()
	m := syntaxLine.FindStringSubmatch(text)
	line, _ := strconv.Atoi(m[1]) // 0 if there is none
	d.blame(line, "", "this is not YAML: %s", clip(text[len(m[0]):], 200))
}

func (d *decoder) document(content []byte, c *Config) {
	if len(content) > maxFile {
		d.blame(0, "", "the file is larger than %d bytes", maxFile)
		return
	}
	y := yaml.NewDecoder(bytes.NewReader(content))
	var doc, next yaml.Node
	if err := y.Decode(&doc); errors.Is(err, io.EOF) {
		d.blame(0, "", "the file is empty: it must at least hold apiVersion: %s and kind: %s", Version, Kind)
		return
	} else if err != nil {
		d.syntax(err)
		return
	}
	if err := y.Decode(&next); err == nil {
		d.blame(next.Line, "", "a second document begins here: a configuration is one document")
	} else if !errors.Is(err, io.EOF) {
		d.syntax(err)
	}
	c.APIVersion, c.Kind = "", "" // these have no default
	d.value(doc.Content[0], reflect.ValueOf(c).Elem(), "")
	d.identity(c)
}

func (d *decoder) identity(c *Config) {
	for _, f := range []struct{ field, got, want string }{{"apiVersion", c.APIVersion, Version}, {"kind", c.Kind, Kind}} {
		if at, given := d.positions[f.field]; f.got != f.want && given {
			d.blame(at.line, f.field, "expected %s, got %q", f.want, clip(f.got, 60))
		} else if !given {
			d.blame(1, f.field, "this field is missing; expected %s: %s", f.field, f.want)
		}
	}
}

func (d *decoder) value(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind == yaml.AliasNode {
		n = n.Alias
	}
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // leaves the default
	}
	switch v.Interface().(type) {
	case time.Duration:
		d.duration(n, v, path)
		return
	case Size:
		d.size(n, v, path)
		return
	}
	switch v.Kind() {
	case reflect.Struct:
		d.object(n, v, path)
	case reflect.Slice:
		d.list(n, v, path)
	case reflect.Map:
		d.table(n, v, path)
	default:
		d.scalar(n, v, path)
	}
}

// fields maps the names of t's fields to their indexes.
func fields(t reflect.Type) map[string]int {
	m := map[string]int{}
	for i := range t.NumField() {
		if name := t.Field(i).Tag.Get("json"); name != "" {
			m[name] = i
		}
	}
	return m
}

func (d *decoder) object(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.blame(n.Line, path, "expected fields with values, got %s", word(n))
		return
	}
	known, first := fields(v.Type()), map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := strings.TrimPrefix(path+"."+clip(key.Value, 60), ".")
		index, ok := known[key.Value]
		switch {
		case !ok || key.Kind != yaml.ScalarNode:
			d.blame(key.Line, at, "unknown field%s", suggest(key.Value, known))
		case first[key.Value] > 0:
			d.blame(key.Line, at, "the field is given a second time; the first is on line %d", first[key.Value])
		default:
			first[key.Value] = key.Line
			d.positions[at] = position{d.file, key.Line}
			d.value(value, v.Field(index), at)
		}
	}
}

func (d *decoder) list(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.SequenceNode {
		got := word(n)
		if path == "manifests.urls" {
			got = "something else" // an address may hold a token
		}
		d.blame(n.Line, path, "expected a list, got %s", got)
		return
	}
	out := reflect.MakeSlice(v.Type(), len(n.Content), len(n.Content))
	for i, item := range n.Content {
		at := fmt.Sprintf("%s[%d]", path, i)
		d.positions[at] = position{d.file, item.Line}
		d.value(item, out.Index(i), at)
	}
	v.Set(out)
}

// table decodes names with values. Those of headers are secret: no value is shown.
func (d *decoder) table(n *yaml.Node, v reflect.Value, path string) {
	if n.Kind != yaml.MappingNode {
		d.blame(n.Line, path, "expected names with values")
		return
	}
	if v.Type().Elem().Kind() == reflect.Struct {
		d.structs(n, v, path)
		return
	}
	out := map[string]string{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := path + "[" + clip(key.Value, 60) + "]"
		_, again := out[key.Value]
		switch {
		case again:
			d.blame(key.Line, at, "the name is given a second time")
		case value.Kind != yaml.ScalarNode || value.Tag != "!!str":
			d.blame(value.Line, at, "expected a string: put it in quotes")
		default:
			out[key.Value] = value.Value
			d.positions[at] = position{d.file, key.Line}
		}
	}
	v.Set(reflect.ValueOf(out))
}

// structs decodes names with structs; a string stands for one that has only a path.
func (d *decoder) structs(n *yaml.Node, v reflect.Value, path string) {
	out := reflect.MakeMap(v.Type())
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], n.Content[i+1]
		at := path + "[" + clip(key.Value, 60) + "]"
		if out.MapIndex(reflect.ValueOf(key.Value)).IsValid() {
			d.blame(key.Line, at, "the name is given a second time")
			continue
		}
		d.positions[at] = position{d.file, key.Line}
		one := reflect.New(v.Type().Elem()).Elem()
		if value.Kind == yaml.ScalarNode {
			d.value(value, one.FieldByName("Path"), at)
		} else {
			d.value(value, one, at)
		}
		out.SetMapIndex(reflect.ValueOf(key.Value), one)
	}
	v.Set(out)
}

func (d *decoder) scalar(n *yaml.Node, v reflect.Value, path string) {
	tag := n.ShortTag()
	switch v.Kind() {
	case reflect.String:
		if n.Kind != yaml.ScalarNode || tag != "!!str" {
			hint := ""
			if n.Kind == yaml.ScalarNode {
				hint = ": put it in quotes"
			}
			d.blame(n.Line, path, "expected a string, got %s%s", word(n), hint)
			return
		}
		v.SetString(n.Value)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || tag != "!!bool" {
			d.blame(n.Line, path, "expected true or false, got %s", word(n))
			return
		}
		v.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int:
		i, err := strconv.ParseInt(n.Value, 10, 64)
		if n.Kind != yaml.ScalarNode || tag != "!!int" || err != nil {
			d.blame(n.Line, path, "expected a whole number, got %s", word(n))
			return
		}
		v.SetInt(i)
	}
}

func (d *decoder) duration(n *yaml.Node, v reflect.Value, path string) {
	t, err := time.ParseDuration(n.Value)
	if n.Kind != yaml.ScalarNode || err != nil {
		d.blame(n.Line, path, `expected a duration such as "300s" or "5m", got %s`, word(n))
		return
	}
	v.SetInt(int64(t))
}

func (d *decoder) size(n *yaml.Node, v reflect.Value, path string) {
	q, err := resource.ParseQuantity(clip(n.Value, 60))
	if n.Kind != yaml.ScalarNode || err != nil {
		d.blame(n.Line, path, `expected a size such as "10Mi", got %s`, word(n))
		return
	}
	v.SetInt(q.Value())
}

// word says what n is.
func word(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "fields with values"
	case yaml.SequenceNode:
		return "a list"
	}
	switch n.ShortTag() {
	case "!!str":
		return "the string " + strconv.Quote(clip(n.Value, 60))
	case "!!int", "!!float":
		return "the number " + clip(n.Value, 60)
	}
	return strconv.Quote(clip(n.Value, 60))
}

func clip(s string, most int) string {
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "..."
}

// maxKnown is how many known fields a message lists.
const maxKnown = 20

// suggest names the known field that a misspelt one most likely stands for.
func suggest(name string, known map[string]int) string {
	best, least := "", 1+len(name)/3
	names := make([]string, 0, len(known))
	for k := range known {
		names = append(names, k)
	}
	slices.Sort(names)
	for _, k := range names {
		if n := distance(strings.ToLower(clip(name, 60)), strings.ToLower(k)); n < least {
			best, least = k, n
		}
	}
	if best == "" && len(names) > maxKnown {
		return "; `berth config default` shows all that are known"
	}
	if best == "" {
		return "; known here: " + strings.Join(names, ", ")
	}
	return "; did you mean " + strconv.Quote(best) + "?"
}

// distance counts the letters to insert, delete or replace to come from a to b.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := range len(a) {
		corner := row[0]
		row[0] = i + 1
		for j := range len(b) {
			cost := 1
			if a[i] == b[j] {
				cost = 0
			}
			corner, row[j+1] = row[j+1], min(row[j+1]+1, row[j]+1, corner+cost)
		}
	}
	return row[len(b)]
}

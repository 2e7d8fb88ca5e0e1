package source

import (
	"bytes"
	"encoding/json"
	"math"
	"slices"
	"strconv"
)

// Limits on one document, far above any real manifest: they bound what a
// hostile one ("YAML bomb") can cost.
const (
	maxContent = 10 << 20 // bytes of a file or an HTTP answer
	maxNodes   = 500_000  // values of a document, aliases expanded
	maxDepth   = 100
)

// shape is what a node is.
type shape int

const (
	scalar shape = iota
	list
	object
)

// node is one value of a document and where it stands. JSON and YAML both
// become nodes, so that everything after knows lines and nothing of syntax.
type node struct {
	line  int
	shape shape
	// value of a scalar: nil, bool, json.Number or string.
	value any
	// text of a scalar as it was written.
	text  string
	items []*node
	// fields in the order they were written, the first of each name only.
	fields []pair
	// again holds the later ones of a name.
	again []pair
}

type pair struct {
	name  string
	line  int
	value *node
}

// get returns the field called name, nil if there is none or n is no object.
func (n *node) get(name string) *node {
	if n == nil {
		return nil
	}
	for i := range n.fields {
		if n.fields[i].name == name {
			return n.fields[i].value
		}
	}
	return nil
}

// str returns the string that field name holds, else "".
func (n *node) str(name string) string {
	f := n.get(name)
	if f == nil {
		return ""
	}
	s, _ := f.value.(string)
	return s
}

// add appends a field, or remembers that its name came a second time.
func (n *node) add(f pair, seen map[string]bool) {
	if seen[f.name] {
		n.again = append(n.again, f)
		return
	}
	seen[f.name] = true
	n.fields = append(n.fields, f)
}

// kindWord says what n is in a message.
func (n *node) kindWord() string {
	switch n.shape {
	case list:
		return "a list"
	case object:
		return "an object"
	}
	switch v := n.value.(type) {
	case nil:
		return "nothing"
	case bool:
		return "the boolean " + clip(n.text)
	case json.Number:
		return "the number " + clip(n.text)
	case string:
		return "the string " + strconv.Quote(clip(v))
	}
	return "something else"
}

// appendJSON writes n as canonical JSON: fields sorted, no white space. It is
// what a pod's UID is made from, so that comments and layout do not matter.
func (n *node) appendJSON(b *bytes.Buffer) {
	switch n.shape {
	case list:
		b.WriteByte('[')
		for i, item := range n.items {
			if i > 0 {
				b.WriteByte(',')
			}
			item.appendJSON(b)
		}
		b.WriteByte(']')
	case object:
		fields := slices.Clone(n.fields)
		slices.SortFunc(fields, func(x, y pair) int { return bytes.Compare([]byte(x.name), []byte(y.name)) })
		b.WriteByte('{')
		for i, f := range fields {
			if i > 0 {
				b.WriteByte(',')
			}
			writeScalar(b, f.name)
			b.WriteByte(':')
			f.value.appendJSON(b)
		}
		b.WriteByte('}')
	default:
		writeScalar(b, n.value)
	}
}

func writeScalar(b *bytes.Buffer, v any) {
	text, err := json.Marshal(v)
	if err != nil { // a json.Number that is none: cannot come from a parser
		text = []byte("null")
	}
	b.Write(text)
}

func (n *node) json() []byte {
	var b bytes.Buffer
	n.appendJSON(&b)
	return b.Bytes()
}

// number renders a float as JSON does. NaN and infinities have no number there.
func number(f float64) (json.Number, bool) {
	if math.IsNaN(f) || math.IsInf(f, 0) {
		return "", false
	}
	if f == math.Trunc(f) && math.Abs(f) < 1e15 {
		return json.Number(strconv.FormatInt(int64(f), 10)), true
	}
	return json.Number(strconv.FormatFloat(f, 'g', -1, 64)), true
}

package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"regexp"
	"strconv"
	"strings"

	yaml "sigs.k8s.io/yaml/goyaml.v3"
)

// text is one document of a file, not yet parsed.
type text struct {
	line int // of its first line in the file, from 1
	body []byte
}

// syntax is a document that is not YAML or JSON.
type syntax struct {
	line    int
	message string
}

func (e *syntax) Error() string { return e.message }

// split cuts content at its "---" lines, before any parsing, so that a syntax
// error in one document leaves the others readable.
func split(content []byte) []text {
	content = bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))
	var all []text
	cur := text{line: 1}
	line, start := 1, 0
	for at := 0; at < len(content); line++ {
		end := len(content)
		if i := bytes.IndexByte(content[at:], '\n'); i >= 0 {
			end = at + i + 1
		}
		l := content[at:end]
		if bytes.HasPrefix(l, []byte("---")) && (len(l) == 3 || l[3] == ' ' || l[3] == '\t' || l[3] == '\r' || l[3] == '\n') {
			cur.body = content[start:at]
			all = append(all, cur)
			start = at + 3
			cur = text{line: line}
		}
		at = end
	}
	cur.body = content[start:]
	return append(all, cur)
}

// parse returns the documents' trees; empty documents are left out. Each error
// is a *syntax and belongs to the document of that index, from 1.
func parse(content []byte) (docs []parsed) {
	if trimmed := bytes.TrimLeft(content, " \t\r\n\xef\xbb\xbf"); len(trimmed) > 0 && trimmed[0] == '{' {
		if docs, err := parseJSON(content); err == nil {
			return docs
		}
		// A flow mapping in YAML begins the same way.
		docs := parseYAML(content)
		for _, d := range docs {
			if d.err != nil { // then it was meant as JSON, whose message says more
				docs, _ := parseJSON(content)
				return docs
			}
		}
		return docs
	}
	return parseYAML(content)
}

type parsed struct {
	index int // of the document in its file, from 1
	root  *node
	err   *syntax
}

func parseYAML(content []byte) []parsed {
	var docs []parsed
	index := 0
	for _, t := range split(content) {
		root, err := parseDocument(t)
		if root == nil && err == nil {
			continue // nothing but white space and comments
		}
		index++
		docs = append(docs, parsed{index: index, root: root, err: err})
	}
	return docs
}

var yamlLine = regexp.MustCompile(`^yaml: (?:line (\d+): )?(.*)$`)

func parseDocument(t text) (root *node, failed *syntax) {
	defer func() {
		if p := recover(); p != nil { // the parser's own bugs must not end the agent
			root, failed = nil, &syntax{line: t.line, message: fmt.Sprintf("this is not YAML: %v", p)}
		}
	}()
	var doc yaml.Node
	dec := yaml.NewDecoder(bytes.NewReader(t.body))
	if err := dec.Decode(&doc); errors.Is(err, io.EOF) {
		return nil, nil
	} else if err != nil {
		return nil, yamlError(t, err)
	}
	var more yaml.Node
	if err := dec.Decode(&more); err == nil || !errors.Is(err, io.EOF) {
		if err == nil {
			return nil, &syntax{line: t.line + more.Line - 1, message: "a second document begins without a line of --- before it"}
		}
		return nil, yamlError(t, err)
	}
	if len(doc.Content) == 0 {
		return nil, nil
	}
	b := treeBuilder{offset: t.line - 1}
	root, failed = b.build(doc.Content[0], 0)
	if failed == nil && root.shape == scalar && root.value == nil {
		return nil, nil
	}
	return root, failed
}

func yamlError(t text, err error) *syntax {
	m := yamlLine.FindStringSubmatch(strings.ReplaceAll(err.Error(), "\n", " "))
	if m == nil {
		return &syntax{line: t.line, message: "this is not YAML: " + clip(err.Error())}
	}
	line := t.line
	if n, err := strconv.Atoi(m[1]); err == nil {
		line += n - 1
	}
	return &syntax{line: line, message: "this is not YAML: " + m[2]}
}

// treeBuilder turns YAML nodes into ours, expanding aliases and merge keys within bounds.
type treeBuilder struct {
	offset int // lines before the document
	nodes  int
	open   []*yaml.Node // anchors being expanded: one inside itself has no end
}

func (b *treeBuilder) build(y *yaml.Node, depth int) (*node, *syntax) {
	line := y.Line + b.offset
	if b.nodes++; b.nodes > maxNodes {
		return nil, &syntax{line, fmt.Sprintf("the document has more than %d values, aliases counted as often as they are used", maxNodes)}
	}
	if depth > maxDepth {
		return nil, &syntax{line, fmt.Sprintf("the document is nested deeper than %d levels", maxDepth)}
	}
	switch y.Kind {
	case yaml.AliasNode:
		for _, o := range b.open {
			if o == y.Alias {
				return nil, &syntax{line, "the alias *" + clip(y.Value) + " stands inside what it stands for"}
			}
		}
		b.open = append(b.open, y.Alias)
		n, err := b.build(y.Alias, depth+1)
		b.open = b.open[:len(b.open)-1]
		return n, err
	case yaml.SequenceNode:
		n := &node{line: line, shape: list}
		for _, c := range y.Content {
			item, err := b.build(c, depth+1)
			if err != nil {
				return nil, err
			}
			n.items = append(n.items, item)
		}
		return n, nil
	case yaml.MappingNode:
		return b.mapping(y, depth)
	case yaml.ScalarNode:
		return b.scalar(y)
	}
	return nil, &syntax{line, "this is not a value"}
}

func (b *treeBuilder) mapping(y *yaml.Node, depth int) (*node, *syntax) {
	n := &node{line: y.Line + b.offset, shape: object}
	seen := map[string]bool{}
	var merged []*yaml.Node
	for i := 0; i+1 < len(y.Content); i += 2 {
		key, value := y.Content[i], y.Content[i+1]
		for key.Kind == yaml.AliasNode {
			key = key.Alias
		}
		if key.Kind != yaml.ScalarNode {
			return nil, &syntax{key.Line + b.offset, "a key of an object must be a word, not a list or an object"}
		}
		if key.Tag == "!!merge" {
			merged = append(merged, value)
			continue
		}
		v, err := b.build(value, depth+1)
		if err != nil {
			return nil, err
		}
		n.add(pair{key.Value, y.Content[i].Line + b.offset, v}, seen)
	}
	for _, m := range merged {
		if err := b.merge(n, m, seen, depth); err != nil {
			return nil, err
		}
	}
	return n, nil
}

// merge adds the fields that "<<: *alias" brings and n has not.
func (b *treeBuilder) merge(n *node, from *yaml.Node, seen map[string]bool, depth int) *syntax {
	m, err := b.build(from, depth+1)
	if err != nil {
		return err
	}
	sources := []*node{m}
	if m.shape == list {
		sources = m.items
	}
	for _, s := range sources {
		if s.shape != object {
			return &syntax{from.Line + b.offset, "<< takes an object or a list of objects"}
		}
		for _, f := range s.fields {
			if !seen[f.name] {
				n.add(f, seen)
			}
		}
	}
	return nil
}

// yaml11 are the words that Kubernetes' parser takes for booleans beside true
// and false.
var yaml11 = map[string]bool{"y": true, "yes": true, "on": true, "n": false, "no": false, "off": false}

func (b *treeBuilder) scalar(y *yaml.Node) (*node, *syntax) {
	n := &node{line: y.Line + b.offset, text: y.Value}
	plain := y.Style&(yaml.SingleQuotedStyle|yaml.DoubleQuotedStyle|yaml.LiteralStyle|yaml.FoldedStyle|yaml.TaggedStyle) == 0
	switch y.ShortTag() {
	case "!!null":
		return n, nil
	case "!!bool":
		var v bool
		if err := y.Decode(&v); err != nil {
			return nil, &syntax{n.line, "not a boolean: " + clip(y.Value)}
		}
		n.value = v
	case "!!int", "!!float":
		return b.number(n, y)
	case "!!str", "!!timestamp":
		n.value = y.Value
		if v, ok := yaml11[strings.ToLower(y.Value)]; ok && plain && oneCase(y.Value) {
			n.value = v
		}
	case "!!binary":
		var s string
		if err := y.Decode(&s); err != nil {
			return nil, &syntax{n.line, "not base64 after !!binary"}
		}
		n.value = s
	default:
		return nil, &syntax{n.line, "the tag " + clip(y.Tag) + " has no meaning in a manifest"}
	}
	return n, nil
}

// oneCase: "yes", "Yes" and "YES" are words of YAML 1.1, "yEs" is not.
func oneCase(s string) bool {
	return s == strings.ToLower(s) || s == strings.ToUpper(s) || s[1:] == strings.ToLower(s[1:])
}

func (b *treeBuilder) number(n *node, y *yaml.Node) (*node, *syntax) {
	var v any
	if err := y.Decode(&v); err != nil {
		return nil, &syntax{n.line, "not a number: " + clip(y.Value)}
	}
	switch v := v.(type) {
	case int:
		n.value = json.Number(strconv.Itoa(v))
	case int64:
		n.value = json.Number(strconv.FormatInt(v, 10))
	case uint64:
		n.value = json.Number(strconv.FormatUint(v, 10))
	case float64:
		f, ok := number(v)
		if !ok {
			return nil, &syntax{n.line, clip(y.Value) + " is not a number that a manifest can hold"}
		}
		n.value = f
	default:
		return nil, &syntax{n.line, "not a number: " + clip(y.Value)}
	}
	return n, nil
}

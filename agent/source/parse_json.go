package source

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sort"
)

// parseJSON reads one JSON document after the other. At a syntax error it
// returns the documents before it, one that carries the error, and the error:
// what follows cannot be told apart any more.
func parseJSON(content []byte) ([]parsed, error) {
	r := jsonReader{content: bytes.TrimPrefix(content, []byte("\xef\xbb\xbf"))}
	r.dec = json.NewDecoder(bytes.NewReader(r.content))
	r.dec.UseNumber()
	for i, c := range r.content {
		if c == '\n' {
			r.ends = append(r.ends, int64(i))
		}
	}
	var docs []parsed
	for index := 1; ; index++ {
		r.nodes = 0
		root, err := r.value(0)
		if errors.Is(err, io.EOF) && root == nil {
			return docs, nil
		}
		if err != nil {
			var s *syntax
			if !errors.As(err, &s) {
				s = r.syntax(err)
			}
			return append(docs, parsed{index: index, err: s}), s
		}
		docs = append(docs, parsed{index: index, root: root})
	}
}

type jsonReader struct {
	content []byte
	dec     *json.Decoder
	ends    []int64 // offsets of line ends
	nodes   int
}

func (r *jsonReader) line() int { return r.lineAt(r.dec.InputOffset()) }

func (r *jsonReader) lineAt(offset int64) int {
	return 1 + sort.Search(len(r.ends), func(i int) bool { return r.ends[i] >= offset })
}

func (r *jsonReader) syntax(err error) *syntax {
	line := r.line()
	var at *json.SyntaxError
	if errors.As(err, &at) {
		line = r.lineAt(at.Offset - 1)
	}
	if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
		return &syntax{line, "this is not JSON: it ends in the middle"}
	}
	return &syntax{line, "this is not JSON: " + clip(err.Error())}
}

// value reads one value. At the end of the input it returns nil and io.EOF.
func (r *jsonReader) value(depth int) (*node, error) {
	tok, err := r.dec.Token()
	if err != nil {
		if errors.Is(err, io.EOF) && depth > 0 {
			err = io.ErrUnexpectedEOF
		}
		return nil, err
	}
	n := &node{line: r.line()}
	if r.nodes++; r.nodes > maxNodes {
		return nil, &syntax{n.line, fmt.Sprintf("the document has more than %d values", maxNodes)}
	}
	if depth > maxDepth {
		return nil, &syntax{n.line, fmt.Sprintf("the document is nested deeper than %d levels", maxDepth)}
	}
	switch t := tok.(type) {
	case json.Delim:
		if t == '[' {
			return n, r.list(n, depth)
		}
		return n, r.object(n, depth)
	case json.Number:
		n.value, n.text = t, string(t)
	case string:
		n.value, n.text = t, t
	case bool:
		n.value, n.text = t, fmt.Sprint(t)
	}
	return n, nil
}

func (r *jsonReader) list(n *node, depth int) error {
	n.shape = list
	for r.dec.More() {
		item, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.items = append(n.items, item)
	}
	return r.end()
}

func (r *jsonReader) object(n *node, depth int) error {
	n.shape = object
	seen := map[string]bool{}
	for r.dec.More() {
		tok, err := r.dec.Token()
		if err != nil {
			return unexpected(err)
		}
		name, ok := tok.(string)
		if !ok {
			return &syntax{r.line(), "this is not JSON: a field's name must be a string"}
		}
		line := r.line()
		v, err := r.value(depth + 1)
		if err != nil {
			return err
		}
		n.add(pair{name, line, v}, seen)
	}
	return r.end()
}

func (r *jsonReader) end() error {
	_, err := r.dec.Token()
	return unexpected(err)
}

func unexpected(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}

package layer

import (
	"slices"
	"strings"
)

const (
	// maxPending and maxPendingBytes bound what is left to Settle, which runs in
	// the runtime's own process, where many layers may wait; a layer with more is
	// applied over those below.
	maxPending      = 1024
	maxPendingBytes = 64 << 10
	// gone, as a presence, is a path that the layer deletes.
	gone presence = -1
)

// Pending is what was left open by a layer that was applied alone. Paths are
// bytes, for they need not be UTF-8.
type Pending struct {
	// Dirs were made on the way to an entry; Weak ones only to delete in them.
	Dirs [][]byte `json:"dirs,omitempty"`
	Weak [][]byte `json:"weak,omitempty"`
	// Gone were deleted.
	Gone [][]byte `json:"gone,omitempty"`
}

type pending struct {
	paths map[string]presence
	bytes int
	weak  int // how many are
}

func newPending() pending { return pending{paths: map[string]presence{}} }

func (p *pending) add(path string, what presence) error {
	old, ok := p.paths[path]
	if ok && old == weak {
		p.weak--
	}
	if !ok {
		p.bytes += len(path)
	}
	if what == weak {
		p.weak++
	}
	p.paths[path] = what
	if len(p.paths) > maxPending || p.bytes > maxPendingBytes {
		return ErrNeedsLower
	}
	return nil
}

func (p *pending) drop(path string) {
	what, ok := p.paths[path]
	if !ok {
		return
	}
	if what == weak {
		p.weak--
	}
	p.bytes -= len(path)
	delete(p.paths, path)
}

// dropBelow drops path and all below it.
func (p *pending) dropBelow(path string) {
	p.drop(path)
	for k := range p.paths {
		if strings.HasPrefix(k, path+"/") {
			p.drop(k)
		}
	}
}

// strengthen notes that more than whiteouts is in the directory path.
func (p *pending) strengthen(path string) {
	if p.paths[path] == weak {
		p.paths[path] = strong
		p.weak--
	}
}

// below lists the paths below dir of one kind.
func (p *pending) below(dir string, what presence) []string {
	var out []string
	for k, v := range p.paths {
		if v == what && strings.HasPrefix(k, dir+"/") {
			out = append(out, k)
		}
	}
	return out
}

// list gives the paths in order, those above before those below.
func (p *pending) list() (Pending, error) {
	var out Pending
	keys := make([]string, 0, len(p.paths))
	for k := range p.paths {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		switch p.paths[k] {
		case strong:
			out.Dirs = append(out.Dirs, []byte(k))
		case weak:
			out.Weak = append(out.Weak, []byte(k))
		case gone:
			out.Gone = append(out.Gone, []byte(k))
		}
	}
	return out, nil
}

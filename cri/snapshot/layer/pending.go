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
)

// open is a path about which only the layers below know.
type open struct {
	// What it is: weak or strong, as the directory was made, gone or fresh.
	What presence `json:"what"`
	// Heir counts the directories above it that were open when it was made. Like
	// every new directory it inherits the group of the one it is made in, if that
	// hands it on (mode bit 02000).
	Heir int `json:"heir,omitempty"`
	// Skip counts those of them, from below, that are fresh as well.
	Skip int `json:"skip,omitempty"`
}

const (
	// gone is a path that the layer deletes.
	gone presence = 100
	// fresh is a directory about which only Heir is open.
	fresh presence = 101
)

// Pending is what was left open by a layer that was applied alone, those above
// before those below.
type Pending []openPath

// openPath is one of them. Names are bytes, for they need not be UTF-8.
type openPath struct {
	Name []byte `json:"name"`
	open
}

type pending struct {
	paths map[string]open
	bytes int
	weak  int // how many are
}

func newPending() pending { return pending{paths: map[string]open{}} }

func (p *pending) add(path string, what presence) error {
	p.drop(path)
	above, _ := splitLast(path)
	o := open{What: what}
	if over, ok := p.paths[above]; ok && path != "" && what != gone {
		o.Heir = over.Heir + 1
		if over.What == fresh {
			o.Skip = over.Skip + 1
		}
	}
	if what == fresh && o.Heir == 0 {
		return nil
	}
	p.bytes += len(path)
	if what == weak {
		p.weak++
	}
	p.paths[path] = o
	if len(p.paths) > maxPending || p.bytes > maxPendingBytes {
		return ErrNeedsLower
	}
	return nil
}

func splitLast(path string) (dir, base string) {
	i := strings.LastIndexByte(path, '/')
	return path[:max(i, 0)], path[i+1:]
}

func (p *pending) drop(path string) {
	o, ok := p.paths[path]
	if !ok {
		return
	}
	if o.What == weak {
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
	if o := p.paths[path]; o.What == weak {
		o.What = strong
		p.paths[path] = o
		p.weak--
	}
}

// is tells whether path is one of a kind.
func (p *pending) is(path string, what ...presence) bool {
	o, ok := p.paths[path]
	return ok && slices.Contains(what, o.What)
}

// below lists the paths below dir of some kinds, those below first.
func (p *pending) below(dir string, what ...presence) []string {
	var out []string
	for k := range p.paths {
		if strings.HasPrefix(k, dir+"/") && p.is(k, what...) {
			out = append(out, k)
		}
	}
	slices.Sort(out)
	slices.Reverse(out)
	return out
}

func (p *pending) list() Pending {
	var out Pending
	keys := make([]string, 0, len(p.paths))
	for k := range p.paths {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		out = append(out, openPath{Name: []byte(k), open: p.paths[k]})
	}
	return out
}

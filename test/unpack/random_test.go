package unpack

import (
	"archive/tar"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"time"
)

// random makes images of a few layers over a few names, so that layers meet.
type random struct {
	*rand.Rand
	below map[string]byte // type of what the layers so far have, by path
	here  map[string]byte
}

func randomImage(seed uint64) img {
	r := &random{Rand: rand.New(rand.NewPCG(seed, 4)), below: map[string]byte{}}
	out := img{name: fmt.Sprintf("seed %d", seed)}
	media := []string{gzipd, zstdd, plain}
	for range 2 + r.IntN(5) {
		r.here = map[string]byte{}
		l := layer{media: media[r.IntN(3)]}
		for range 3 + r.IntN(40) {
			l.entries = append(l.entries, r.entry()...)
		}
		out.layers = append(out.layers, l)
		for k, v := range r.here {
			r.remember(k, v)
		}
	}
	return out
}

// remember notes what a layer has put at path.
func (r *random) remember(name string, kind byte) {
	if kind != tar.TypeDir {
		for k := range r.below {
			if strings.HasPrefix(k, name+"/") {
				delete(r.below, k)
			}
		}
	}
	if kind == 0 {
		delete(r.below, name)
		return
	}
	r.below[name] = kind
}

func (r *random) name() string {
	words := []string{"a", "b", "c", "dd", "e.e", "f\xe9"}
	n := 1 + r.IntN(4)
	var parts []string
	for range n {
		parts = append(parts, words[r.IntN(len(words))])
	}
	return path.Join(parts...)
}

// where is a name whose directories are directories, or not there, by all that was
// generated so far.
func (r *random) where() string {
	for {
		n := r.name()
		ok := true
		for d := path.Dir(n); d != "."; d = path.Dir(d) {
			k, there := r.here[d]
			if !there {
				k, there = r.below[d]
			}
			ok = ok && (!there || k == tar.TypeDir)
		}
		if ok {
			return n
		}
	}
}

func (r *random) change() []func(*tar.Header) {
	out := []func(*tar.Header){owner(r.IntN(3)*1000, r.IntN(3)*500), when(time.Unix(int64(r.IntN(1_600_000_000)), int64(r.IntN(1_000_000_000))))}
	for range r.IntN(3) {
		out = append(out, attr([]string{"user.a", "user.b", "trusted.c"}[r.IntN(3)], fmt.Sprint(r.IntN(100))))
	}
	return out
}

func (r *random) entry() []entry {
	n := r.where()
	switch p := r.IntN(100); {
	case p < 35:
		r.put(n, tar.TypeReg)
		return []entry{file(n, strings.Repeat(fmt.Sprint(r.IntN(1000)), r.IntN(500)), append(r.change(), mode(int64(r.IntN(0o10000))))...)}
	case p < 60:
		r.put(n, tar.TypeDir)
		return []entry{dir(n, int64(r.IntN(0o10000)), r.change()...)}
	case p < 68:
		r.put(n, tar.TypeSymlink)
		return []entry{link(n, []string{"", "/", "../"}[r.IntN(3)]+r.name())}
	case p < 72:
		r.put(n, tar.TypeFifo)
		return []entry{node(n, []byte{tar.TypeFifo, tar.TypeChar, tar.TypeBlock}[r.IntN(3)], 1, int64(1+r.IntN(9)))}
	case p < 80:
		return r.hardLink(n)
	case p < 92:
		return r.delete(gone)
	}
	return r.delete(opaque)
}

// put notes an entry of this layer: what it replaces goes with all below it.
func (r *random) put(n string, kind byte) {
	for k := range r.here {
		if kind != tar.TypeDir && strings.HasPrefix(k, n+"/") {
			delete(r.here, k)
		}
	}
	r.here[n] = kind
	for d := path.Dir(n); d != "."; d = path.Dir(d) {
		r.here[d] = tar.TypeDir
	}
}

// hardLink links to a file of this layer or of one below.
func (r *random) hardLink(n string) []entry {
	from := r.here
	if r.IntN(3) == 0 {
		from = r.below
	}
	var targets []string
	for k, v := range from {
		if v == tar.TypeReg && k != n && r.here[k] != 0 == (r.here[k] == v) {
			targets = append(targets, k)
		}
	}
	if len(targets) == 0 {
		return nil
	}
	slices.Sort(targets)
	to := targets[r.IntN(len(targets))]
	r.put(n, tar.TypeReg)
	return []entry{hard(n, to)}
}

// delete deletes something that is below, and may be in this layer too.
func (r *random) delete(how func(string) entry) []entry {
	var have []string
	for k := range r.below {
		have = append(have, k)
	}
	if len(have) == 0 {
		return nil
	}
	slices.Sort(have)
	n := have[r.IntN(len(have))]
	if _, ok := r.here[n]; !ok && path.Base(how(n).Name) != ".wh..wh..opq" {
		r.remember(n, 0)
	}
	return []entry{how(n)}
}

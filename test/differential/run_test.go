package differential

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
	"reflect"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	v1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"
)

// setting reads a number from the environment.
func setting(t *testing.T, name string, otherwise int) int {
	s := os.Getenv(name)
	if s == "" {
		return otherwise
	}
	n, err := strconv.Atoi(s)
	if err != nil {
		t.Fatalf("%s is no number: %q", name, s)
	}
	return n
}

// comparison is one way to hold Berth against upstream.
type comparison struct {
	// which is its name in testdata/differences.txt.
	which string
	// seeds are the pods to begin with, may the fields to change.
	seeds []*v1.Pod
	may   fields
	// compare tells the differences about p, made from seed.
	compare func(seed, p *v1.Pod) []difference
}

// sample is a pod that was made: a seed and the edits made to it.
type sample struct {
	seed  *v1.Pod
	edits []edit
}

// sample makes the pod of a number, and says how.
func (c comparison) sample(number, run int) (sample, *v1.Pod) {
	rng := rand.New(rand.NewPCG(uint64(number), uint64(run)))
	s := sample{seed: c.seeds[number%len(c.seeds)]}
	p := s.seed.DeepCopy()
	for range 1 + rng.IntN(4) {
		s.edits = append(s.edits, change(rng, p, c.may))
	}
	return s, p
}

func (s sample) pod() *v1.Pod {
	p := s.seed.DeepCopy()
	for _, e := range s.edits {
		e.make(p)
	}
	return p
}

// finding is a difference, with the smallest sample that shows it and how many do.
type finding struct {
	difference
	sample sample
	count  int
}

// hunt compares many samples, and reports what differs beyond the known differences.
func hunt(t *testing.T, c comparison) {
	t.Helper()
	n, run := setting(t, "BERTH_DIFF", 5000), setting(t, "BERTH_DIFF_SEED", 1)
	known := readRules(t, c.which)
	found := map[string]*finding{}
	var lock sync.Mutex
	var next atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				s, p := c.sample(i, run)
				differences := c.compare(s.seed, p)
				lock.Lock()
				for _, d := range differences {
					note(found, d, s)
				}
				lock.Unlock()
			}
		})
	}
	workers.Wait()
	for _, f := range found {
		if known.allow(f.difference) {
			delete(found, f.signature())
		}
	}
	report(t, found, c)
	if n < 5000 {
		return
	}
	for _, line := range known.unused() {
		t.Errorf("testdata/differences.txt: no pod needs the line %q: remove it", line)
	}
}

func note(found map[string]*finding, d difference, s sample) {
	f := found[d.signature()]
	if f == nil {
		f = &finding{difference: d, sample: s}
		found[d.signature()] = f
	}
	if len(s.edits) < len(f.sample.edits) {
		f.difference, f.sample = d, s
	}
	f.count++
}

// report fails with every kind of difference, the frequent ones first, and with
// minimised pods for some.
func report(t *testing.T, found map[string]*finding, c comparison) {
	t.Helper()
	if len(found) == 0 {
		return
	}
	all := slices.SortedFunc(maps.Values(found), func(a, b *finding) int {
		if a.count != b.count {
			return b.count - a.count
		}
		return strings.Compare(a.signature(), b.signature())
	})
	t.Errorf("%d kinds of differences:", len(all))
	for _, f := range all {
		t.Logf("%6d  %s", f.count, f.signature())
	}
	for _, f := range all[:min(len(all), setting(t, "BERTH_DIFF_SHOW", 5))] {
		p := c.minimise(f.sample, func(p *v1.Pod) bool {
			return slices.ContainsFunc(c.compare(f.sample.seed, p), func(d difference) bool { return d.signature() == f.signature() })
		})
		t.Logf("%s", c.show(f.sample.seed, p))
	}
}

// show prints a pod, what is said of it, and for one that was changed how.
func (c comparison) show(seed, p *v1.Pod) string {
	var b strings.Builder
	b.WriteString("---\n")
	for _, d := range c.compare(seed, p) {
		fmt.Fprintf(&b, "# %q\n", d.String())
	}
	if c.may != anything {
		var old, new any
		fromJSON(asJSON(seed), &old)
		fromJSON(asJSON(p), &new)
		for _, d := range diffJSON(old, new, "") {
			fmt.Fprintf(&b, "# changed: %s: %s\n", d.path, strings.NewReplacer("upstream has", "was", "ours has", "is").Replace(d.detail))
		}
	}
	y, err := yaml.Marshal(p)
	if err != nil {
		y = []byte(err.Error())
	}
	b.Write(y)
	return b.String()
}

// minimise undoes the edits of a sample that it can do without and still
// differ; of a new pod it takes out all else, too.
func (c comparison) minimise(s sample, differs func(*v1.Pod) bool) *v1.Pod {
	for i := len(s.edits) - 1; i >= 0; i-- {
		less := sample{s.seed, slices.Delete(slices.Clone(s.edits), i, i+1)}
		if differs(less.pod()) {
			s = less
		}
	}
	p := s.pod()
	for again := c.may == anything; again; {
		again = false
		for i := 0; i < len(spots(p)); i++ {
			less := p.DeepCopy()
			if remove(less, i) && differs(less) {
				p, again = less, true
				i--
			}
		}
	}
	return p
}

// remove takes out the i-th spot of p, whole. False: there is nothing to take.
func remove(p *v1.Pod, i int) bool {
	all := spots(p)
	s := all[i]
	if strings.HasSuffix(s.path, "]") {
		list := all[slices.IndexFunc(all, func(l spot) bool { return l.path == s.path[:strings.LastIndexByte(s.path, '[')] })].v
		var at int
		if _, err := fmt.Sscanf(s.path[strings.LastIndexByte(s.path, '['):], "[%d]", &at); err != nil {
			return false
		}
		list.Set(appendLists(list, at))
		return true
	}
	if s.v.IsZero() {
		return false
	}
	s.v.SetZero()
	return true
}

// anything may be changed of a pod that is new.
var anything = matching("")

func TestDefaults(t *testing.T) {
	hunt(t, comparison{"defaults", seeds(t), anything, func(_, p *v1.Pod) []difference { return compareDefaults(p) }})
}

func TestValidation(t *testing.T) {
	hunt(t, comparison{"create", seeds(t), anything, func(_, p *v1.Pod) []difference { return compareCreate(p) }})
}

// Every kind of field of every seed is left out once, and given empty once.
func TestEveryFieldLeftOut(t *testing.T) {
	if setting(t, "BERTH_DIFF", 5000) < 5000 {
		t.Skip("a short run was asked for")
	}
	found := map[string]*finding{}
	c := comparison{which: "create", may: anything, compare: func(_, p *v1.Pod) []difference { return slices.Concat(compareDefaults(p), compareCreate(p)) }}
	known := readRules(t, "create")
	for _, seed := range seeds(t) {
		done := map[string]bool{}
		for i, s := range spots(seed) {
			if done[s.kind] {
				continue
			}
			done[s.kind] = true
			for _, empty := range []bool{false, true} {
				p := seed.DeepCopy()
				if v := spots(p)[i].v; empty && v.Kind() == reflect.Pointer {
					v.Set(reflect.New(v.Type().Elem()))
				} else if empty || v.IsZero() {
					continue
				} else {
					v.SetZero()
				}
				for _, d := range c.compare(seed, p) {
					if !known.allow(d) {
						note(found, d, sample{seed: p})
					}
				}
			}
		}
	}
	report(t, found, c)
}

// The pods of testdata/pods are shapes met in the field.
func TestFixedPods(t *testing.T) {
	all := pods(t, "testdata/pods")
	for _, name := range slices.Sorted(maps.Keys(all)) {
		t.Run(name, func(t *testing.T) {
			for _, d := range slices.Concat(compareDefaults(all[name]), compareCreate(all[name])) {
				t.Error(d)
			}
		})
	}
}

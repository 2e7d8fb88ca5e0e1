package differential

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"os"
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

// sample is a pod that was made: a seed and the edits made to it.
type sample struct {
	seed  *v1.Pod
	edits []edit
}

// newSample makes the pod of a number, and says how.
func newSample(seeds []*v1.Pod, number, run int) (sample, *v1.Pod) {
	rng := rand.New(rand.NewPCG(uint64(number), uint64(run)))
	s := sample{seed: seeds[number%len(seeds)]}
	p := s.seed.DeepCopy()
	for range 1 + rng.IntN(4) {
		e := choose(rng, p)
		e.make(p)
		s.edits = append(s.edits, e)
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

// hunt compares the pods of many samples, and reports what differs beyond the
// known differences of which.
func hunt(t *testing.T, which string, compare func(*v1.Pod) []difference) {
	t.Helper()
	n, run := setting(t, "BERTH_DIFF", 5000), setting(t, "BERTH_DIFF_SEED", 1)
	all := seeds(t)
	known := readRules(t, which)
	found := map[string]*finding{}
	var lock sync.Mutex
	var next atomic.Int64
	var workers sync.WaitGroup
	for range runtime.GOMAXPROCS(0) {
		workers.Go(func() {
			for i := int(next.Add(1)); i <= n; i = int(next.Add(1)) {
				s, p := newSample(all, i, run)
				differences := compare(p)
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
	report(t, found, compare)
	if n >= 5000 {
		known.unused(t)
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
func report(t *testing.T, found map[string]*finding, compare func(*v1.Pod) []difference) {
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
		p := minimise(f.sample, func(p *v1.Pod) bool {
			return slices.ContainsFunc(compare(p), func(d difference) bool { return d.signature() == f.signature() })
		})
		t.Logf("%s", show(p, compare(p)))
	}
}

func show(p *v1.Pod, differences []difference) string {
	var b strings.Builder
	b.WriteString("---\n")
	for _, d := range differences {
		fmt.Fprintf(&b, "# %q\n", d.String())
	}
	y, err := yaml.Marshal(p)
	if err != nil {
		y = []byte(err.Error())
	}
	b.Write(y)
	return b.String()
}

// minimise takes out of a sample's pod whatever it can do without and still differ.
func minimise(s sample, differs func(*v1.Pod) bool) *v1.Pod {
	for i := len(s.edits) - 1; i >= 0; i-- {
		less := sample{s.seed, slices.Delete(slices.Clone(s.edits), i, i+1)}
		if differs(less.pod()) {
			s = less
		}
	}
	p := s.pod()
	for again := true; again; {
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

func TestDefaults(t *testing.T) { hunt(t, "defaults", compareDefaults) }

func TestValidation(t *testing.T) { hunt(t, "create", compareCreate) }

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

package source

import (
	"context"
	"fmt"
	"io"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
)

// Set is all manifests of the node. Its methods may be called from any goroutine.
//
//	directory, file ─┐
//	stdin ───────────┤ update       ┌───────────┐ Deliver(source, snapshot)
//	URL ─────────────┼─────────────▶│ Run's loop│───────────────────────────▶
//	Apply, Remove ───┘              └─────┬─────┘
//	                                      ▼ view: ConfigMap, Secret, Problems
//
// Run's loop is the only writer of everything but view, which it replaces whole.
type Set struct {
	cfg     Config
	updates chan update
	// stopped is closed when Run's loop has ended: nobody takes updates any more.
	stopped chan struct{}
	view    atomic.Pointer[view]

	origins   []*origin // in order of precedence: run first
	run       *origin
	memory    memory
	granted   granted
	delivered map[pod.Source]*snapshot
}

// origin is one configured place that manifests come from.
type origin struct {
	source pod.Source
	// local origins are read at once; nothing is delivered before they are.
	local  bool
	synced bool
	files  map[string]*file
	// problems of the origin as a whole, such as a directory that cannot be watched.
	problems []Problem
}

// file is what is in force of one file, URL or applied document.
type file struct {
	entries  []*entry
	problems []Problem
	pods     map[*entry]*v1.Pod // with UID and annotations, before their classes
	// waiting are documents whose pods cannot be taken in, so that an earlier
	// version of them is in force.
	waiting []waiting
	memo    memo
	// uid of an applied pod, "" elsewhere.
	uid string
}

// update is news of an origin.
type update struct {
	origin *origin
	// whole: files is everything there is, what it lacks has been removed.
	whole bool
	// files holds new content; nil: removed.
	files    map[string]*content
	problems []Problem
	// below, with a first update that is not whole, is the directory that could
	// not be read: what is remembered of its files is in force.
	below string
	// apply, if set, is a request of the command line instead; done is closed after it.
	apply func()
	done  chan struct{}
}

// content is what was read from one file, or why it could not be read.
type content struct {
	reading
	err error
	// uid and seen are given for applied pods.
	uid, seen string
}

// view is what readers see. It is immutable.
type view struct {
	objects  map[Ref]*entry
	files    map[Ref]string
	problems []Problem
}

// New checks cfg and reads nothing yet.
func New(cfg Config) (*Set, error) {
	if err := cfg.complete(); err != nil {
		return nil, err
	}
	s := &Set{
		cfg:       cfg,
		updates:   make(chan update),
		stopped:   make(chan struct{}),
		memory:    memory{dir: filepath.Join(cfg.Root, "source"), log: cfg.Logger},
		granted:   granted{path: grantedPath(cfg.Root)},
		delivered: map[pod.Source]*snapshot{},
	}
	s.run = &origin{source: pod.SourceRun, local: true, files: map[string]*file{}}
	s.origins = []*origin{s.run}
	for range cfg.Paths {
		s.origins = append(s.origins, &origin{source: pod.SourceFile, files: map[string]*file{}})
	}
	for i, p := range cfg.Paths {
		s.origins[1+i].local = p != Stdin
	}
	for range cfg.URLs {
		s.origins = append(s.origins, &origin{source: pod.SourceHTTP, files: map[string]*file{}})
	}
	s.view.Store(&view{objects: map[Ref]*entry{}})
	return s, nil
}

// Run reads and watches all sources until ctx ends, and returns when every
// goroutine of the Set has ended. It is called once. Problems with manifests
// never end it; an error means that the Set's own directories cannot be used.
func (s *Set) Run(ctx context.Context) error {
	defer close(s.stopped)
	if err := s.memory.open(); err != nil {
		return err
	}
	s.granted.load(s)
	applied, err := s.loadApplied()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer cancel()
	for i, p := range s.cfg.Paths {
		o := s.origins[1+i]
		watchers.Go(func() {
			if p == Stdin {
				s.readStdin(ctx, o)
			} else {
				(&watcher{set: s, origin: o, path: p}).run(ctx)
			}
		})
	}
	for i, u := range s.cfg.URLs {
		o := s.origins[1+len(s.cfg.Paths)+i]
		watchers.Go(func() { (&fetcher{set: s, origin: o, url: u}).run(ctx) })
	}
	s.take(applied)
	s.publish()
	for {
		select {
		case <-ctx.Done():
			return nil
		case u := <-s.updates:
			s.take(u)
			s.publish()
			if u.done != nil {
				close(u.done)
			}
		}
	}
}

// send hands u to Run's loop. False: ctx or the loop has ended.
func (s *Set) send(ctx context.Context, u update) bool {
	select {
	case s.updates <- u:
		return true
	case <-ctx.Done():
	case <-s.stopped:
	}
	return false
}

// take brings an origin up to date.
func (s *Set) take(u update) {
	if u.apply != nil {
		u.apply()
		return
	}
	o := u.origin
	if !u.whole && !o.synced {
		s.recall(u)
	}
	if u.whole {
		for name := range o.files {
			if _, ok := u.files[name]; !ok {
				s.drop(o, name)
			}
		}
	}
	for name, c := range u.files {
		if c == nil {
			s.drop(o, name)
		} else {
			s.put(o, name, c)
		}
	}
	o.problems = u.problems
	if !o.synced {
		o.synced = true
		s.forgetStrangers()
	}
}

func (s *Set) drop(o *origin, name string) {
	if _, ok := o.files[name]; ok {
		delete(o.files, name)
		s.memory.erase(name)
	}
}

// put makes c what is in force of a file. What c cannot say, because it could
// not be read or decoded, stays as it was.
func (s *Set) put(o *origin, name string, c *content) {
	old := o.files[name]
	if old == nil {
		old = s.remembered(o, name)
	}
	f := &file{problems: c.problems, memo: old.memo}
	if c.err != nil {
		f.problems = append(f.problems, Problem{File: redactName(o, name), Message: c.err.Error() + s.inForce(old.entries)})
		f.entries, f.waiting = old.entries, old.waiting
	} else {
		f.entries = c.keep(old.entries)
		s.hold(f, old)
	}
	if c.uid != "" {
		f.memo = memo{Seen: map[string]string{c.uid: c.seen}}
		f.uid = c.uid
	}
	f.pods = s.identify(o, name, f, old)
	o.files[name] = f
	s.memory.write(o, name, f, old)
	for _, p := range f.problems {
		if !slices.Contains(old.problems, p) {
			s.cfg.Logger.Warn("manifest problem", "file", p.File, "line", p.Line, "document", p.Document, "field", p.FieldPath, "message", p.Message)
		}
	}
}

func redactName(o *origin, name string) string {
	if o.source == pod.SourceHTTP {
		return redact(name)
	}
	return name
}

func (s *Set) inForce(entries []*entry) string {
	if len(entries) == 0 {
		return ""
	}
	return fmt.Sprintf("; what it held before stays in force (%d objects)", len(entries))
}

// keep returns the entries of c, and those of old that a broken document of c
// may still stand for.
func (c *content) keep(old []*entry) []*entry {
	kept := slices.Clone(c.entries)
	have := map[Ref]bool{}
	for _, e := range kept {
		have[e.ref] = true
	}
	for _, e := range old {
		if !have[e.ref] && (c.anyBroken || c.broken[e.ref]) {
			kept = append(kept, e)
		}
	}
	return kept
}

// readStdin reads standard input to its end. The read itself cannot be
// cancelled: its goroutine is left behind if the agent stops before.
func (s *Set) readStdin(ctx context.Context, o *origin) {
	got := make(chan *content, 1)
	go func() {
		b, err := io.ReadAll(io.LimitReader(s.cfg.Stdin, maxContent+1))
		if err != nil {
			got <- &content{err: fmt.Errorf("read standard input: %w", err)}
			return
		}
		got <- &content{reading: read("stdin", b)}
	}()
	select {
	case c := <-got:
		s.send(ctx, update{origin: o, whole: true, files: map[string]*content{"stdin": c}})
	case <-ctx.Done():
	}
}

// Problems returns what is wrong with the manifests now, sorted by file and line.
func (s *Set) Problems() []Problem { return slices.Clone(s.view.Load().problems) }

// FileOf returns the file or address that gives an object, "run" for one that
// was applied, "" if there is none.
func (s *Set) FileOf(r Ref) string { return s.view.Load().files[r] }

// ConfigMap returns a ConfigMap of this node. It is immutable.
func (s *Set) ConfigMap(namespace, name string) (*v1.ConfigMap, bool) {
	e := s.view.Load().objects[Ref{"ConfigMap", namespace, name}]
	if e == nil {
		return nil, false
	}
	return e.configMap, true
}

// Secret returns a Secret of this node, stringData merged into data. It is immutable.
func (s *Set) Secret(namespace, name string) (*v1.Secret, bool) {
	e := s.view.Load().objects[Ref{"Secret", namespace, name}]
	if e == nil {
		return nil, false
	}
	return e.secret, true
}

// Check reads a manifest as the agent would, and returns what it holds and what
// is wrong with it. name is what problems call the file. An error is one of reading r.
func Check(name string, r io.Reader) ([]Ref, []Problem, error) {
	b, err := io.ReadAll(io.LimitReader(r, maxContent+1))
	if err != nil {
		return nil, nil, fmt.Errorf("read %s: %w", name, err)
	}
	out := read(name, b)
	var refs []Ref
	for _, e := range out.entries {
		refs = append(refs, e.ref)
	}
	return refs, out.problems, nil
}

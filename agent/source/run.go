package source

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

// Change is what applying a document did.
type Change string

// The changes, in kubectl's words.
const (
	ObjectCreated    Change = "created"
	ObjectConfigured Change = "configured"
	ObjectUnchanged  Change = "unchanged"
)

// Applied is one object that Apply took.
type Applied struct {
	Ref
	// UID of a pod.
	UID    pod.UID `json:"uid,omitempty"`
	Change Change  `json:"change"`
}

// appliedRecord is the layout of ROOT/run/<kind>_<namespace>_<name>.json.
type appliedRecord struct {
	// UID of the pod: a new one for each change, and for a document that is
	// applied again after it was removed, so that it runs again.
	UID      string          `json:"uid,omitempty"`
	Seen     string          `json:"seen,omitempty"`
	Document json.RawMessage `json:"document"`
}

func (s *Set) runDir() string { return filepath.Join(s.cfg.Root, "run") }

func recordName(r Ref) string {
	name := strings.ToLower(r.Kind) + "_" + r.Namespace + "_" + r.Name
	if len(name) > 200 { // a file's name has at most 255 bytes
		sum := sha256.Sum256([]byte(name))
		name = name[:160] + "_" + hex.EncodeToString(sum[:16])
	}
	return name + ".json"
}

// loadApplied reads the documents that were applied before the agent was last stopped.
func (s *Set) loadApplied() (update, error) {
	u := update{origin: s.run, whole: true, files: map[string]*content{}}
	failpoint.Hit("agent/source/run-directory")
	if err := os.MkdirAll(s.runDir(), 0o700); err != nil {
		return u, fmt.Errorf("make the directory of applied documents: %w", err)
	}
	all, err := os.ReadDir(s.runDir())
	if err != nil {
		return u, fmt.Errorf("list applied documents: %w", err)
	}
	for _, d := range all {
		path := filepath.Join(s.runDir(), d.Name())
		switch filepath.Ext(path) {
		case ".tmp":
			failpoint.Hit("agent/source/run-remove-torn")
			if err := os.Remove(path); err != nil {
				s.cfg.Logger.Warn("remove a half-written document", "err", err)
			}
		case ".json":
			c, err := readApplied(path, d.Name())
			if err != nil {
				setAside(path, err, s.cfg.Logger)
				u.problems = append(u.problems, Problem{File: path, Message: "an applied document has become unreadable and was set aside: apply it again (" + err.Error() + ")"})
				continue
			}
			u.files[d.Name()] = c
		}
	}
	return u, nil
}

func readApplied(path, name string) (*content, error) {
	var r appliedRecord
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil {
		return nil, err
	}
	c := &content{reading: read("run", r.Document), uid: r.UID, seen: r.Seen}
	switch {
	case len(c.problems) > 0:
		return nil, errors.New(c.problems[0].String())
	case len(c.entries) != 1 || recordName(c.entries[0].ref) != name || c.entries[0].pod != nil && !uidPattern.MatchString(r.UID):
		return nil, errors.New("it does not hold the object that its name says")
	}
	return c, nil
}

// Apply makes documents part of the node's desired state, durably. Documents
// with problems are left out, the others are taken; err is set if they could
// not be kept, or if ctx or Run ended before. Applying the same again changes nothing.
func (s *Set) Apply(ctx context.Context, documents []byte) (applied []Applied, problems []Problem, err error) {
	got := read("run", documents)
	problems = got.problems
	done := make(chan struct{})
	u := update{done: done, apply: func() {
		for _, e := range classesFirst(got.entries) {
			a, p, failed := s.apply(e)
			if p != nil {
				problems = append(problems, *p)
			} else if failed != nil {
				err = errors.Join(err, failed)
			} else {
				applied = append(applied, a)
			}
		}
	}}
	if failed := s.do(ctx, u); failed != nil {
		return nil, got.problems, failed
	}
	return applied, problems, err
}

// do has Run's loop do u, and waits for it: what the loop has begun it ends soon.
func (s *Set) do(ctx context.Context, u update) error {
	if !s.send(ctx, u) {
		if err := ctx.Err(); err != nil {
			return &pod.Error{Op: "change applied documents", Kind: pod.Canceled, Err: err}
		}
		return &pod.Error{Op: "change applied documents", Kind: pod.Unavailable, Err: errors.New("the agent is stopping")}
	}
	select {
	case <-u.done:
		return nil
	case <-s.stopped: // a panic apart, the loop closes done first
		return &pod.Error{Op: "change applied documents", Kind: pod.Unavailable, Err: errors.New("the agent is stopping")}
	}
}

// apply runs in Run's loop.
func (s *Set) apply(e *entry) (Applied, *Problem, error) {
	for _, o := range s.origins[1:] {
		for name, f := range o.files {
			for _, other := range f.entries {
				if other.ref == e.ref {
					return Applied{}, &Problem{File: "run", Line: e.line, Document: e.doc, Object: e.ref, FieldPath: "metadata.name",
						Message: fmt.Sprintf("%s already gives the %s: change or remove it there", redactName(o, name), e.ref)}, nil
				}
			}
		}
	}
	name := recordName(e.ref)
	a := Applied{Ref: e.ref, Change: ObjectCreated}
	r := appliedRecord{Document: e.raw}
	if old := s.run.files[name]; old != nil && len(old.entries) == 1 {
		a.Change = ObjectConfigured
		if string(old.entries[0].raw) == string(e.raw) {
			a.Change = ObjectUnchanged
			a.UID = podUID(old)
			return a, nil, nil
		}
	}
	if e.pod != nil {
		if errs := s.classes(nil).refuse(e.pod); len(errs) > 0 {
			p := e.problem("run", errs[0])
			return a, &p, nil
		}
		r.UID, r.Seen = string(e.pod.UID), time.Now().Format(time.RFC3339Nano)
		if r.UID == "" {
			r.UID = freshUID()
		}
		a.UID = pod.UID(r.UID)
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = replace(filepath.Join(s.runDir(), name), b, true)
	}
	if err != nil {
		return a, nil, &pod.Error{Op: "apply " + e.ref.String(), Kind: pod.Unavailable, Err: fmt.Errorf("keep it in %s: %w", s.runDir(), err)}
	}
	s.put(s.run, name, &content{reading: reading{entries: []*entry{e}}, uid: r.UID, seen: r.Seen})
	return a, nil, nil
}

func podUID(f *file) pod.UID {
	for _, p := range f.pods {
		return pod.UID(p.UID)
	}
	return ""
}

func freshUID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// Remove takes an applied object out of the desired state, durably; a pod is
// then terminated gracefully. It is idempotent: what is not there is removed
// already (false). An object that comes from a manifest is refused (Invalid),
// with the name of its file.
func (s *Set) Remove(ctx context.Context, ref Ref) (removed bool, err error) {
	u := update{done: make(chan struct{}), apply: func() { removed, err = s.remove(ref) }}
	if failed := s.do(ctx, u); failed != nil {
		return false, failed
	}
	return removed, err
}

func (s *Set) remove(ref Ref) (bool, error) {
	name := recordName(ref)
	if f := s.run.files[name]; f == nil {
		for _, o := range s.origins[1:] {
			for name, f := range o.files {
				for _, e := range f.entries {
					if e.ref == ref {
						return false, &pod.Error{Op: "remove " + ref.String(), Kind: pod.Invalid, Err: fmt.Errorf("it comes from %s: remove it there", redactName(o, name))}
					}
				}
			}
		}
		return false, nil
	}
	path := filepath.Join(s.runDir(), name)
	failpoint.Hit("agent/source/run-remove")
	err := os.Remove(path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, &pod.Error{Op: "remove " + ref.String(), Kind: pod.Unavailable, Err: err}
	}
	failpoint.Hit("agent/source/run-remove-done")
	if err := syncDir(s.runDir()); err != nil {
		s.cfg.Logger.Warn("the removal of a document may not outlast a power cut", "object", ref.String(), "err", err)
	}
	delete(s.run.files, name)
	return true, nil
}

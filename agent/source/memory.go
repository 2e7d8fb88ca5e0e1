package source

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

// memory keeps on disk what is in force of each file, so that a manifest which
// became unreadable while the agent was away still does not take its pods. It
// is written without fsync: after a power cut an unreadable memory is forgotten.
type memory struct {
	dir string
	log *slog.Logger
}

// memo is what is remembered of a file beside its documents.
type memo struct {
	// Seen says since when each UID has been known.
	Seen map[string]string `json:"seen,omitempty"`
}

// remembrance is the file's layout.
type remembrance struct {
	Name      string            `json:"name"`
	Memo      memo              `json:"memo"`
	Documents []json.RawMessage `json:"documents"`
}

func (m memory) open() error {
	failpoint.Hit("agent/source/memory-directory")
	if err := os.MkdirAll(m.dir, 0o700); err != nil {
		return fmt.Errorf("make the directory for what is known of manifests: %w", err)
	}
	return nil
}

func (m memory) path(name string) string {
	sum := sha256.Sum256([]byte(name))
	return filepath.Join(m.dir, hex.EncodeToString(sum[:16])+".json")
}

// remembered returns what was in force of a file when the agent last ran; an
// empty file if nothing is known.
func (s *Set) remembered(o *origin, name string) *file {
	f := &file{}
	if o.source == pod.SourceRun || name == "stdin" {
		return f
	}
	path := s.memory.path(name)
	r, err := readMemory(path)
	if errors.Is(err, fs.ErrNotExist) {
		return f
	}
	if err == nil && r.Name != name {
		err = fmt.Errorf("it belongs to %s", redact(r.Name))
	}
	if err != nil {
		setAside(path, err, s.cfg.Logger)
		return f
	}
	f.memo = r.Memo
	for _, d := range r.Documents {
		// What an older release accepted and this one does not is left out.
		f.entries = append(f.entries, read(redactName(o, name), d).entries...)
	}
	return f
}

func readMemory(path string) (r remembrance, err error) {
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	return r, err
}

// recall adds to u, the first news of a directory that could not be read, the
// files that are remembered of it.
func (s *Set) recall(u update) {
	all, err := os.ReadDir(s.memory.dir)
	if err != nil || u.below == "" {
		return
	}
	for _, d := range all {
		r, err := readMemory(filepath.Join(s.memory.dir, d.Name()))
		if err == nil && (r.Name == u.below || filepath.Dir(r.Name) == u.below) && u.files[r.Name] == nil {
			u.files[r.Name] = &content{err: errors.New("it cannot be read")}
		}
	}
}

// setAside renames an unreadable file so that it is looked at once only, by a person.
func setAside(path string, why error, log *slog.Logger) {
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	failpoint.Hit("agent/source/set-aside")
	err := os.Rename(path, aside)
	log.Warn("unreadable record set aside", "path", path, "aside", aside, "why", why, "err", err)
}

// write remembers f, if it differs from old.
func (m memory) write(o *origin, name string, f, old *file) {
	if o.source == pod.SourceRun || name == "stdin" || sameFile(f, old) {
		return
	}
	r := remembrance{Name: name, Memo: f.memo}
	for _, e := range f.entries {
		r.Documents = append(r.Documents, e.raw)
	}
	b, err := json.Marshal(r)
	if err == nil {
		err = replace(m.path(name), b, false)
	}
	if err != nil {
		m.log.Warn("what is in force of a manifest cannot be remembered: if it becomes invalid while the agent is away, its pods end", "file", redactName(o, name), "err", err)
	}
}

func sameFile(a, b *file) bool {
	return maps.Equal(a.memo.Seen, b.memo.Seen) &&
		slices.EqualFunc(a.entries, b.entries, func(x, y *entry) bool { return string(x.raw) == string(y.raw) })
}

func (m memory) erase(name string) {
	failpoint.Hit("agent/source/memory-erase")
	if err := os.Remove(m.path(name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("a removed manifest cannot be forgotten", "err", err)
	}
	failpoint.Hit("agent/source/memory-erase-done")
}

// forgetStrangers erases the memories of files that no origin has any more:
// they were removed, or another directory was configured, while the agent was away.
func (s *Set) forgetStrangers() {
	known := map[string]bool{s.granted.path: true}
	for _, o := range s.origins {
		if !o.synced {
			return
		}
		for name := range o.files {
			known[s.memory.path(name)] = true
		}
	}
	all, err := os.ReadDir(s.memory.dir)
	if err != nil {
		s.cfg.Logger.Warn("list what is known of manifests", "err", err)
		return
	}
	for _, d := range all {
		path := filepath.Join(s.memory.dir, d.Name())
		if ext := filepath.Ext(path); known[path] || ext != ".json" && ext != ".tmp" {
			continue
		}
		failpoint.Hit("agent/source/memory-forget")
		if err := os.Remove(path); err != nil {
			s.cfg.Logger.Warn("forget a manifest that is gone", "err", err)
		}
	}
}

// replace writes a file so that a reader sees the old content or the new, never
// a part. durable makes it outlast a power cut.
func replace(path string, content []byte, durable bool) error {
	tmp := path + ".tmp"
	failpoint.Hit("agent/source/replace-write")
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content)
	if err == nil && durable {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	failpoint.Hit("agent/source/replace-rename")
	if err := os.Rename(tmp, path); err != nil {
		return err
	}
	failpoint.Hit("agent/source/replace-rename-done")
	if !durable {
		return nil
	}
	return syncDir(filepath.Dir(path))
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	failpoint.Hit("agent/source/directory-sync")
	return errors.Join(d.Sync(), d.Close())
}

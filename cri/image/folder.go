package image

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"
)

const (
	// folderPoll is how often the folder is looked at where nobody tells of
	// changes, folderRest where somebody does, folderSettle while something in it
	// is being written.
	folderPoll   = time.Second
	folderRest   = 30 * time.Second
	folderSettle = 200 * time.Millisecond
	// maxFolderFiles bounds the entries of the folder, and of one layout in it.
	maxFolderFiles = 20_000
	// folderRecord, in the store's root, says what became of the folder's files.
	folderRecord = "imported.json"
)

// FolderFile is what became of a file or OCI layout in the import folder.
type FolderFile struct {
	Name string `json:"name"`
	// Images are the IDs of what it held; Err says why there are none.
	Images []ID   `json:"images,omitempty"`
	Err    string `json:"err,omitempty"`
	// Print tells it from what it was before or becomes later.
	Print string `json:"print"`
}

// Folder imports what is put into a directory: image archives, and OCI layouts as
// directories. Once only, until they change; what cannot be imported is logged
// once. Images are pinned as long as the file that brought them is there.
//
//	(nothing) ──seen──▶ settling ──no writer, unchanged for a moment──▶ imported | refused
//	                       ▲                                                  │
//	                       └──────────────────── changed ─────────────────────┘
type Folder struct {
	store *Store
	dir   string

	mu    sync.Mutex
	files map[string]FolderFile // what was dealt with

	settling map[string]string // prints of what was not yet; of Run only
	watcher  *fsnotify.Watcher // nil: none is to be had
	open     func() (*fsnotify.Watcher, error)
	watched  map[string]bool
}

// OpenFolder makes the import folder dir, root's alone, and reads what was dealt
// with before. Run does the rest.
func (s *Store) OpenFolder(dir string) (*Folder, error) {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, fmt.Errorf("make the import folder: %w", err)
	}
	f := &Folder{store: s, dir: dir, files: map[string]FolderFile{}, settling: map[string]string{}, watched: map[string]bool{}, open: fsnotify.NewWatcher}
	b, err := os.ReadFile(filepath.Join(s.cfg.Root, folderRecord))
	if errors.Is(err, os.ErrNotExist) {
		return f, nil
	}
	if err == nil {
		err = json.Unmarshal(b, &f.files)
	}
	if err != nil {
		s.log.Warn("what was imported from the import folder is not known any more: it is imported again", "err", err)
		f.files = map[string]FolderFile{}
	}
	return f, nil
}

// Dir is the folder.
func (f *Folder) Dir() string { return f.dir }

// Files tells what became of the folder's files, by name.
func (f *Folder) Files() []FolderFile {
	f.mu.Lock()
	defer f.mu.Unlock()
	var out []FolderFile
	for _, name := range slices.Sorted(maps.Keys(f.files)) {
		out = append(out, f.files[name])
	}
	return out
}

// Run imports until ctx ends. Where the kernel has no watch left for it, it looks
// every second.
func (f *Folder) Run(ctx context.Context) error {
	var err error
	if f.watcher, err = f.open(); err == nil {
		err = f.watcher.Add(f.dir)
	}
	if err != nil {
		f.store.log.Info("the import folder cannot be watched and is looked at every second (see fs.inotify.max_user_instances and max_user_watches)", "dir", f.dir, "err", err)
		f.unwatch()
	}
	defer f.unwatch()
	for {
		f.look(ctx)
		if ctx.Err() != nil {
			return nil
		}
		f.wait(ctx)
	}
}

func (f *Folder) unwatch() {
	if f.watcher != nil {
		_ = f.watcher.Close() // nothing is lost with it
		f.watcher = nil
	}
}

// wait returns when the folder may have changed.
func (f *Folder) wait(ctx context.Context) {
	pause := folderRest
	var events chan fsnotify.Event
	var failures chan error
	if f.watcher == nil {
		pause = folderPoll
	} else {
		events, failures = f.watcher.Events, f.watcher.Errors
	}
	if len(f.settling) > 0 {
		pause, events = folderSettle, nil
	}
	timer := time.NewTimer(pause)
	defer timer.Stop()
	select {
	case <-ctx.Done():
	case <-timer.C:
	case <-events:
	case <-failures: // events were lost: look
	}
	for f.watcher != nil {
		select {
		case <-f.watcher.Events:
		case <-f.watcher.Errors:
		default:
			return
		}
	}
}

// look deals with everything that has settled since it was last looked at.
func (f *Folder) look(ctx context.Context) {
	entries, err := os.ReadDir(f.dir)
	if err != nil || len(entries) > maxFolderFiles {
		f.report(".", FolderFile{Print: fmt.Sprint(err), Err: fmt.Sprintf("the folder cannot be read, or has more than %d files: %v", maxFolderFiles, err)})
		return
	}
	here := map[string]bool{}
	for _, e := range entries {
		name := e.Name()
		if ignored(name) || ctx.Err() != nil {
			continue
		}
		here[name] = true
		f.watch(e)
		print, err := fingerprint(filepath.Join(f.dir, name))
		if errors.Is(err, os.ErrNotExist) {
			continue // gone meanwhile
		}
		if err != nil {
			f.report(name, FolderFile{Print: err.Error(), Err: err.Error()})
			continue
		}
		f.consider(ctx, name, print)
	}
	if ctx.Err() == nil {
		f.forget(ctx, here)
	}
}

// ignored tells what is being written under another name, or is no image at all.
func ignored(name string) bool {
	if strings.HasPrefix(name, ".") || strings.HasSuffix(name, "~") {
		return true
	}
	switch filepath.Ext(name) {
	case ".tmp", ".part", ".partial", ".crdownload", ".filepart":
		return true
	}
	return false
}

// watch also watches layouts: of what is written into them, the folder's own watch
// says nothing.
func (f *Folder) watch(e fs.DirEntry) {
	if f.watcher == nil || !e.IsDir() || f.watched[e.Name()] {
		return
	}
	f.watched[e.Name()] = true
	_ = f.watcher.Add(filepath.Join(f.dir, e.Name())) // without it a change is seen at the next rest
}

// consider imports a file if it is another than before and nobody writes to it.
func (f *Folder) consider(ctx context.Context, name, print string) {
	f.mu.Lock()
	known := f.files[name].Print == print
	f.mu.Unlock()
	if known {
		delete(f.settling, name)
		return
	}
	path := filepath.Join(f.dir, name)
	if f.settling[name] != print || beingWritten(path) {
		f.settling[name] = print
		return
	}
	delete(f.settling, name)
	images, err := f.take(ctx, path)
	if ctx.Err() != nil {
		return
	}
	if after, ferr := fingerprint(path); ferr != nil || after != print {
		f.settling[name] = after // it was written to while it was read
		return
	}
	r := FolderFile{Print: print}
	for _, i := range images {
		r.Images = append(r.Images, i.ID)
	}
	if err != nil {
		r.Err = err.Error()
	}
	f.report(name, r)
	f.pin(ctx, r.Images, true)
}

// take imports one file or layout.
func (f *Folder) take(ctx context.Context, path string) ([]Image, error) {
	st, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if st.IsDir() {
		return f.store.ImportLayoutDir(ctx, path, nil)
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return f.store.Import(ctx, file, nil)
}

// report records what became of a file, and logs it.
func (f *Folder) report(name string, r FolderFile) {
	r.Name = name
	f.mu.Lock()
	old, ok := f.files[name]
	f.files[name] = r
	f.mu.Unlock()
	if ok && old.Print == r.Print {
		return
	}
	if r.Err != "" {
		f.store.log.Error("a file in the import folder is not imported; it is tried again when it changes", "file", filepath.Join(f.dir, name), "err", r.Err)
	} else {
		f.store.log.Info("imported from the import folder", "file", filepath.Join(f.dir, name), "images", len(r.Images))
	}
	f.record()
}

// forget drops what is no longer in the folder. Its images stay, but are not
// pinned any more, unless another file brought them as well.
func (f *Folder) forget(ctx context.Context, here map[string]bool) {
	maps.DeleteFunc(f.settling, func(name, _ string) bool { return !here[name] })
	maps.DeleteFunc(f.watched, func(name string, _ bool) bool { return !here[name] })
	f.mu.Lock()
	var gone []ID
	changed := false
	for name, r := range f.files {
		if !here[name] {
			gone, changed = append(gone, r.Images...), true
			delete(f.files, name)
		}
	}
	for _, r := range f.files {
		gone = slices.DeleteFunc(gone, func(id ID) bool { return slices.Contains(r.Images, id) })
	}
	f.mu.Unlock()
	f.pin(ctx, gone, false)
	if changed {
		f.record()
	}
}

func (f *Folder) pin(ctx context.Context, images []ID, pinned bool) {
	for _, id := range images {
		if err := f.store.Pin(ctx, string(id), pinned); err != nil && CodeOf(err) != CodeNotFound {
			f.store.log.Warn("cannot pin an imported image, or let it go", "image", id, "pin", pinned, "err", err)
		}
	}
}

func (f *Folder) record() {
	f.mu.Lock()
	b, err := json.Marshal(f.files)
	f.mu.Unlock()
	if err == nil {
		err = writeSynced(filepath.Join(f.store.cfg.Root, folderRecord), b)
	}
	if err != nil {
		f.store.log.Warn("cannot record what was imported: it is imported again after a restart", "err", err)
	}
}

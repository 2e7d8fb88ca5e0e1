package source

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// watcher follows one path of the configuration: a directory of manifests, a
// single file, or what does not exist yet.
//
//	         ┌───────────────── the watched directory goes ──────────────┐
//	         ▼                                                           │
//	look ──▶ directory: watch it, read all ──▶ event names a file: read it
//	 ▲  ├──▶ file: watch its directory, read it ──▶ event names it: read it
//	 │  └──▶ nothing: deliver nothing, watch the nearest directory above ──┐
//	 └──────────────── something appears there ◀──────────────────────────┘
//
// The watch stands before anything is read, so that no change is missed. Files
// are read when they are closed after writing, renamed here or removed, not
// while they are being written. After an overflow of the event queue everything
// is read again; without inotify (instances used up) everything is read every
// rescan until one is to be had.
type watcher struct {
	set    *Set
	origin *origin
	path   string
	// trouble is reported with every update until it is over.
	trouble []Problem
	dirty   bool // trouble has changed and is yet to be sent
	// open are files that had a writer when they were read, and how often. The
	// event of a close comes before the kernel has forgotten the writer, and a
	// writer that came by another name is told of to nobody here: such files are
	// looked at again by time.
	open map[string]int
}

// rescan is how often a path is read that cannot be watched.
const rescan = 10 * time.Second

// inDir are the events of a directory that say that a file in it is complete or gone.
const inDir = unix.IN_CLOSE_WRITE | unix.IN_CREATE | unix.IN_MOVED_TO | unix.IN_MOVED_FROM | unix.IN_DELETE | unix.IN_DELETE_SELF | unix.IN_MOVE_SELF | unix.IN_ONLYDIR

func (w *watcher) run(ctx context.Context) {
	for ctx.Err() == nil {
		if err := w.follow(ctx); err != nil && ctx.Err() == nil {
			w.setTrouble(err)
			w.readAll(ctx)
			select {
			case <-ctx.Done():
			case <-time.After(rescan):
			}
		}
	}
}

func (w *watcher) setTrouble(err error) {
	w.trouble = nil
	if err != nil {
		w.trouble = []Problem{{File: w.path, Message: fmt.Sprintf("changes cannot be watched, so it is read every %s instead: %v", rescan, err)}}
		w.set.cfg.Logger.Warn("manifests cannot be watched", "path", w.path, "err", err)
	}
	w.dirty = true
}

// follow watches what there is now. It returns nil when it must be looked at
// anew, and an error if it cannot be watched.
func (w *watcher) follow(ctx context.Context) error {
	in, err := newInotify()
	if err != nil {
		return err
	}
	defer in.close()
	stop := context.AfterFunc(ctx, in.close)
	defer stop()
	dir, isDir := w.target()
	if err := in.watch(dir); errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
		return nil // it went just now: look again
	} else if err != nil {
		return err
	}
	if again, nowDir := w.target(); again != dir || nowDir != isDir {
		return nil // it changed between the look and the watch
	}
	if w.trouble != nil {
		w.setTrouble(nil)
	}
	w.readAll(ctx)
	for ctx.Err() == nil {
		events, err := in.read(w.patience())
		if err != nil {
			return err
		}
		if gone := w.react(ctx, dir, isDir, events); gone {
			return nil
		}
	}
	return nil
}

// target is the directory to watch: the path, or the one that holds it, or the
// nearest one above that exists.
func (w *watcher) target() (dir string, isDir bool) {
	if st, err := os.Stat(w.path); err == nil && st.IsDir() {
		return w.path, true
	}
	for dir = filepath.Dir(w.path); ; dir = filepath.Dir(dir) {
		if st, err := os.Stat(dir); err == nil && st.IsDir() || dir == filepath.Dir(dir) {
			return dir, false
		}
	}
}

// patience is how long to wait for an event before the files that had a writer
// are looked at again; 0: for ever.
func (w *watcher) patience() time.Duration {
	var wait time.Duration
	for _, times := range w.open {
		if next := min(rescan, 10*time.Millisecond<<min(times, 20)); wait == 0 || next < wait {
			wait = next
		}
	}
	return wait
}

// take is readFile that remembers a file with a writer. held: nothing need be
// said of it, either because the next look, which is soon, will probably tell
// more, or because it has been said.
func (w *watcher) take(path string) (c *content, held bool) {
	c = readFile(path)
	if c == nil || !errors.Is(c.err, errOpen) {
		delete(w.open, path)
		return c, false
	}
	if w.open == nil {
		w.open = map[string]int{}
	}
	w.open[path]++
	return c, w.open[path] != 2
}

// react reads what events name; no events: the files that had a writer. gone: what is watched has to be looked at anew.
func (w *watcher) react(ctx context.Context, dir string, isDir bool, events []event) (gone bool) {
	u := update{origin: w.origin, files: map[string]*content{}, problems: w.trouble}
	all := false
	look := func(path string) {
		if c, held := w.take(path); !held {
			u.files[path] = c
		}
	}
	if len(events) == 0 {
		for path := range w.open {
			look(path)
		}
	}
	for _, e := range events {
		switch {
		case e.mask&unix.IN_Q_OVERFLOW != 0:
			w.set.cfg.Logger.Warn("events of manifests were lost: reading all again", "path", w.path)
			all = true
		case e.mask&(unix.IN_IGNORED|unix.IN_DELETE_SELF|unix.IN_MOVE_SELF|unix.IN_UNMOUNT) != 0:
			return true
		case !isDir && filepath.Dir(w.path) == dir && e.name == filepath.Base(w.path):
			if e.mask&unix.IN_ISDIR != 0 {
				return true
			}
			if !w.growing(w.path, e) {
				look(w.path)
			}
		case !isDir && filepath.Dir(w.path) != dir:
			if within := strings.TrimPrefix(w.path, strings.TrimSuffix(dir, "/")+"/"); e.name == strings.SplitN(within, "/", 2)[0] {
				return true
			}
		case !isDir:
			all = all || strings.HasPrefix(e.name, "..") // a volume's files switched below a symbolic link
		case strings.HasPrefix(e.name, ".."):
			all = true
		case isManifest(e.name):
			path := filepath.Join(dir, e.name)
			if !w.growing(path, e) {
				look(path)
			}
		}
	}
	if all {
		w.readAll(ctx)
	} else if len(u.files) > 0 || w.dirty {
		w.dirty = false
		w.set.send(ctx, u)
	}
	return false
}

// growing: the file was only just created, and its writer will close it.
func (w *watcher) growing(path string, e event) bool {
	if e.mask&unix.IN_CREATE == 0 {
		return false
	}
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() {
		return false // a symbolic link is complete at once
	}
	sys, ok := st.Sys().(*syscall.Stat_t)
	return !ok || sys.Nlink < 2 // a hard link is complete at once too
}

// isManifest leaves out hidden files and what editors leave behind or rename later.
func isManifest(name string) bool {
	if strings.HasPrefix(name, ".") {
		return false
	}
	for _, suffix := range []string{"~", ".tmp", ".swp", ".bak"} {
		if strings.HasSuffix(name, suffix) {
			return false
		}
	}
	return true
}

// readAll reads everything below the path and sends it as the whole truth.
func (w *watcher) readAll(ctx context.Context) {
	u := update{origin: w.origin, whole: true, files: map[string]*content{}, problems: w.trouble}
	w.dirty, w.open = false, nil
	st, err := os.Stat(w.path)
	switch {
	case errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR):
	case err != nil:
		u.whole, u.below = false, w.path // it is there, and cannot be told to be empty
		u.problems = append(u.problems, Problem{File: w.path, Message: err.Error()})
	case !st.IsDir():
		if c, _ := w.take(w.path); c != nil {
			u.files[w.path] = c
		}
	default:
		all, err := os.ReadDir(w.path)
		if err != nil {
			u.whole, u.below = false, w.path
			u.problems = append(u.problems, Problem{File: w.path, Message: err.Error()})
		}
		for _, d := range all {
			if path := filepath.Join(w.path, d.Name()); isManifest(d.Name()) {
				if c, _ := w.take(path); c != nil {
					u.files[path] = c
				}
			}
		}
	}
	w.set.send(ctx, u)
}

var errOpen = errors.New("it is being written, and is read when its writer closes it")

// readFile returns nil if path is gone or is no file.
func readFile(path string) *content {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_NOCTTY, 0) // a FIFO must not hold us up
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return &content{err: err}
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return &content{err: err}
	}
	if !st.Mode().IsRegular() {
		return nil
	}
	if beingWritten(f) {
		return &content{err: errOpen}
	}
	b, err := io.ReadAll(io.LimitReader(f, maxContent+1))
	if err != nil {
		return &content{err: err}
	}
	return &content{reading: read(path, b)}
}

// beingWritten: the kernel refuses a read lease on a file that somebody has open
// for writing. The lease is given back at once. Where there are no leases the
// answer is no.
func beingWritten(f *os.File) bool {
	raw, err := f.SyscallConn()
	if err != nil {
		return false
	}
	var lease error
	err = raw.Control(func(fd uintptr) {
		if _, lease = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_RDLCK); lease == nil {
			_, _ = unix.FcntlInt(fd, unix.F_SETLEASE, unix.F_UNLCK) // closing the file ends the lease at the latest
		}
	})
	return err == nil && errors.Is(lease, unix.EAGAIN)
}

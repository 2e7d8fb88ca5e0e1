package logfile

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// Options choose what Read delivers.
type Options struct {
	// Follow goes on until Ended is closed and everything has been read.
	Follow bool
	// Ended is closed when nothing more will be written; nil is never.
	Ended <-chan struct{}
	// Tail is how many lines from the end to begin with; negative is all.
	Tail int64
	// Since leaves out what is older; zero is nothing.
	Since time.Time
	// LimitBytes ends the reading after so many bytes of output; 0 is none.
	LimitBytes int64
	// Timestamps puts the time before each line.
	Timestamps bool
	// Rotated begins with the rotated files of the log.
	Rotated bool
}

// stampOut has a fixed width, so that columns line up.
const stampOut = "2006-01-02T15:04:05.000000000Z07:00"

// maxLine is how much of an entry is held in memory; a longer one is passed on
// in pieces.
const maxLine = 64 << 10

// errLimit ends a reading that has delivered LimitBytes.
var errLimit = errors.New("limit reached")

// Read writes the content of the log at path to stdout and stderr, which may be
// the same. nil throws a stream away. It ends with nil at the log's end, at
// LimitBytes, or, following, when ctx ends.
func Read(ctx context.Context, path string, o Options, stdout, stderr io.Writer) error {
	r := &reader{o: o, out: stdout, err: stderr, left: o.LimitBytes, begun: [2]bool{}}
	err := r.run(ctx, path)
	if errors.Is(err, errLimit) || o.Follow && ctx.Err() != nil {
		return nil
	}
	return err
}

type reader struct {
	o        Options
	out, err io.Writer
	left     int64   // of LimitBytes
	begun    [2]bool // whether a line of the stream has begun and not ended
	rest     []byte  // of a line whose end has not been written yet
	skipping bool    // in the middle of an entry too long for maxLine
	current  head    // of that entry
}

func (r *reader) run(ctx context.Context, path string) error {
	var watch *fsnotify.Watcher
	if r.o.Follow {
		// Watching begins before reading: nothing falls between.
		var err error
		if watch, err = fsnotify.NewWatcher(); err != nil {
			return fmt.Errorf("watching log (see fs.inotify.max_user_instances): %w", err)
		}
		defer watch.Close()
		if err := watch.Add(filepath.Dir(path)); err != nil {
			return fmt.Errorf("watching log: %w", err)
		}
	}
	f, err := openLog(path)
	if err != nil {
		return err
	}
	defer func() { f.Close() }()
	if err := r.start(ctx, f, path); err != nil {
		return err
	}
	if err := r.drain(ctx, f); err != nil || !r.o.Follow {
		return errors.Join(err, r.flush())
	}
	for {
		ended := r.ended()
		next, err := r.successor(f, path)
		if err != nil {
			return err
		}
		if next != nil {
			// The old file gets nothing more once the monitor has the new one open.
			if err := r.drain(ctx, f); err != nil {
				next.Close()
				return err
			}
			f.Close()
			f = next
		}
		if err := r.drain(ctx, f); err != nil {
			return err
		}
		if ended && next == nil {
			return r.flush()
		}
		if err := r.wait(ctx, watch); err != nil {
			return err
		}
	}
}

func (r *reader) ended() bool {
	select {
	case <-r.o.Ended:
		return true
	default:
		return false
	}
}

// wait waits for the directory to change. Now and then it looks without being
// told, for a file system that does not tell.
func (r *reader) wait(ctx context.Context, watch *fsnotify.Watcher) error {
	timer := time.NewTimer(time.Second)
	defer timer.Stop()
	select {
	case <-watch.Events:
	case <-watch.Errors: // lost events: look
	case <-timer.C:
	case <-r.o.Ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// successor opens the file that has taken f's place, if one has. A log cut
// short by somebody is read from its beginning again.
func (r *reader) successor(f *os.File, path string) (*os.File, error) {
	have, err := f.Stat()
	if err != nil {
		return nil, err
	}
	now, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil // between rename and reopen
	}
	if err != nil {
		return nil, fmt.Errorf("looking for the log: %w", err)
	}
	if !os.SameFile(have, now) {
		return openLog(path)
	}
	if pos, err := f.Seek(0, io.SeekCurrent); err == nil && have.Size() < pos {
		r.rest = nil
		_, err = f.Seek(0, io.SeekStart)
		return nil, err
	}
	return nil, nil
}

// start delivers the rotated files, as far as wanted, and leaves f where the
// first wanted line begins.
func (r *reader) start(ctx context.Context, f *os.File, path string) error {
	want := r.o.Tail
	var before []string
	var err error
	if r.o.Rotated {
		if before, err = rotated(path); err != nil {
			return err
		}
	}
	if want < 0 {
		for _, p := range before {
			if err := r.whole(ctx, p, 0); err != nil {
				return err
			}
		}
		return nil
	}
	off, lines, err := tailOffset(f, want)
	if err != nil {
		return err
	}
	if _, err := f.Seek(off, io.SeekStart); err != nil {
		return err
	}
	// From the newest back, until there are enough lines.
	type part struct {
		path string
		skip int64
	}
	var parts []part
	for i := len(before) - 1; i >= 0 && lines < want; i-- {
		n, err := countLines(before[i])
		if err != nil {
			return err
		}
		parts = append(parts, part{before[i], max(0, n-(want-lines))})
		lines += n
	}
	for i := len(parts) - 1; i >= 0; i-- {
		if err := r.whole(ctx, parts[i].path, parts[i].skip); err != nil {
			return err
		}
	}
	return nil
}

// whole delivers a rotated file without its first skip lines. One that has been
// removed meanwhile is passed over.
func (r *reader) whole(ctx context.Context, path string, skip int64) error {
	s, err := openSource(path)
	if errors.Is(err, os.ErrNotExist) && !strings.HasSuffix(path, ".gz") {
		s, err = openSource(path + ".gz") // compressed meanwhile
	}
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	defer s.Close()
	in := bufio.NewReaderSize(s, maxLine)
	for ; skip > 0; skip-- {
		for {
			_, err := in.ReadSlice('\n')
			if errors.Is(err, bufio.ErrBufferFull) {
				continue
			}
			if err != nil {
				return nil
			}
			break
		}
	}
	return r.drain(ctx, in)
}

// drain delivers everything that can be read now.
func (r *reader) drain(ctx context.Context, from io.Reader) error {
	in := bufio.NewReaderSize(from, maxLine)
	for {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		piece, err := in.ReadSlice('\n')
		if len(piece) > 0 {
			if err := r.piece(piece); err != nil {
				return err
			}
		}
		switch {
		case err == nil || errors.Is(err, bufio.ErrBufferFull):
		case errors.Is(err, io.EOF):
			return nil
		default:
			return fmt.Errorf("reading log: %w", err)
		}
	}
}

// piece takes a line, or a part of one that is too long or not yet complete.
func (r *reader) piece(p []byte) error {
	ends := p[len(p)-1] == '\n'
	if r.skipping {
		r.skipping = !ends
		return r.emit(r.current, p, ends)
	}
	if len(r.rest) > 0 {
		p = append(r.rest, p...)
		r.rest = nil
	}
	if !ends && len(p) < maxLine {
		r.rest = append([]byte(nil), p...) // its end is still to be written
		return nil
	}
	h, content, err := parseHead(p)
	if err != nil {
		return nil // not ours to show: half a line of a crashed writer
	}
	r.current, r.skipping = h, !ends
	return r.emit(h, content, ends)
}

// flush delivers a last line without an end.
func (r *reader) flush() error {
	if len(r.rest) == 0 {
		return nil
	}
	h, content, err := parseHead(r.rest)
	r.rest = nil
	if err != nil {
		return nil
	}
	return r.emit(h, content, false)
}

// emit writes content. ends says that the entry ends with it.
func (r *reader) emit(h head, content []byte, ends bool) error {
	out, i := r.out, 0
	if h.stderr {
		out, i = r.err, 1
	}
	if ends && h.partial {
		content = content[:len(content)-1] // the line goes on in the next entry
	}
	if h.at.Before(r.o.Since) || out == nil {
		return nil
	}
	if r.o.Timestamps && !r.begun[i] {
		if err := r.write(out, []byte(h.at.Format(stampOut)+" ")); err != nil {
			return err
		}
	}
	r.begun[i] = !ends || h.partial
	return r.write(out, content)
}

func (r *reader) write(out io.Writer, p []byte) error {
	if r.o.LimitBytes > 0 {
		if int64(len(p)) >= r.left {
			p = p[:r.left]
			if _, err := out.Write(p); err != nil {
				return fmt.Errorf("writing: %w", err)
			}
			return errLimit
		}
		r.left -= int64(len(p))
	}
	if _, err := out.Write(p); err != nil {
		return fmt.Errorf("writing: %w", err)
	}
	return nil
}

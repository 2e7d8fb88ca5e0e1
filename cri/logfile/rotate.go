package logfile

import (
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// Rotation says when and how logs are rotated, as the kubelet's
// containerLogMaxSize and containerLogMaxFiles do.
type Rotation struct {
	// MaxSize in bytes; 0 or less never rotates.
	MaxSize int64
	// MaxFiles is how many files a log may have, the current one included; at least 2.
	MaxFiles int
}

// Rotate rotates the log at path if it has reached MaxSize. reopen makes the
// log's writer open path anew. It tells whether it has rotated.
//
// Killed anywhere, it leaves a log that is complete: the next call finds a
// missing path and has it reopened, and removes what was half compressed.
func (r Rotation) Rotate(path string, now time.Time, reopen func() error) (bool, error) {
	if r.MaxSize <= 0 {
		return false, nil
	}
	if r.MaxFiles < 2 {
		return false, fmt.Errorf("rotating logs: %d files are too few, 2 are the least", r.MaxFiles)
	}
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, reopen()
	}
	if err != nil {
		return false, fmt.Errorf("rotating log: %w", err)
	}
	if st.Size() < r.MaxSize || !st.Mode().IsRegular() {
		return false, nil
	}
	if err := r.makeRoom(path); err != nil {
		return false, err
	}
	to := path + "." + now.UTC().Format(stampForm)
	for n := 1; exists(to) || exists(to+".gz"); n++ { // twice in a second
		to = fmt.Sprintf("%s.%s-%03d", path, now.UTC().Format(stampForm), n)
	}
	failpoint.Hit("cri/logfile/rename")
	if err := os.Rename(path, to); err != nil {
		return false, fmt.Errorf("rotating log: %w", err)
	}
	failpoint.Hit("cri/logfile/rename-done")
	if err := reopen(); err != nil {
		// The writer still has the file open: under its old name nothing is lost.
		return false, errors.Join(fmt.Errorf("reopening log %s: %w", path, err), os.Rename(to, path))
	}
	return true, nil
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// makeRoom removes the oldest rotated files and compresses the rest, so that
// with the one to come there are MaxFiles.
func (r Rotation) makeRoom(path string) error {
	entries, err := os.ReadDir(filepath.Dir(path))
	if err != nil {
		return fmt.Errorf("rotating log: %w", err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), filepath.Base(path)+".") && strings.HasSuffix(e.Name(), ".tmp") {
			failpoint.Hit("cri/logfile/remove-temp")
			if err := os.Remove(filepath.Join(filepath.Dir(path), e.Name())); err != nil && !errors.Is(err, os.ErrNotExist) {
				return fmt.Errorf("removing half a compressed log: %w", err)
			}
		}
	}
	old, err := rotated(path)
	if err != nil {
		return err
	}
	for len(old) > r.MaxFiles-2 {
		failpoint.Hit("cri/logfile/remove")
		if err := os.Remove(old[0]); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing an old log: %w", err)
		}
		old = old[1:]
	}
	for _, p := range old {
		if strings.HasSuffix(p, ".gz") {
			continue
		}
		if err := compress(p); err != nil {
			return err
		}
	}
	return nil
}

// compress replaces path by path.gz.
func compress(path string) (err error) {
	in, err := openLog(path)
	if err != nil {
		return err
	}
	defer in.Close()
	temp := path + ".gz.tmp"
	failpoint.Hit("cri/logfile/compress")
	out, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o640)
	if err != nil {
		return fmt.Errorf("compressing log: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("compressing log %s: %w", path, err), os.Remove(temp))
		}
	}()
	z := gzip.NewWriter(out)
	_, err = io.Copy(z, in)
	if err = errors.Join(err, z.Close(), out.Close()); err != nil {
		return err
	}
	failpoint.Hit("cri/logfile/compress-rename")
	if err = os.Rename(temp, path+".gz"); err != nil {
		return err
	}
	failpoint.Hit("cri/logfile/compress-remove")
	return os.Remove(path)
}

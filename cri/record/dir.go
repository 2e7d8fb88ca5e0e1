package record

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
)

const (
	fileName = "record.json"
	copyName = "record.json.copy"
	tempName = ".record.json.tmp"
	// maxSize bounds what is read back: far above what a pod of the API's own
	// size limit (1.5 MiB) can make.
	maxSize = 8 << 20
)

// ErrCorrupt says that a record cannot be read. The file has been renamed aside.
var ErrCorrupt = errors.New("record is unreadable")

// BootID returns the kernel's ID of the current boot.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("reading the boot ID (is /proc mounted?): %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}

// NewID returns a fresh random ID: 64 hexadecimal digits.
func NewID() string {
	var b [32]byte
	rand.Read(b[:]) // never fails: crypto/rand ends the program instead
	return hex.EncodeToString(b[:])
}

// Dir holds one record of type T per ID below one directory. Its methods may be
// called at once for different IDs; the caller serialises calls for one ID.
type Dir[T any] struct {
	root        string
	boot        string
	log         *slog.Logger
	quarantined atomic.Int64
}

// envelope is the file's layout.
type envelope[T any] struct {
	Boot   string `json:"boot"`
	Record *T     `json:"record"`
}

// Entry is one directory of a Dir, as List finds it.
type Entry[T any] struct {
	ID string
	// Value is the record; zero if Stray.
	Value T
	// Stray says that there is no readable record: the object is half-made or
	// half-removed, or its record was corrupt.
	Stray bool
	// Stale says that the record is of an earlier boot: nothing that lived in
	// the kernel is left of what it describes.
	Stale bool

	raw []byte
}

// Open returns the records below root, which is made (mode 0700) if missing.
func Open[T any](root, bootID string, log *slog.Logger) (*Dir[T], error) {
	if bootID == "" {
		return nil, fmt.Errorf("opening records in %s: no boot ID was given", root)
	}
	failpoint.Hit("cri/record/mkdir-root")
	if err := os.MkdirAll(root, 0o700); err != nil {
		return nil, fmt.Errorf("making the directory of records: %w", err)
	}
	return &Dir[T]{root: root, boot: bootID, log: log}, nil
}

// Path returns the directory of id: DIR/<id>. It exists once id has been written.
func (d *Dir[T]) Path(id string) string { return filepath.Join(d.root, id) }

// Quarantined counts the records that have been set aside as unreadable.
func (d *Dir[T]) Quarantined() int64 { return d.quarantined.Load() }

// Write replaces the record of id, making its directory (mode 0700) first.
func (d *Dir[T]) Write(id string, v T) error {
	if err := checkID(id); err != nil {
		return err
	}
	b, err := json.Marshal(envelope[T]{Boot: d.boot, Record: &v})
	if err != nil {
		return fmt.Errorf("encoding the record of %s: %w", id, err)
	}
	if len(b) > maxSize {
		return fmt.Errorf("record of %s has %d bytes, %d are allowed: %w", id, len(b), maxSize, errdefs.ErrInvalidArgument)
	}
	dir := d.Path(id)
	failpoint.Hit("cri/record/mkdir")
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("making the directory of %s: %w", id, err)
	}
	failpoint.Hit("cri/record/write")
	if err := replace(dir, fileName, b); err != nil {
		return fmt.Errorf("writing the record of %s: %w", id, err)
	}
	failpoint.Hit("cri/record/write-done")
	if err := replace(dir, copyName, b); err != nil {
		return fmt.Errorf("writing the copy of the record of %s: %w", id, err)
	}
	return nil
}

// replace puts b at dir/name by temp and rename.
func replace(dir, name string, b []byte) error {
	temp := filepath.Join(dir, tempName)
	if err := os.WriteFile(temp, b, 0o600); err != nil {
		return err
	}
	failpoint.Hit("cri/record/rename")
	return os.Rename(temp, filepath.Join(dir, name))
}

// Read returns the record of id. An unreadable one is set aside and its copy
// takes its place. It fails with errdefs.ErrNotFound if there is no record, and
// with ErrCorrupt if the copy is unreadable too.
func (d *Dir[T]) Read(id string) (T, error) {
	e, err := d.read(id)
	return e.Value, err
}

func (d *Dir[T]) read(id string) (Entry[T], error) {
	if err := checkID(id); err != nil {
		return Entry[T]{ID: id}, err
	}
	e, err := d.readFile(id, fileName)
	if !errdefs.IsNotFound(err) && !errors.Is(err, ErrCorrupt) {
		return e, err
	}
	// The copy is written after the record and removed before it: a copy alone
	// means that the record was set aside.
	e, copyErr := d.readFile(id, copyName)
	if copyErr != nil {
		return e, errors.Join(err, copyErr)
	}
	failpoint.Hit("cri/record/rebuild")
	if err := replace(d.Path(id), fileName, e.raw); err != nil {
		return e, fmt.Errorf("rebuilding the record of %s from its copy: %w", id, err)
	}
	d.log.Warn("record rebuilt from its copy", "id", id)
	return e, nil
}

func (d *Dir[T]) readFile(id, name string) (Entry[T], error) {
	e := Entry[T]{ID: id}
	path := filepath.Join(d.Path(id), name)
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return e, fmt.Errorf("record of %s: %w", id, errdefs.ErrNotFound)
	}
	if err != nil { // no descriptor left, say: that tells nothing about the record
		return e, fmt.Errorf("opening the record of %s: %w", id, err)
	}
	defer f.Close()
	if e.raw, err = readLimited(f); err != nil {
		return e, d.quarantine(id, path, err)
	}
	env, err := decode[T](e.raw)
	if err != nil {
		return e, d.quarantine(id, path, err)
	}
	e.Value, e.Stale = *env.Record, env.Boot != d.boot
	return e, nil
}

func decode[T any](b []byte) (env envelope[T], err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	if err := dec.Decode(&env); err != nil {
		return env, err
	}
	if _, err := dec.Token(); err != io.EOF {
		return env, errors.New("something follows the record")
	}
	if env.Record == nil || env.Boot == "" {
		return env, errors.New("the record or its boot ID is missing")
	}
	return env, nil
}

func readLimited(f *os.File) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(f, maxSize+1))
	if err == nil && len(b) > maxSize {
		err = fmt.Errorf("more than %d bytes", maxSize)
	}
	return b, err
}

// quarantine renames an unreadable record aside, so that it is met once.
func (d *Dir[T]) quarantine(id, path string, cause error) error {
	d.quarantined.Add(1)
	aside := path + ".corrupt-" + time.Now().UTC().Format("20060102T150405.000000000")
	failpoint.Hit("cri/record/quarantine")
	if err := os.Rename(path, aside); err != nil {
		d.log.Error("unreadable record cannot be set aside", "id", id, "path", path, "err", cause, "renameErr", err)
	} else {
		d.log.Warn("unreadable record set aside", "id", id, "path", aside, "err", cause)
	}
	return fmt.Errorf("%s: %w: %w", path, ErrCorrupt, cause)
}

// Remove erases the record of id, then its directory with anything left in it.
// Nothing may be mounted there any more: a directory that still holds a mount
// is left as a stray and reported. Removing what is not there succeeds.
func (d *Dir[T]) Remove(id string) error {
	if err := checkID(id); err != nil {
		return err
	}
	for _, name := range []string{copyName, fileName} {
		failpoint.Hit("cri/record/remove")
		if err := os.Remove(filepath.Join(d.Path(id), name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("erasing the record of %s: %w", id, err)
		}
	}
	failpoint.Hit("cri/record/remove-dir")
	if err := os.RemoveAll(d.Path(id)); err != nil {
		return fmt.Errorf("removing the directory of %s: %w", id, err)
	}
	failpoint.Hit("cri/record/remove-done")
	return nil
}

// List returns every directory below the root, in order of ID. Unreadable
// records are set aside and come back as strays. List fails if a record cannot
// even be opened (no descriptor left, say): taking it for a stray would remove
// what lives.
func (d *Dir[T]) List() ([]Entry[T], error) {
	dirs, err := os.ReadDir(d.root)
	if err != nil {
		return nil, fmt.Errorf("listing records: %w", err)
	}
	var out []Entry[T]
	for _, de := range dirs {
		if !de.IsDir() || checkID(de.Name()) != nil {
			continue
		}
		e, err := d.read(de.Name())
		e.Stray = errdefs.IsNotFound(err) || errors.Is(err, ErrCorrupt)
		if err != nil && !e.Stray {
			return nil, err
		}
		out = append(out, e)
	}
	return out, nil
}

// checkID keeps anything that could leave the root out of file names.
func checkID(id string) error {
	if id == "" || len(id) > 128 {
		return fmt.Errorf("ID %.140q has %d characters, 1 to 128 are allowed: %w", id, len(id), errdefs.ErrInvalidArgument)
	}
	for _, c := range []byte(id) {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' && c != '_' {
			return fmt.Errorf("ID %q has a character other than a-z, 0-9, - and _: %w", id, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

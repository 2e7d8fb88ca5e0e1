// Package checkpoint owns the records of pods on disk: the durable part below
// the root directory, the boot-scoped part below the state directory, one small
// JSON file each.
//
// A durable part is on its way to disk in three steps:
//
//	write UID.next ─▶ fsync it ─▶ rename it to UID.json ─▶ fsync the directory
//	  └ the kernel has it: a killed agent loses nothing     └ a power cut loses nothing
//
// Save does the first; one committer goroutine does the rest for all pods that
// have saved meanwhile, with one fsync of the directory for all of them. Save
// waits for it only when the outcome or the termination of a pod has changed.
// After a start Load adopts every complete UID.next: it is newer than UID.json.
//
// A boot-scoped part is written and renamed without fsync. It carries the boot
// ID, and is void under another.
package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

const (
	durableSuffix = ".json"
	nextSuffix    = ".next"
	tempSuffix    = ".tmp"
	maxRecord     = 8 << 20
)

// Config says where records are.
type Config struct {
	// DurableDir is for what survives a reboot, BootDir for what does not.
	DurableDir, BootDir string
	// BootID tells one boot of the machine from the next.
	BootID string
	Log    *slog.Logger
}

// Store keeps records. Its methods may be called from any goroutine.
type Store struct {
	config Config
	seed   maphash.Seed
	wake   chan struct{} // capacity 1: the committer takes all that waits
	quit   chan struct{}
	done   chan struct{}

	mu      sync.Mutex
	closed  bool
	known   map[pod.UID]*onDisk
	pending map[pod.UID]*commit
	corrupt int
	// generations numbers the writes of all pods: one of an erased pod is never
	// taken for one of its successor.
	generations uint64
}

// onDisk is what Save must compare with.
type onDisk struct {
	durable, boot uint64 // hashes of the bytes written last; 0: none
	// outcome and termination are what a Save must wait for when they change.
	outcome, termination []byte
}

// commit is a UID.next that is not yet a safe UID.json.
type commit struct {
	generation uint64
	waiters    []waiter
}

type waiter struct {
	generation uint64
	result     chan error // capacity 1: the committer never waits
}

// Open makes the directories, if need be, and starts the committer. Close ends it.
func Open(c Config) (*Store, error) {
	for _, dir := range []string{c.DurableDir, c.BootDir} {
		failpoint.Hit("checkpoint/mkdir")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make the directory of pod records: %w", err)
		}
	}
	s := &Store{
		config: c, seed: maphash.MakeSeed(),
		wake: make(chan struct{}, 1), quit: make(chan struct{}), done: make(chan struct{}),
		known: map[pod.UID]*onDisk{}, pending: map[pod.UID]*commit{},
	}
	go s.commitLoop()
	return s, nil
}

// Close commits what is pending and ends the committer.
func (s *Store) Close() error {
	s.mu.Lock()
	again := s.closed
	s.closed = true
	s.mu.Unlock()
	if !again {
		close(s.quit)
	}
	<-s.done
	return nil
}

// Save stores the parts of r that have changed. When it returns, a killed agent
// loses nothing of r, and a power cut neither its outcome nor its termination.
func (s *Store) Save(uid pod.UID, r pod.Record) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	durable, err := json.Marshal(r.Durable)
	if err != nil {
		return fmt.Errorf("encode the record of pod %s: %w", uid, err)
	}
	boot, err := json.Marshal(bootFile{BootID: s.config.BootID, Boot: r.Boot})
	if err != nil {
		return fmt.Errorf("encode the record of pod %s: %w", uid, err)
	}
	outcome, _ := json.Marshal(r.Durable.Outcome) // part of what has just been encoded
	termination, _ := json.Marshal(r.Durable.Termination)

	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		return errors.New("the store of pod records is closed")
	}
	k := s.known[uid]
	if k == nil {
		k = &onDisk{outcome: []byte("null"), termination: []byte("null")}
		s.known[uid] = k
	}
	if h := maphash.Bytes(s.seed, boot); h != k.boot {
		if err := s.writeBoot(uid, boot); err != nil {
			s.mu.Unlock()
			return err
		}
		k.boot = h
	}
	h := maphash.Bytes(s.seed, durable)
	if h == k.durable {
		s.mu.Unlock()
		return nil
	}
	must := !bytes.Equal(outcome, k.outcome) || !bytes.Equal(termination, k.termination)
	wait, err := s.writeNext(uid, durable, must)
	if err != nil {
		s.mu.Unlock()
		return err
	}
	k.durable = h
	s.mu.Unlock()
	if wait != nil {
		if err := <-wait; err != nil {
			s.mu.Lock()
			k.durable = 0 // so that the next Save writes it again
			s.mu.Unlock()
			return err
		}
	}
	s.mu.Lock()
	k.outcome, k.termination = outcome, termination
	s.mu.Unlock()
	return nil
}

// writeBoot stores the boot-scoped part. The caller holds mu.
func (s *Store) writeBoot(uid pod.UID, content []byte) error {
	path := s.bootPath(uid)
	failpoint.Hit("checkpoint/boot-write")
	if err := os.WriteFile(path+tempSuffix, content, 0o600); err != nil {
		return fmt.Errorf("write the record of pod %s: %w", uid, err)
	}
	failpoint.Hit("checkpoint/boot-rename")
	if err := os.Rename(path+tempSuffix, path); err != nil {
		return fmt.Errorf("store the record of pod %s: %w", uid, err)
	}
	failpoint.Hit("checkpoint/boot-rename-done")
	return nil
}

// writeNext hands the durable part to the kernel and asks for its commit. The
// caller holds mu. With must it returns where the commit's result arrives.
func (s *Store) writeNext(uid pod.UID, content []byte, must bool) (<-chan error, error) {
	next := s.nextPath(uid)
	failpoint.Hit("checkpoint/durable-write")
	if err := os.WriteFile(next+tempSuffix, content, 0o600); err != nil {
		return nil, fmt.Errorf("write the record of pod %s: %w", uid, err)
	}
	failpoint.Hit("checkpoint/durable-next")
	if err := os.Rename(next+tempSuffix, next); err != nil {
		return nil, fmt.Errorf("store the record of pod %s: %w", uid, err)
	}
	failpoint.Hit("checkpoint/durable-next-done")
	c := s.pending[uid]
	if c == nil {
		c = &commit{}
		s.pending[uid] = c
	}
	s.generations++
	c.generation = s.generations
	var result chan error
	if must {
		result = make(chan error, 1)
		c.waiters = append(c.waiters, waiter{c.generation, result})
	}
	s.ring()
	return result, nil
}

func (s *Store) ring() {
	select {
	case s.wake <- struct{}{}:
	default: // the committer has been called and not yet come
	}
}

// Erase removes the record of pod uid; one that is not there is removed already.
func (s *Store) Erase(uid pod.UID) error {
	if err := checkUID(uid); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var errs []error
	// The newer durable file goes last but one: were it first, a kill between the
	// two would bring the older one back to life.
	for _, path := range []string{s.bootPath(uid), s.durablePath(uid), s.nextPath(uid)} {
		failpoint.Hit("checkpoint/remove")
		if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, fmt.Errorf("remove the record of pod %s: %w", uid, err))
		}
		failpoint.Hit("checkpoint/remove-done")
	}
	if c := s.pending[uid]; c != nil {
		for _, w := range c.waiters {
			w.result <- fmt.Errorf("the record of pod %s was erased", uid)
		}
		delete(s.pending, uid)
	}
	delete(s.known, uid)
	return errors.Join(errs...)
}

// Corrupt is the number of files that Load has set aside.
func (s *Store) Corrupt() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.corrupt
}

func (s *Store) durablePath(uid pod.UID) string {
	return filepath.Join(s.config.DurableDir, string(uid)+durableSuffix)
}

func (s *Store) nextPath(uid pod.UID) string {
	return filepath.Join(s.config.DurableDir, string(uid)+nextSuffix)
}

func (s *Store) bootPath(uid pod.UID) string {
	return filepath.Join(s.config.BootDir, string(uid)+durableSuffix)
}

// checkUID keeps a UID from being a path: it comes from manifests.
func checkUID(uid pod.UID) error {
	if uid == "" || len(uid) > 200 || strings.ContainsAny(string(uid), "/\x00") || strings.HasPrefix(string(uid), ".") {
		return &pod.Error{Op: "pod record", Kind: pod.Invalid, Err: fmt.Errorf("UID %q cannot name a file", uid)}
	}
	return nil
}

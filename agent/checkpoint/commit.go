package checkpoint

import (
	"errors"
	"fmt"
	"os"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

// commitLoop is the committer: the only one that makes a UID.json.
func (s *Store) commitLoop() {
	defer close(s.done)
	for {
		select {
		case <-s.wake:
			s.commitAll()
		case <-s.quit:
			s.commitAll()
			return
		}
	}
}

// batched is a commit as it stood when its batch was taken.
type batched struct {
	uid        pod.UID
	generation uint64
	err        error
}

// commitAll makes safe all that is pending, with one fsync of the directory.
func (s *Store) commitAll() {
	s.mu.Lock()
	batch := make([]batched, 0, len(s.pending))
	for uid, c := range s.pending {
		batch = append(batch, batched{uid: uid, generation: c.generation})
	}
	s.mu.Unlock()
	if len(batch) == 0 {
		return
	}
	for i := range batch {
		b := &batch[i]
		failpoint.Hit("checkpoint/durable-fsync")
		b.err = syncPath(s.nextPath(b.uid))
	}
	s.mu.Lock()
	for i := range batch {
		s.install(&batch[i])
	}
	s.mu.Unlock()
	failpoint.Hit("checkpoint/dir-fsync")
	dirErr := syncPath(s.config.DurableDir)
	failpoint.Hit("checkpoint/dir-fsync-done")
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, b := range batch {
		s.settle(b, dirErr)
	}
}

// install renames what has been fsynced, unless a newer one has taken its place.
func (s *Store) install(b *batched) {
	c := s.pending[b.uid]
	if b.err != nil || c == nil || c.generation != b.generation {
		return
	}
	failpoint.Hit("checkpoint/durable-rename")
	b.err = os.Rename(s.nextPath(b.uid), s.durablePath(b.uid))
	failpoint.Hit("checkpoint/durable-rename-done")
}

// settle answers those who wait for b, or leaves them to the next round. The
// caller holds mu.
func (s *Store) settle(b batched, dirErr error) {
	c := s.pending[b.uid]
	if c == nil {
		return // erased meanwhile
	}
	err := errors.Join(b.err, dirErr)
	if err != nil {
		err = fmt.Errorf("commit the record of pod %s: %w", b.uid, err)
		s.config.Log.Error("pod record is not safe from a power cut", "uid", string(b.uid), "err", err)
	}
	if c.generation != b.generation {
		if err == nil {
			s.ring() // replaced while it was being committed: its waiters wait for the newer one
			return
		}
		s.ring()
	} else {
		delete(s.pending, b.uid)
	}
	kept := c.waiters[:0]
	for _, w := range c.waiters {
		if w.generation > b.generation {
			kept = append(kept, w)
			continue
		}
		w.result <- err
	}
	c.waiters = kept
}

// syncPath fsyncs a file or directory.
func syncPath(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	failpoint.Hit("agent/checkpoint/sync")
	err = f.Sync()
	return errors.Join(err, f.Close())
}

package checkpoint

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

// bootFile is the boot-scoped file's content.
type bootFile struct {
	BootID string
	Boot   pod.Boot
}

// Load reads every record. A file that cannot be read is set aside
// (UID.json.corrupt-TIME), logged once and counted; what it told is rebuilt from
// what the host shows. Only directories that cannot be listed are an error.
// Call it before the first Save.
func (s *Store) Load() (map[pod.UID]pod.Record, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	records := map[pod.UID]pod.Record{}
	if err := s.adoptNext(); err != nil {
		return nil, err
	}
	err := s.each(s.config.DurableDir, durableSuffix, func(uid pod.UID, content []byte) error {
		var d pod.Durable
		if err := json.Unmarshal(content, &d); err != nil {
			return err
		}
		if d.Pod == nil || pod.UID(d.Pod.UID) != uid {
			return fmt.Errorf("it is not the record of a pod with UID %s", uid)
		}
		records[uid] = pod.Record{Durable: d}
		return nil
	})
	if err != nil {
		return nil, err
	}
	err = s.each(s.config.BootDir, durableSuffix, func(uid pod.UID, content []byte) error {
		var b bootFile
		if err := json.Unmarshal(content, &b); err != nil {
			return err
		}
		r, ok := records[uid]
		if !ok || b.BootID != s.config.BootID {
			failpoint.Hit("checkpoint/void-remove")
			return ignoreGone(os.Remove(s.bootPath(uid))) // of a pod that is gone, or of an earlier boot
		}
		r.Boot = b.Boot
		records[uid] = r
		return nil
	})
	for uid, r := range records {
		s.known[uid] = s.remember(r)
	}
	return records, err
}

// remember tells Save what is on disk, so that taking a pod up writes nothing.
// What was decoded a moment ago can be encoded.
func (s *Store) remember(r pod.Record) *onDisk {
	durable, _ := json.Marshal(r.Durable)
	boot, _ := json.Marshal(bootFile{BootID: s.config.BootID, Boot: r.Boot})
	outcome, _ := json.Marshal(r.Durable.Outcome)
	termination, _ := json.Marshal(r.Durable.Termination)
	return &onDisk{
		durable: maphash.Bytes(s.seed, durable), boot: maphash.Bytes(s.seed, boot),
		outcome: outcome, termination: termination,
	}
}

// adoptNext makes every complete UID.next the record: it was written after the
// UID.json beside it. An incomplete one is of a power cut, and is dropped.
func (s *Store) adoptNext() error {
	for _, dir := range []string{s.config.DurableDir, s.config.BootDir} {
		leftovers, err := filepath.Glob(filepath.Join(escapeGlob(dir), "*"+tempSuffix))
		if err != nil {
			return fmt.Errorf("list unfinished records in %s: %w", dir, err)
		}
		for _, path := range leftovers {
			failpoint.Hit("checkpoint/temp-remove")
			if err := ignoreGone(os.Remove(path)); err != nil {
				s.config.Log.Warn("unfinished pod record stays on disk", "path", path, "err", err)
			}
		}
	}
	return s.each(s.config.DurableDir, nextSuffix, func(uid pod.UID, content []byte) error {
		var d pod.Durable
		if err := json.Unmarshal(content, &d); err != nil {
			return err
		}
		failpoint.Hit("checkpoint/adopt-fsync")
		if err := syncPath(s.nextPath(uid)); err != nil {
			return err
		}
		failpoint.Hit("checkpoint/adopt-rename")
		return os.Rename(s.nextPath(uid), s.durablePath(uid))
	})
}

// each calls f with every record file in dir, and sets aside those f refuses.
func (s *Store) each(dir, suffix string, f func(pod.UID, []byte) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("list the pod records in %s: %w", dir, err)
	}
	for _, e := range entries {
		name, ok := strings.CutSuffix(e.Name(), suffix)
		if !ok {
			continue
		}
		path := filepath.Join(dir, e.Name())
		content, err := readLimited(path)
		if err == nil {
			err = f(pod.UID(name), content)
		}
		if err != nil {
			s.setAside(path, err)
		}
	}
	return nil
}

// readLimited reads a regular file of sane size.
func readLimited(path string) ([]byte, error) {
	st, err := os.Lstat(path)
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, errors.New("it is not a regular file")
	}
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, maxRecord+1))
	if err == nil && len(content) > maxRecord {
		err = fmt.Errorf("it is longer than %d bytes", maxRecord)
	}
	if err == nil && len(bytes.TrimSpace(content)) == 0 {
		err = errors.New("it is empty")
	}
	return content, err
}

// setAside renames a file that cannot be used, so that it is neither met again nor lost.
func (s *Store) setAside(path string, cause error) {
	s.corrupt++
	aside := fmt.Sprintf("%s.corrupt-%d", path, time.Now().Unix())
	failpoint.Hit("checkpoint/quarantine")
	err := os.Rename(path, aside)
	s.config.Log.Warn("pod record cannot be used and is set aside; the pod is rebuilt from what the host shows", "path", path, "aside", aside, "cause", cause, "err", err)
}

func ignoreGone(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}

func escapeGlob(dir string) string {
	return strings.NewReplacer(`\`, `\\`, `*`, `\*`, `?`, `\?`, `[`, `\[`).Replace(dir)
}

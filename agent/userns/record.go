package userns

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/berthd/berth/agent/pod"
	"github.com/berthd/berth/test/failpoint"
)

const (
	recordName = "userns"
	maxRecord  = 4 << 10
)

// record is the kubelet's format.
type record struct {
	UIDMappings []mapping `json:"uidMappings"`
	GIDMappings []mapping `json:"gidMappings"`
}

type mapping struct {
	HostID      uint32 `json:"hostId"`
	ContainerID uint32 `json:"containerId"`
	Length      uint32 `json:"length"`
}

// readRecord returns what the file at path says; the error of one that is not
// there satisfies os.IsNotExist.
func readRecord(path string) (pod.IDMapping, error) {
	f, err := os.Open(path)
	if err != nil {
		return pod.IDMapping{}, err
	}
	defer f.Close()
	body, err := io.ReadAll(io.LimitReader(f, maxRecord))
	if err != nil {
		return pod.IDMapping{}, err
	}
	var r record
	if err := json.Unmarshal(body, &r); err != nil {
		return pod.IDMapping{}, fmt.Errorf("not a record of a user namespace: %w", err)
	}
	if len(r.UIDMappings) != 1 || len(r.GIDMappings) != 1 || r.UIDMappings[0] != r.GIDMappings[0] {
		return pod.IDMapping{}, errors.New("not one range that is the same for users and groups")
	}
	m := pod.IDMapping(r.UIDMappings[0])
	return m, sound(m)
}

// sound says what is wrong with a range.
func sound(m pod.IDMapping) error {
	switch {
	case m.Length == 0 || m.ContainerID != 0:
		return errors.New("the range is empty or does not begin with the container's root")
	case uint64(m.HostID)+uint64(m.Length) > 1<<32:
		return errors.New("the range ends above 32 bits")
	case m.HostID < unit:
		return errors.New("the range reaches into the host's own IDs")
	}
	return nil
}

// writeRecord makes the record durable: a range that is in use must be known
// after a power cut too, for the kubelet or another agent reads it then.
func writeRecord(dir string, m pod.IDMapping) error {
	failpoint.Hit("agent/userns/pod-mkdir")
	if err := os.MkdirAll(dir, 0o750); err != nil {
		return err
	}
	body, err := json.Marshal(record{UIDMappings: []mapping{mapping(m)}, GIDMappings: []mapping{mapping(m)}})
	if err != nil {
		return err
	}
	temporary := filepath.Join(dir, recordName+".tmp") // one left by a kill is written over
	failpoint.Hit("agent/userns/record-write")
	f, err := os.OpenFile(temporary, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return err
	}
	failpoint.Hit("agent/userns/record-rename")
	if err := os.Rename(temporary, filepath.Join(dir, recordName)); err != nil {
		return err
	}
	failpoint.Hit("agent/userns/record-rename-done")
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

func eraseRecord(dir string) error {
	failpoint.Hit("agent/userns/record-remove")
	for _, name := range []string{recordName + ".tmp", recordName} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			return err
		}
	}
	failpoint.Hit("agent/userns/record-remove-done")
	return nil
}

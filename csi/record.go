package csi

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/berthd/berth/csi/local"
	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
)

// recordName is the file that says that a pod's volumes are all set up. It only
// saves the next agent from doing so again: losing it costs one Mount. It is
// boot-scoped (mounts end with the boot), so it is written without fsync.
const recordName = "volumes.json"

// maxRecord bounds what is read back.
const maxRecord = 1 << 20

type podRecord struct {
	Boot    string         `json:"boot"`
	Volumes []volumeRecord `json:"volumes"`
}

type volumeRecord struct {
	Name     string      `json:"name"`
	Kind     volume.Kind `json:"kind"`
	HostPath string      `json:"hostPath"`
	Dir      string      `json:"dir,omitempty"`
	Marker   string      `json:"marker,omitempty"`
	InMemory bool        `json:"inMemory,omitempty"`
	ReadOnly bool        `json:"readOnly,omitempty"`
	Limit    int64       `json:"limit,omitempty"`
}

// plan is the volume as far as the record tells it.
func (r volumeRecord) plan() volume.Volume {
	return volume.Volume{Name: r.Name, Kind: r.Kind, Dir: r.Dir, Marker: r.Marker, InMemory: r.InMemory, Limit: r.Limit}
}

func (v *Volumes) record(dir string, planned []volume.Volume, all map[string]Volume) error {
	r := podRecord{Boot: v.boot}
	for _, one := range planned {
		r.Volumes = append(r.Volumes, volumeRecord{
			Name: one.Name, Kind: one.Kind, HostPath: all[one.Name].HostPath,
			Dir: one.Dir, Marker: one.Marker, InMemory: one.InMemory, ReadOnly: one.ReadOnly, Limit: one.Limit,
		})
	}
	content, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("encode the record of volumes: %w", err)
	}
	path := filepath.Join(dir, recordName)
	failpoint.Hit("csi/record-write")
	if err := os.WriteFile(path+".tmp", content, 0o600); err != nil {
		return fmt.Errorf("record the volumes: %w", err)
	}
	failpoint.Hit("csi/record-rename")
	if err := os.Rename(path+".tmp", path); err != nil {
		return fmt.Errorf("record the volumes: %w", err)
	}
	failpoint.Hit("csi/record-rename-done")
	return nil
}

// recall reads the record and believes it only as far as the host agrees.
func (v *Volumes) recall(dir string) (known, bool) {
	path := filepath.Join(dir, recordName)
	st, err := os.Lstat(path)
	if err != nil || !st.Mode().IsRegular() || st.Size() > maxRecord {
		return known{}, false
	}
	content, err := os.ReadFile(path)
	if err != nil {
		return known{}, false
	}
	var r podRecord
	if err := json.Unmarshal(content, &r); err != nil {
		v.cfg.Logger.Warn("record of volumes is not readable; they will be set up again", "path", path, "err", err)
		return known{}, false
	}
	if r.Boot != v.boot {
		return known{}, false
	}
	k := known{all: make(map[string]Volume, len(r.Volumes))}
	for _, one := range r.Volumes {
		planned := one.plan()
		if one.Kind != volume.HostPath && !local.Present(v.cfg.Mounter, dir, planned) {
			return known{}, false
		}
		k.all[one.Name] = Volume{HostPath: one.HostPath, ReadOnly: one.ReadOnly}
		k.scratch = appendScratch(k.scratch, planned, one.HostPath)
	}
	return k, true
}

func eraseRecord(dir string) error {
	failpoint.Hit("csi/record-erase")
	for _, name := range []string{recordName, recordName + ".tmp"} {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("erase the record of volumes: %w", err)
		}
	}
	failpoint.Hit("csi/record-erase-done")
	return nil
}

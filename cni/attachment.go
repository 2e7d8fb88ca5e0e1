package cni

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// attachment is the record of one sandbox's attachment: enough to ask every
// plugin to undo what it did, whatever has become of the configuration since.
type attachment struct {
	Request  Request         `json:"request"`
	Network  string          `json:"network"`
	Owned    bool            `json:"owned"` // the default network's
	Conflist json.RawMessage `json:"conflist"`
	IPs      []string        `json:"ips,omitempty"`     // once ADD has answered
	Undoing  bool            `json:"undoing,omitempty"` // a DEL of its plugins was begun
}

// attachments are the records, one file a sandbox. Those of the default network
// are in boot: after a reboot nothing is left that they could release.
type attachments struct{ dir, boot string }

// in is the directory of the records of the default network, or of the others.
func (a attachments) in(owned bool) string {
	if owned {
		return a.boot
	}
	return a.dir
}

// path is where a sandbox's record is, if it has one.
func (a attachments) path(sandbox string) string {
	if path := filepath.Join(a.boot, sandbox+".json"); exists(path) {
		return path
	}
	return filepath.Join(a.dir, sandbox+".json")
}

func exists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}

// write stores x; with flush it is on the disk when write returns.
func (a attachments) write(x *attachment, flush bool) error {
	body, err := json.Marshal(x)
	if err != nil {
		return err
	}
	dir := a.in(x.Owned)
	temporary := filepath.Join(dir, "."+x.Request.SandboxID+".tmp")
	failpoint.Hit("cni/record-write")
	f, err := os.OpenFile(temporary, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(body)
	if err == nil && flush {
		err = f.Sync()
	}
	if err := errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write the attachment record %s: %w", temporary, err)
	}
	failpoint.Hit("cni/record-rename")
	if err := os.Rename(temporary, filepath.Join(dir, x.Request.SandboxID+".json")); err != nil {
		return err
	}
	if flush {
		return syncDir(dir)
	}
	return nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	failpoint.Hit("cni/record-sync")
	return errors.Join(d.Sync(), d.Close())
}

// errTorn is a record that could not be read and has been renamed aside.
var errTorn = errors.New("the attachment's record was unreadable and has been set aside")

// read returns the record of a sandbox, nil if there is none. An unreadable one
// is renamed aside, and errTorn returned once.
func (a attachments) read(sandbox string) (*attachment, error) {
	x, err := a.peek(sandbox)
	if !errors.Is(err, errTorn) {
		return x, err
	}
	aside := fmt.Sprintf("%s.corrupt-%d", a.path(sandbox), time.Now().Unix())
	failpoint.Hit("cni/record-quarantine")
	if err := os.Rename(a.path(sandbox), aside); err != nil {
		return nil, err
	}
	return nil, errTorn
}

// erase removes a sandbox's record. Idempotent.
func (a attachments) erase(sandbox string) error {
	failpoint.Hit("cni/record-erase")
	if err := os.Remove(a.path(sandbox)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// peek returns the record of a sandbox, nil if there is none, and leaves it as it is.
func (a attachments) peek(sandbox string) (*attachment, error) {
	body, err := os.ReadFile(a.path(sandbox))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	x := &attachment{}
	if err := json.Unmarshal(body, x); err != nil || x.Request.SandboxID != sandbox {
		return nil, errTorn
	}
	return x, nil
}

// bridge is the bridge that an attachment to the default network is on.
func (x *attachment) bridge() string {
	var c struct {
		Plugins []struct {
			Bridge string `json:"bridge"`
		} `json:"plugins"`
	}
	if json.Unmarshal(x.Conflist, &c) != nil || len(c.Plugins) == 0 {
		return ""
	}
	return c.Plugins[0].Bridge
}

// list returns the sandboxes that have a record.
func (a attachments) list() ([]string, error) {
	var ids []string
	for _, dir := range []string{a.dir, a.boot} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if id, ok := strings.CutSuffix(e.Name(), ".json"); ok && !strings.HasPrefix(id, ".") {
				ids = append(ids, id)
			}
		}
	}
	slices.Sort(ids)
	return slices.Compact(ids), nil
}

// dropTemporaries drops half-written records that nobody is writing: their ADD
// was never called.
func (a attachments) dropTemporaries(busy *keyed) error {
	for _, dir := range []string{a.dir, a.boot} {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return err
		}
		for _, e := range entries {
			id, ok := strings.CutSuffix(e.Name(), ".tmp")
			if !ok || !strings.HasPrefix(id, ".") {
				continue
			}
			unlock := busy.try(id[1:])
			if unlock == nil {
				continue
			}
			failpoint.Hit("cni/record-drop-temporary")
			_ = os.Remove(filepath.Join(dir, e.Name())) // found again the next time
			unlock()
		}
	}
	return nil
}

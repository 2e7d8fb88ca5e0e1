package local

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path"
	"strings"
	"time"

	"github.com/berthd/berth/csi/volume"
	"github.com/berthd/berth/test/failpoint"
)

// dataLink is the symbolic link whose rename switches a volume from one content
// to the next.
const (
	dataLink    = "..data"
	dataLinkTmp = "..data_tmp"
)

// writer replaces the content of a rendered volume at one instant. The layout is
// the kubelet's, and programs watch it:
//
//	volume/..2026_01_02_15_04_05.123456/key   the content
//	volume/..data -> ..2026_01_02_15_04_05.123456
//	volume/key -> ..data/key
//
//	(nothing) ─▶ new directory half written ─▶ complete ─▶ ..data renamed ─▶ links tidied, old directory gone
//	     ▲               │                        │             │
//	     └───────────────┴── killed: swept ───────┘             └── killed: only tidied
//
// Whatever the last run left, the next one ends in the last state.
type writer struct {
	pod Pod
	now time.Time
}

// write makes payload the content of dir and says whether the content changed.
func (w writer) write(dir string, payload volume.Payload) (changed bool, err error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return false, err
	}
	defer root.Close()
	current := currentContent(root)
	if current == "" || !w.same(root, current, payload) {
		if current, err = w.replace(root, payload); err != nil {
			return false, err
		}
		changed = true
	}
	return changed, tidy(root, current, payload)
}

// currentContent returns the directory that dataLink points to, or "".
func currentContent(root *os.Root) string {
	target, err := root.Readlink(dataLink)
	if err != nil || strings.Contains(target, "/") || !strings.HasPrefix(target, "..") {
		return ""
	}
	if st, err := root.Lstat(target); err != nil || !st.IsDir() {
		return ""
	}
	return target
}

// replace writes a new directory and switches to it.
func (w writer) replace(root *os.Root, payload volume.Payload) (string, error) {
	name := fmt.Sprintf("%s%d", w.now.Format("..2006_01_02_15_04_05."), rand.Uint32())
	failpoint.Hit("csi/local/render-mkdir")
	if err := w.mkdir(root, name); err != nil {
		return "", err
	}
	for file, content := range payload {
		if err := w.mkdirs(root, name, path.Dir(file)); err != nil {
			return "", err
		}
		failpoint.Hit("csi/local/render-file")
		if err := w.file(root, path.Join(name, file), content); err != nil {
			return "", err
		}
	}
	failpoint.Hit("csi/local/render-link")
	if err := root.Remove(dataLinkTmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", err
	}
	if err := root.Symlink(name, dataLinkTmp); err != nil {
		return "", err
	}
	failpoint.Hit("csi/local/render-rename")
	if err := root.Rename(dataLinkTmp, dataLink); err != nil {
		return "", err
	}
	failpoint.Hit("csi/local/render-rename-done")
	return name, nil
}

// mkdirs makes dir below the content directory name, element by element.
func (w writer) mkdirs(root *os.Root, name, dir string) error {
	if dir == "." {
		return nil
	}
	at := name
	for _, element := range strings.Split(dir, "/") {
		at = path.Join(at, element)
		if err := w.mkdir(root, at); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (w writer) mkdir(root *os.Root, name string) error {
	failpoint.Hit("csi/local/writer-mkdir")
	if err := root.Mkdir(name, 0o700); err != nil {
		return err
	}
	return w.pod.own(path.Join(root.Name(), name), 0o755)
}

func (w writer) file(root *os.Root, name string, content volume.File) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(content.Data)
	if gid, ok := w.pod.fsGroup(); ok && err == nil {
		err = f.Chown(-1, gid)
	}
	if err == nil {
		err = f.Chmod(w.mode(content))
	}
	return errors.Join(err, f.Close())
}

func (w writer) mode(f volume.File) fs.FileMode {
	mode := fs.FileMode(f.Mode & 0o777)
	if _, ok := w.pod.fsGroup(); ok {
		mode |= groupReads
	}
	return mode
}

// same says whether the directory name holds exactly payload: no more, no less,
// with these modes. Any doubt is a no; then the content is written again.
func (w writer) same(root *os.Root, name string, payload volume.Payload) bool {
	seen := 0
	err := fs.WalkDir(root.FS(), name, func(at string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		want, ok := payload[strings.TrimPrefix(at, name+"/")]
		if !ok {
			return fs.ErrNotExist
		}
		seen++
		return w.sameFile(root, at, want)
	})
	return err == nil && seen == len(payload)
}

var errDiffers = errors.New("differs")

func (w writer) sameFile(root *os.Root, name string, want volume.File) error {
	st, err := root.Lstat(name)
	if err != nil {
		return err
	}
	if st.Size() != int64(len(want.Data)) || st.Mode() != w.mode(want) {
		return errDiffers
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(f, int64(len(want.Data))+1))
	if err != nil {
		return err
	}
	if !bytes.Equal(have, want.Data) {
		return errDiffers
	}
	return nil
}

// tidy makes the names at the top of the volume those of payload and removes
// what earlier contents, or a writer killed half way, left there.
func tidy(root *os.Root, current string, payload volume.Payload) error {
	want := map[string]bool{}
	for _, name := range payload.Top() {
		want[name] = true
		if err := link(root, name); err != nil {
			return err
		}
	}
	dir, err := root.Open(".")
	if err != nil {
		return err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return err
	}
	for _, name := range names {
		if want[name] || name == dataLink || name == current {
			continue
		}
		if err := sweep(root, name); err != nil {
			return err
		}
	}
	return nil
}

// link makes name a link to the content. An empty directory in its place was
// made for a subPath while the key was missing, and gives way.
func link(root *os.Root, name string) error {
	target := path.Join(dataLink, name)
	if have, err := root.Readlink(name); err == nil && have == target {
		return nil
	}
	failpoint.Hit("csi/local/render-name")
	if err := root.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return root.Symlink(target, name)
}

// sweep removes name if it is the writer's own: a content directory, or a link
// into the content. Anything else at the top was not made here and stays.
func sweep(root *os.Root, name string) error {
	target, err := root.Readlink(name)
	switch {
	case name == dataLinkTmp, err == nil && strings.HasPrefix(target, dataLink+"/"):
		failpoint.Hit("csi/local/render-unlink")
		return root.Remove(name)
	case strings.HasPrefix(name, ".."):
		failpoint.Hit("csi/local/render-sweep")
		return root.RemoveAll(name)
	}
	return nil
}

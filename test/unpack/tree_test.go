package unpack

import (
	"crypto/sha256"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// object is one path of a tree, as far as two trees are to be alike.
type object struct {
	mode     uint32
	uid, gid uint32
	size     int64
	rdev     uint64
	mtime    unix.Timespec
	content  string // digest, or target of a link
	xattrs   string
	inode    uint64
	nlink    uint64
}

func (o object) directory() bool { return o.mode&unix.S_IFMT == unix.S_IFDIR }

// tree is what is below a directory, by path.
func tree(t testing.TB, root string) map[string]object {
	t.Helper()
	out := map[string]object{}
	err := filepath.WalkDir(root, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		o, err := look(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		rel, err := filepath.Rel(root, path)
		out[rel] = o
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func look(path string) (object, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return object{}, err
	}
	o := object{mode: st.Mode, uid: st.Uid, gid: st.Gid, rdev: uint64(st.Rdev), mtime: st.Mtim, inode: st.Ino, nlink: uint64(st.Nlink)}
	var err error
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFREG:
		o.size = st.Size
		o.content, err = digestOf(path)
	case unix.S_IFLNK:
		o.content, err = os.Readlink(path)
	}
	if err != nil {
		return o, err
	}
	o.xattrs, err = xattrs(path)
	return o, err
}

func digestOf(path string) (string, error) {
	f, err := os.Open(path)
	if err != nil {
		return "", err
	}
	defer f.Close()
	h := sha256.New()
	_, err = io.Copy(h, f)
	return fmt.Sprintf("%x", h.Sum(nil)), err
}

func xattrs(path string) (string, error) {
	b := make([]byte, 64<<10)
	n, err := unix.Llistxattr(path, b)
	if err != nil {
		return "", err
	}
	var out []string
	for _, name := range strings.FieldsFunc(string(b[:n]), func(r rune) bool { return r == 0 }) {
		v := make([]byte, 64<<10)
		n, err := unix.Lgetxattr(path, name, v)
		if err != nil {
			return "", err
		}
		out = append(out, fmt.Sprintf("%s=%q", name, v[:n]))
	}
	slices.Sort(out)
	return strings.Join(out, " "), nil
}

// names groups the paths of files that have several, by inode.
func names(tree map[string]object) map[string]string {
	by := map[uint64][]string{}
	for p, o := range tree {
		if !o.directory() {
			by[o.inode] = append(by[o.inode], p)
		}
	}
	out := map[string]string{}
	for _, g := range by {
		slices.Sort(g)
		for _, p := range g {
			out[p] = strings.Join(g, "\x00")
		}
	}
	return out
}

// compare fails t for each difference that is not in the list of umoci's faults.
func compare(t *testing.T, i img, ours, theirs map[string]object) {
	t.Helper()
	for p := range ours {
		if _, ok := theirs[p]; !ok {
			t.Errorf("%q: only Berth has it: %+v", p, ours[p])
		}
	}
	our, their := names(ours), names(theirs)
	for p, want := range theirs {
		got, ok := ours[p]
		if !ok {
			t.Errorf("%q: only umoci has it: %+v", p, want)
			continue
		}
		if our[p] != their[p] {
			t.Errorf("%q: is one file with %q here, with %q at umoci's", p, our[p], their[p])
		}
		if got.nlink != want.nlink && !got.directory() && !hiddenName(i, their[p], got, want) {
			t.Errorf("%q: has %d names, at umoci's %d", p, got.nlink, want.nlink)
		}
		if timeOfUnpacking(got, want) {
			got.mtime = want.mtime
		}
		got.xattrs = strings.TrimSpace(emptyValues.ReplaceAllString(got.xattrs, ""))
		got.inode, got.nlink, want.inode, want.nlink = 0, 0, 0, 0
		if got != want {
			t.Errorf("%q:\n Berth %+v\n umoci %+v", p, got, want)
		}
	}
}

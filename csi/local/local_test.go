package local

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/berthd/berth/csi/mount"
	"github.com/berthd/berth/csi/volume"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"pgregory.net/rapid"
)

type failer interface {
	Helper()
	Fatal(...any)
}

func must(t failer, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// scratch returns a directory whose mounts are gone before it is removed.
func scratch(t *testing.T) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("mounts and ownership need root")
	}
	dir, err := filepath.EvalSymlinks(t.TempDir())
	must(t, err)
	t.Cleanup(func() {
		paths, err := mount.Kernel{}.Below(dir)
		must(t, err)
		for _, p := range paths {
			must(t, mount.Kernel{}.Unmount(p))
		}
	})
	return dir
}

func podIn(dir string, group *int64) Pod {
	p := &v1.Pod{}
	if group != nil {
		p.Spec.SecurityContext = &v1.PodSecurityContext{FSGroup: group}
	}
	return Pod{Dir: dir, Facts: volume.Facts{Pod: p}}
}

// list renders a volume as a container sees it: path, mode, group and content or target.
func list(t failer, dir string) string {
	t.Helper()
	var b strings.Builder
	stamp := regexp.MustCompile(`\.\.\d{4}_[\d_.]+`)
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		must(t, err)
		st, err := e.Info()
		must(t, err)
		gid := st.Sys().(*syscall.Stat_t).Gid
		rel, _ := filepath.Rel(dir, p)
		rel = stamp.ReplaceAllString(rel, "..TIME")
		switch {
		case st.Mode()&fs.ModeSymlink != 0:
			target, _ := os.Readlink(p)
			fmt.Fprintf(&b, "%s -> %s\n", rel, stamp.ReplaceAllString(target, "..TIME"))
		case st.IsDir():
			fmt.Fprintf(&b, "%s/ %o %d\n", rel, modeBits(st.Mode()), gid)
		default:
			content, _ := os.ReadFile(p)
			fmt.Fprintf(&b, "%s %o %d %s\n", rel, modeBits(st.Mode()), gid, content)
		}
		return nil
	}))
	return strings.TrimSpace(b.String())
}

func modeBits(m fs.FileMode) uint32 {
	bits := uint32(m.Perm())
	if m&fs.ModeSetgid != 0 {
		bits |= unix.S_ISGID
	}
	return bits
}

func payload(pairs ...string) volume.Payload {
	p := volume.Payload{}
	for i := 0; i < len(pairs); i += 2 {
		p[pairs[i]] = volume.File{Data: []byte(pairs[i+1]), Mode: 0o644}
	}
	return p
}

func TestWriterLayout(t *testing.T) {
	group := int64(4242)
	for _, tc := range []struct {
		name  string
		group *int64
		want  string
	}{
		{name: "plain", want: `
./ 755 0
..TIME/ 755 0
..TIME/a 644 0 1
..TIME/d/ 755 0
..TIME/d/e/ 755 0
..TIME/d/e/f 400 0 2
..data -> ..TIME
a -> ..data/a
d -> ..data/d`},
		{name: "fsGroup", group: &group, want: `
./ 755 0
..TIME/ 2755 4242
..TIME/a 644 4242 1
..TIME/d/ 2755 4242
..TIME/d/e/ 2755 4242
..TIME/d/e/f 440 4242 2
..data -> ..TIME
a -> ..data/a
d -> ..data/d`},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := scratch(t)
			must(t, os.Chmod(dir, 0o755))
			p := payload("a", "1")
			p["d/e/f"] = volume.File{Data: []byte("2"), Mode: 0o400}
			old := unix.Umask(0o077) // the writer's modes do not depend on it
			_, err := writer{pod: podIn(dir, tc.group), now: time.Now()}.write(dir, p)
			unix.Umask(old)
			must(t, err)
			if got := list(t, dir); got != strings.TrimSpace(tc.want) {
				t.Errorf("got\n%s\nwant%s", got, tc.want)
			}
		})
	}
}

func TestWriterWritesOnlyChanges(t *testing.T) {
	dir := scratch(t)
	w := writer{pod: podIn(dir, nil), now: time.Now()}
	steps := []struct {
		payload volume.Payload
		changed bool
		top     string
	}{
		{payload("a", "1", "b/c", "2"), true, "a b"},
		{payload("a", "1", "b/c", "2"), false, "a b"},
		{payload("a", "9", "b/c", "2"), true, "a b"}, // same length
		{payload("a", "9"), true, "a"},
		{payload("a", "9", "n", ""), true, "a n"},
		{payload("a", "9", "n", ""), false, "a n"},
		{payload(), true, ""},
		{payload(), false, ""},
		{payload("a/b", "x"), true, "a"},
		{payload("a", "x"), true, "a"},
	}
	for i, s := range steps {
		before := stamps(t, dir)
		changed, err := w.write(dir, s.payload)
		must(t, err)
		if changed != s.changed {
			t.Errorf("step %d: changed %v, want %v", i, changed, s.changed)
		}
		if after := stamps(t, dir); !s.changed && after != before {
			t.Errorf("step %d: an idle write touched something:\n%s\n%s", i, before, after)
		}
		checkShown(t, dir, s.payload)
		if got := strings.Join(s.payload.Top(), " "); got != s.top {
			t.Errorf("step %d: top %q, want %q", i, got, s.top)
		}
	}
}

// stamps changes with every write below dir, also of mode, owner and directory entries.
func stamps(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		fmt.Fprintln(&b, p, st.Ino, st.Ctim)
		return nil
	}))
	return b.String()
}

// checkShown checks that a reader sees exactly the payload, and that the
// directory holds nothing but it.
func checkShown(t failer, dir string, want volume.Payload) {
	t.Helper()
	for name, f := range want {
		got, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		if string(got) != string(f.Data) {
			t.Fatal(fmt.Sprintf("%s holds %q, want %q", name, got, f.Data))
		}
	}
	entries, err := os.ReadDir(dir)
	must(t, err)
	if len(entries) != len(want.Top())+2 {
		t.Fatal(fmt.Sprintf("left-overs in the volume:\n%s", list(t, dir)))
	}
}

// TestWriterRecoversFromAnything cuts an earlier writer short by breaking what it
// left at random, and expects the next one to make the volume right.
func TestWriterRecoversFromAnything(t *testing.T) {
	base := scratch(t)
	n := 0
	keys := []string{"a", "b", "c/d", "c/e", "f"}
	draw := func(t *rapid.T, label string) volume.Payload {
		p := volume.Payload{}
		for _, k := range rapid.SliceOfDistinct(rapid.SampledFrom(keys), rapid.ID).Draw(t, label) {
			p[k] = volume.File{Data: []byte(rapid.SampledFrom([]string{"", "x", "yy"}).Draw(t, k)), Mode: 0o644}
		}
		return p
	}
	rapid.Check(t, func(t *rapid.T) {
		n++
		dir := filepath.Join(base, fmt.Sprint(n))
		must(t, os.Mkdir(dir, 0o755))
		w := writer{pod: podIn(dir, nil), now: time.Now()}
		_, err := w.write(dir, draw(t, "old"))
		must(t, err)
		current, err := os.Readlink(filepath.Join(dir, dataLink))
		must(t, err)
		for _, damage := range rapid.SliceOfN(rapid.IntRange(0, 6), 0, 3).Draw(t, "damage") {
			switch damage {
			case 0:
				os.Remove(filepath.Join(dir, dataLink))
			case 1:
				os.Symlink("..nowhere", filepath.Join(dir, dataLinkTmp))
			case 2:
				must(t, os.MkdirAll(filepath.Join(dir, "..2020_01_01_00_00_00.1", "half"), 0o700))
			case 3:
				os.Remove(filepath.Join(dir, "a"))
			case 4:
				os.WriteFile(filepath.Join(dir, current, "torn"), nil, 0o644)
			case 5:
				os.Truncate(filepath.Join(dir, current, "b"), 0)
			case 6:
				if os.Remove(filepath.Join(dir, "f")) == nil {
					must(t, os.Mkdir(filepath.Join(dir, "f"), 0o755)) // made for a subPath
				}
			}
		}
		next := draw(t, "new")
		_, keptDir := next["f"]
		_, err = w.write(dir, next)
		must(t, err)
		if st, err := os.Lstat(filepath.Join(dir, "f")); err == nil && st.IsDir() && !keptDir {
			must(t, os.Remove(filepath.Join(dir, "f"))) // a subPath's directory stays: it was not the writer's
		}
		checkShown(t, dir, next)
	})
}

func TestHostPathTypes(t *testing.T) {
	dir := scratch(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("dir"), 0o700))
	must(t, os.WriteFile(at("file"), nil, 0o600))
	must(t, os.Symlink("dir", at("link")))
	must(t, unix.Mknod(at("char"), unix.S_IFCHR|0o600, int(unix.Mkdev(1, 3))))
	must(t, unix.Mknod(at("block"), unix.S_IFBLK|0o600, int(unix.Mkdev(7, 200))))
	must(t, unix.Mknod(at("socket"), unix.S_IFSOCK|0o600, 0))
	for _, tc := range []struct {
		path string
		kind v1.HostPathType
		err  string
	}{
		{"nowhere", "", ""},
		{"dir", "Directory", ""},
		{"link", "Directory", ""},
		{"file", "Directory", "NotFound: hostPath type check failed: %s is not a directory"},
		{"nowhere", "Directory", "NotFound: hostPath type check failed: %s is not a directory"},
		{"new/dir", "DirectoryOrCreate", ""},
		{"new/dir", "DirectoryOrCreate", ""},
		{"file", "DirectoryOrCreate", "NotFound: hostPath type check failed: %s is not a directory"},
		{"file", "File", ""},
		{"dir", "File", "NotFound: hostPath type check failed: %s is not a file"},
		{"nowhere", "File", "NotFound: hostPath type check failed: %s is not a file"},
		{"newfile", "FileOrCreate", ""},
		{"newfile", "FileOrCreate", ""},
		{"dir", "FileOrCreate", "NotFound: hostPath type check failed: %s is not a file"},
		{"socket", "Socket", ""},
		{"file", "Socket", "NotFound: hostPath type check failed: %s is not a socket file"},
		{"char", "CharDevice", ""},
		{"block", "CharDevice", "NotFound: hostPath type check failed: %s is not a character device"},
		{"block", "BlockDevice", ""},
		{"char", "BlockDevice", "NotFound: hostPath type check failed: %s is not a block device"},
		{"dir", "Nonsense", "Invalid: Nonsense is an invalid volume type"},
		{"dir/../dir", "", "Invalid: hostPath %q must not contain '..'"},
	} {
		path := dir + "/" + tc.path
		source := &v1.HostPathVolumeSource{Path: path}
		if tc.kind != "" {
			source.Type = &tc.kind
		}
		got := ""
		if err := checkHostPath(source); err != nil {
			e := Classify("", "", err)
			got = e.Code.String() + ": " + e.Error()
		}
		want := tc.err
		if strings.Contains(want, "%") {
			want = fmt.Sprintf(want, path)
		}
		if got != want {
			t.Errorf("%s as %q: %q, want %q", tc.path, tc.kind, got, want)
		}
	}
	for name, mode := range map[string]fs.FileMode{"new": 0o755, "new/dir": 0o755, "newfile": 0o644} {
		if st, err := os.Stat(at(name)); err != nil || st.Mode().Perm() != mode {
			t.Errorf("%s was made %v (%v), want %o", name, st.Mode(), err, mode)
		}
	}
}

func TestSubPath(t *testing.T) {
	dir := scratch(t)
	vol, secret := filepath.Join(dir, "vol"), filepath.Join(dir, "secret")
	must(t, os.MkdirAll(filepath.Join(vol, "d"), 0o755))
	must(t, os.Mkdir(secret, 0o700))
	must(t, os.WriteFile(filepath.Join(secret, "key"), []byte("host"), 0o600))
	must(t, os.WriteFile(filepath.Join(vol, "d", "f"), []byte("pod"), 0o600))
	for link, target := range map[string]string{"abs": secret, "up": "../secret", "in": "d", "dangling": "nowhere", "loop": "loop", "proc": "/proc/self/root"} {
		must(t, os.Symlink(target, filepath.Join(vol, link)))
	}
	must(t, unix.Chmod(vol, 0o2775))
	for i, tc := range []struct{ sub, file, want, err string }{
		{sub: "d", file: "f", want: "pod"},
		{sub: "d/f", want: "pod"},
		{sub: "in/f", want: "pod"},
		{sub: "./d//f", want: "pod"},
		{sub: "new/deep/er"},
		{sub: "abs/key", err: "Invalid: subpath \"abs/key\" not within volume path"},
		{sub: "abs/new", err: "Invalid: subpath \"abs/new\" not within volume path"},
		{sub: "up/key", err: "Invalid: subpath \"up/key\" not within volume path"},
		{sub: "proc/etc", err: "Invalid: subpath \"proc/etc\" not within volume path"},
		{sub: "loop", err: "Invalid: subpath \"loop\" not within volume path"},
		{sub: "dangling", err: "NotFound: subPath \"dangling\" does not exist"},
		{sub: "d/f/g", err: "Invalid: subPath \"d/f/g\" leads through something"},
		{sub: "../secret", err: "Invalid: subPath \"../secret\" must not contain '..'"},
		{sub: "/etc", err: "Invalid: subPath \"/etc\" must be a relative path"},
		{sub: "", err: "Invalid: subPath \"\" must be a relative path"},
	} {
		target := filepath.Join(dir, "t", fmt.Sprint(i))
		err := SubPath(mount.Kernel{}, vol, tc.sub, target)
		got := ""
		if err != nil {
			e := Classify("", "", err)
			got = e.Code.String() + ": " + e.Error()
		}
		if tc.err == "" && err != nil || !strings.HasPrefix(got, tc.err) {
			t.Errorf("%q: %s, want %q", tc.sub, got, tc.err)
			continue
		}
		if on, _ := (mount.Kernel{}).Mounted(target); on != (tc.err == "") {
			t.Errorf("%q: mounted %v", tc.sub, on)
		}
		if tc.want != "" {
			if content, err := os.ReadFile(filepath.Join(target, tc.file)); err != nil || string(content) != tc.want {
				t.Errorf("%q shows %q, %v", tc.sub, content, err)
			}
		}
	}
	if st, err := os.Stat(filepath.Join(vol, "new", "deep")); err != nil || modeBits(st.Mode()) != 0o2775 {
		t.Errorf("made directories have mode %v (%v), want the volume's", st.Mode(), err)
	}
	if entries, _ := os.ReadDir(secret); len(entries) != 1 {
		t.Errorf("something was made outside the volume: %v", entries)
	}
}

func TestSubPathFollowsARefresh(t *testing.T) {
	dir := scratch(t)
	vol, target := filepath.Join(dir, "vol"), filepath.Join(dir, "t", "0")
	must(t, os.Mkdir(vol, 0o755))
	w := writer{pod: podIn(dir, nil), now: time.Now()}
	for _, content := range []string{"one", "two", "two"} {
		_, err := w.write(vol, payload("k", content))
		must(t, err)
		must(t, SubPath(mount.Kernel{}, vol, "k", target))
		if got, _ := os.ReadFile(target); string(got) != content {
			t.Errorf("shows %q, want %q", got, content)
		}
		if paths, _ := (mount.Kernel{}).Below(target); len(paths) != 1 {
			t.Errorf("%d mounts on the target, want one", len(paths))
		}
	}
	// The key goes, and a directory of its name is wanted.
	_, err := w.write(vol, payload())
	must(t, err)
	must(t, SubPath(mount.Kernel{}, vol, "k", target))
	if st, err := os.Stat(target); err != nil || !st.IsDir() {
		t.Errorf("shows %v, %v; want a directory", st, err)
	}
	_, err = w.write(vol, payload("k", "three"))
	must(t, err)
	checkShown(t, vol, payload("k", "three"))
}

func TestClassify(t *testing.T) {
	for errno, want := range map[unix.Errno]string{
		unix.ENOSPC: "Exhausted: mkdir x: no space left on device; free space or inodes on that file system",
		unix.EROFS:  "Denied: mkdir x: read-only file system; remount",
		unix.EIO:    "Internal: mkdir x: input/output error",
	} {
		e := Classify(volume.OpSetUp, "v", &fs.PathError{Op: "mkdir", Path: "x", Err: errno})
		if got := e.Code.String() + ": " + e.Err.Error(); !strings.HasPrefix(got, want) {
			t.Errorf("%s, want %s", got, want)
		}
	}
}

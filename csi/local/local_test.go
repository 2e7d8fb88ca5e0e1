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

func TestHostPathTypes(t *testing.T) {
	dir := scratch(t)
	at := func(name string) string { return filepath.Join(dir, name) }
	must(t, os.Mkdir(at("dir"), 0o700))
	must(t, os.WriteFile(at("file"), nil, 0o600))
	must(t, os.Symlink("dir", at("link")))
	must(t, os.Symlink("target", at("dangling")))
	old := unix.Umask(0o077) // what is made does not depend on it
	defer unix.Umask(old)
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
		{"none/file", "FileOrCreate", "NotFound: open %s: no such file or directory; type FileOrCreate makes the file only, its directory must exist"},
		{"file/x", "Directory", "NotFound: hostPath type check failed: %s is not a directory"},
		{"nowhere", "Socket", "NotFound: hostPath type check failed: %s is not a socket file"},
		{"nowhere", "CharDevice", "NotFound: hostPath type check failed: %s is not a character device"},
		{"nowhere", "BlockDevice", "NotFound: hostPath type check failed: %s is not a block device"},
		{"char", "File", ""},
		{"dangling", "Directory", "NotFound: hostPath type check failed: %s is not a directory"},
		{"dangling", "FileOrCreate", ""},
		{"link/in", "DirectoryOrCreate", ""},
		{"new2/", "DirectoryOrCreate", ""},
		{"dir", "FileOrCreate", "NotFound: hostPath type check failed: %s is not a file"},
		{"socket", "Socket", ""},
		{"file", "Socket", "NotFound: hostPath type check failed: %s is not a socket file"},
		{"char", "CharDevice", ""},
		{"block", "CharDevice", "NotFound: hostPath type check failed: %s is not a character device"},
		{"block", "BlockDevice", ""},
		{"char", "BlockDevice", "NotFound: hostPath type check failed: %s is not a block device"},
		{"dir", "Nonsense", "Invalid: Nonsense is an invalid volume type"},
		{"dir/../dir", "", "Invalid: invalid HostPath `%s`: must not contain '..'"},
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
	for name, mode := range map[string]fs.FileMode{"new": 0o755, "new/dir": 0o755, "newfile": 0o644, "dir/in": 0o755, "new2": 0o755} {
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

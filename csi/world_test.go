package csi

import (
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/berthd/berth/csi/mount"
	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"sigs.k8s.io/yaml"
)

// store is the node's objects; a test changes them between calls.
type store struct {
	configMaps map[string]*v1.ConfigMap
	secrets    map[string]*v1.Secret
}

func (s *store) ConfigMap(ns, name string) (*v1.ConfigMap, bool) {
	o, ok := s.configMaps[name]
	return o, ok
}

func (s *store) Secret(ns, name string) (*v1.Secret, bool) {
	o, ok := s.secrets[name]
	return o, ok
}

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

func newVolumes(t failer, root string, objects *store, m Mounter) *Volumes {
	t.Helper()
	v, err := New(Config{
		Root: root, Objects: objects, Mounter: m, Logger: slog.New(slog.DiscardHandler),
		Allocatable: func() v1.ResourceList { return v1.ResourceList{v1.ResourceMemory: resource.MustParse("64Mi")} },
	})
	must(t, err)
	return v
}

func objects() *store {
	return &store{
		configMaps: map[string]*v1.ConfigMap{"cm": {Data: map[string]string{"conf": "one"}}},
		secrets:    map[string]*v1.Secret{"s": {Data: map[string][]byte{"key": []byte("hush")}}},
	}
}

const everyKind = `
metadata: {name: web, namespace: default, uid: uid-1, labels: {app: web}}
spec:
  securityContext: {fsGroup: 1234}
  volumes:
  - {name: scratch, emptyDir: {}}
  - {name: fast, emptyDir: {medium: Memory, sizeLimit: 1Mi}}
  - {name: host, hostPath: {path: %s, type: DirectoryOrCreate}}
  - {name: conf, configMap: {name: cm}}
  - {name: creds, secret: {secretName: s, defaultMode: 256}}
  - {name: about, downwardAPI: {items: [{path: labels, fieldRef: {fieldPath: metadata.labels}}]}}
  - {name: all, projected: {sources: [{configMap: {name: cm}}, {secret: {name: s}}]}}
  - {name: maybe, configMap: {name: nope, optional: true}}
  - {name: unused, configMap: {name: nope}}
  containers:
  - name: main
    volumeMounts: [{name: scratch}, {name: fast}, {name: host}, {name: conf}, {name: creds}, {name: about}, {name: all}, {name: maybe}]
`

func podOfEveryKind(t failer, root string) *v1.Pod {
	t.Helper()
	var pod v1.Pod
	must(t, yaml.UnmarshalStrict(fmt.Appendf(nil, everyKind, filepath.Join(root, "outside")), &pod))
	return &pod
}

// inodes changes with every write below dir: of content, mode, owner or entry.
func inodes(t *testing.T, dir string) string {
	t.Helper()
	var b strings.Builder
	must(t, filepath.WalkDir(dir, func(p string, _ fs.DirEntry, err error) error {
		must(t, err)
		var st unix.Stat_t
		must(t, unix.Lstat(p, &st))
		fmt.Fprintln(&b, p, st.Ino, st.Ctim)
		return nil
	}))
	return b.String()
}

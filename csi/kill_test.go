//go:build failpoints

package csi

import (
	"bytes"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	v1 "k8s.io/api/core/v1"
)

// life is the volumes of a pod from beginning to end, in the child.
func life(t *testing.T, root string) {
	have := objects()
	v := newVolumes(t, root, have, nil)
	pod := podOfEveryKind(t, root)
	must2(t)(v.Mount(t.Context(), pod))
	must2(t)(v.SubPath(t.Context(), pod, "main", "scratch", "a/b", 0))
	must2(t)(v.SubPath(t.Context(), pod, "main", "conf", "conf", 1))
	have.configMaps["cm"] = &v1.ConfigMap{Data: map[string]string{"conf": strings.Repeat("long ", 1000), "more": "x"}}
	must2(t)(v.Mount(t.Context(), pod))
	must2(t)(v.SubPath(t.Context(), pod, "main", "conf", "conf", 1))
	must(t, v.Unmount(t.Context(), "uid-1"))
	must(t, v.Remove(t.Context(), "uid-1"))
}

// TestKilledAnywhere kills a process at every place it passes in the life of a
// pod's volumes. The next one must be able to finish the life from there, and
// the one after a teardown must find nothing.
func TestKilledAnywhere(t *testing.T) {
	if root := os.Getenv("BERTH_CSI_LIFE"); root != "" {
		life(t, root)
		return
	}
	trace := filepath.Join(t.TempDir(), "trace")
	child(t, scratch(t), "BERTH_FAILPOINT_TRACE="+trace)
	list, err := os.ReadFile(trace)
	must(t, err)
	places := strings.Fields(string(list))
	if len(places) < 50 {
		t.Fatalf("only %d places: %q", len(places), places)
	}
	t.Logf("%d places", len(places))
	for _, place := range places {
		for _, next := range []string{"finish", "tear down"} {
			t.Run(place+" "+next, func(t *testing.T) { killAt(t, place, next) })
		}
	}
}

func killAt(t *testing.T, place, next string) {
	root := scratch(t)
	child(t, root, "BERTH_FAILPOINT_STOP="+place, "BERTH_FAILPOINT_SIGNAL="+filepath.Join(root, "signal"))
	v := newVolumes(t, root, objects(), nil)
	before, known := v.Mounted("uid-1")
	if next == "finish" {
		after, err := v.Mount(t.Context(), podOfEveryKind(t, root))
		must(t, err)
		if known && !maps.Equal(before, after) {
			t.Errorf("said mounted %v, were %v", before, after)
		}
		for name, want := range map[string]string{"conf/conf": "one", "creds/key": "hush", "all/conf": "one"} {
			vol, file, _ := strings.Cut(name, "/")
			if got, err := os.ReadFile(filepath.Join(after[vol].HostPath, file)); err != nil || string(got) != want {
				t.Errorf("%s holds %q, %v", name, got, err)
			}
		}
		must2(t)(v.SubPath(t.Context(), podOfEveryKind(t, root), "main", "conf", "conf", 1))
		noLeftovers(t, after["conf"].HostPath)
	}
	must(t, v.Remove(t.Context(), "uid-1"))
	checkGone(t, root, "uid-1")
}

// noLeftovers: "..data", its target and one link.
func noLeftovers(t *testing.T, dir string) {
	t.Helper()
	entries, err := fs.ReadDir(os.DirFS(dir), ".")
	must(t, err)
	if len(entries) != 3 {
		t.Errorf("left-overs: %v", entries)
	}
}

// child runs life in a process of its own, to its end or until it stops at a
// failpoint, where it is killed.
func child(t *testing.T, root string, env ...string) {
	t.Helper()
	var output bytes.Buffer
	cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAnywhere$", "-test.count=1")
	cmd.Env = append(append(os.Environ(), "BERTH_CSI_LIFE="+root), env...)
	cmd.Stdout, cmd.Stderr = &output, &output
	must(t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	deadline := time.After(time.Minute)
	for {
		select {
		case err := <-ended:
			if err != nil || len(env) > 1 {
				t.Fatalf("the child was not stopped: %v\n%s", err, output.String())
			}
			return
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatal("the child hangs")
		case <-time.After(2 * time.Millisecond):
			if _, err := os.Stat(filepath.Join(root, "signal")); err == nil {
				must(t, cmd.Process.Kill())
				<-ended
				return
			}
		}
	}
}

package node

import (
	"strings"
	"testing"
	"time"
)

// TestForeignImages: what CRI has calls for can be done to the images of a runtime
// that is not Berth's, and the rest is refused with a sentence.
func TestForeignImages(t *testing.T) {
	NotOver(t, Embedded, "its runtime is Berth's, which can do more")
	NotOver(t, Socket, "its runtime is Berth's, which can do more")
	a := New(t, Binary(t, "BERTH_BIN"))
	a.Start()
	a.ImportBusybox()
	if out := a.Must("get", "images"); !strings.Contains(out, "library/busybox") {
		t.Errorf("get images shows\n%s", out)
	}
	for _, args := range [][]string{{"images", "import", a.Dir + "/busybox.tar"}, {"images", "verify"}} {
		if _, err := a.Berth(args...); err == nil || !strings.Contains(err.Error(), "the container runtime containerd") || !strings.Contains(err.Error(), "use its own command") {
			t.Errorf("berth %s: %v", strings.Join(args, " "), err)
		}
	}
	a.Place("p.yaml", podOf("p", "", ""))
	p := a.Wait("p", 60*time.Second, Ready)
	if s := statusOf(p, "c"); !strings.HasPrefix(s.ContainerID, "containerd://") || s.Image != Busybox {
		t.Errorf("container %s of image %s", s.ContainerID, s.Image)
	}
	if out := a.Must("version"); !strings.Contains(out, "containerd") {
		t.Errorf("version says\n%s", out)
	}
	a.Unplace("p.yaml")
	a.WaitGone("p", 60*time.Second)
	a.Must("images", "rm", Busybox)
	if out := a.Must("get", "images"); strings.Contains(out, "library/busybox") {
		t.Errorf("after rm, get images shows\n%s", out)
	}
	if _, err := a.Berth("images", "rm", Busybox); err == nil || !strings.Contains(err.Error(), "has no image") {
		t.Errorf("a second rm: %v", err)
	}
}

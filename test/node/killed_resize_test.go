package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKilledInResize kills the agent at each step of a resize. The next agent
// finishes it: the limits are those that were asked for last, on the pod and on
// its container, which was not restarted.
func TestKilledInResize(t *testing.T) {
	a := New(t, Binary(t, "BERTH_FAILPOINT_BIN", "failpoints"))
	a.Start()
	a.ImportBusybox()
	a.Place("k.yaml", podOf("k", sized, ""))
	a.Wait("k", 30*time.Second, Ready)
	generation := int64(1)
	for _, point := range []string{
		"agent/runtime/resize-raise#1", "agent/runtime/update-sandbox#1", "agent/runtime/update-sandbox-done#1",
		"agent/runtime/update-container#1", "cri/container/update-resources#1", "cri/ociruntime/update#1", "cri/ociruntime/update-done#1",
		"cri/container/update-resources-done#1", "agent/runtime/update-container-done#1", "agent/runtime/resize-lower#1",
		"agent/runtime/resize-raise#2", "agent/runtime/update-sandbox-done#2", "agent/runtime/update-container-done#2",
		"agent/runtime/resize-lower#2", "agent/runtime/resize-done#1",
	} {
		if Chosen(t) == Embedded || !strings.HasPrefix(point, "cri/") {
			generation++
		}
		large := generation%2 == 0 // up and down in turn
		t.Run(strings.NewReplacer("/", "-", "#", "-").Replace(point), func(t *testing.T) {
			if strings.HasPrefix(point, "cri/") {
				NotOver(t, Socket, "the point lies in the runtime, which test/crash kills")
				NotOver(t, Containerd, "the point lies in Berth's own runtime, which does not run")
			}
			a.For(t).killedInResize(point, generation, large)
		})
	}
}

func (a *Agent) killedInResize(point string, generation int64, large bool) {
	a.T.Helper()
	a.Stop()
	signal := filepath.Join(a.Dir, fmt.Sprintf("resize-%d.signal", generation))
	a.Env = []string{"BERTH_FAILPOINT_STOP=" + point, "BERTH_FAILPOINT_SIGNAL=" + signal}
	a.Start()
	cpu, memory := int64(200), int64(64)
	if large {
		cpu, memory = 400, 128
	}
	a.Must("resize", "k", "--wait=false", "--limits", fmt.Sprintf("cpu=%dm,memory=%dMi", cpu, memory))
	Eventually(a.T, 20*time.Second, func() error {
		if said, _ := os.ReadFile(signal); !strings.Contains(string(said), point) {
			return fmt.Errorf("%s was not passed", point)
		}
		return nil
	})
	a.Kill9()
	a.Env = nil
	a.Start()
	p := a.Wait("k", 30*time.Second, settled(generation, 0))
	for _, container := range []string{"", "c"} {
		if err := a.limits(p, container, memory*mib, cpu*100); err != nil {
			a.T.Error(err)
		}
	}
}

package node

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// TestKilledAmongNames kills the agent at each step of making and removing a
// pod's range of IDs and the links to its logs. The next agent finishes what was
// begun: one range, one link, and in the end neither.
func TestKilledAmongNames(t *testing.T) {
	a := New(t, Binary(t, "BERTH_FAILPOINT_BIN", "failpoints"))
	a.Start()
	a.ImportBusybox()
	a.Place("probe.yaml", podOf("probe", "", "  hostUsers: false"))
	a.waitOrSkip("probe", "does not support user namespaces")
	a.Unplace("probe.yaml")
	a.WaitGone("probe", 30*time.Second)
	for i, point := range []string{
		"agent/userns/pod-mkdir", "agent/userns/record-write", "agent/userns/record-rename", "agent/userns/record-rename-done",
		"agent/runtime/log-link-mkdir", "agent/runtime/log-link", "agent/runtime/log-link-done",
		"agent/runtime/log-unlink", "agent/runtime/log-unlink-done", "agent/userns/record-remove", "agent/userns/record-remove-done",
	} {
		t.Run(strings.ReplaceAll(point, "/", "-"), func(t *testing.T) {
			a.For(t).killedAt(fmt.Sprintf("named-%d", i), point)
		})
	}
}

// killedAt kills the agent at point in the life of a pod called name.
func (a *Agent) killedAt(name, point string) {
	a.T.Helper()
	a.Stop()
	signal := filepath.Join(a.Dir, name+".signal")
	a.Env = []string{"BERTH_FAILPOINT_STOP=" + point + "#1", "BERTH_FAILPOINT_SIGNAL=" + signal}
	a.Start()
	file := name + ".yaml"
	a.Place(file, podOf(name, "", "  hostUsers: false"))
	removed := false
	Eventually(a.T, 30*time.Second, func() error {
		if said, _ := os.ReadFile(signal); strings.Contains(string(said), point) {
			return nil
		}
		if p, err := a.Pod(name); !removed && err == nil && Ready(p) == nil { // the point lies on the way out
			a.oneRangeOneLink(name)
			a.Unplace(file)
			removed = true
		}
		return fmt.Errorf("%s was not passed", point)
	})
	a.Kill9()
	a.Env = nil
	a.Start()
	if !removed {
		a.Wait(name, 30*time.Second, Ready)
		a.oneRangeOneLink(name)
		a.Unplace(file)
	}
	a.WaitGone(name, 30*time.Second)
	left, _ := filepath.Glob(filepath.Join(a.Dir, "root/pods/*/userns*"))
	links, _ := filepath.Glob(filepath.Join(a.Dir, "containers/*"))
	if len(left)+len(links) != 0 {
		a.T.Errorf("left: %v %v", left, links)
	}
}

func (a *Agent) oneRangeOneLink(name string) {
	a.T.Helper()
	records, _ := filepath.Glob(filepath.Join(a.Dir, "root/pods/*/userns"))
	links, _ := filepath.Glob(filepath.Join(a.Dir, "containers", name+"_default_c-*.log"))
	if len(records) != 1 || len(links) != 1 {
		a.T.Fatalf("records %v, links %v: want one of each", records, links)
	}
	record, err := os.ReadFile(records[0])
	if err != nil {
		a.T.Fatal(err)
	}
	first := strings.Fields(a.inside(name, "cat /proc/self/uid_map"))[1]
	if !strings.Contains(string(record), `"hostId":`+first+`,`) {
		a.T.Errorf("the pod runs with IDs from %s, its record is %s", first, record)
	}
	if st, err := os.Stat(links[0]); err != nil || !st.Mode().IsRegular() {
		a.T.Errorf("the link leads to %v, %v", st, err)
	}
}

package crash

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/berthd/berth/test/node"
)

// variants are the two lives: in a user namespace under crun, and with a PID
// namespace of the pod under runc.
var variants = []struct {
	oci      string
	ownUsers bool
	pids     runtimeapi.NamespaceMode
	sample   int
}{
	{"crun", true, runtimeapi.NamespaceMode_CONTAINER, 40},
	{"runc", false, runtimeapi.NamespaceMode_POD, 20},
}

// TestRuntimeKilledAnywhere leads a pod over CRI through its life once for each
// place where `berth runtime` can be killed in it, killing it there: what was
// complete is still there, every call can be repeated, and in the end nothing is left.
// BERTH_CRASH=full takes every place, else a sample is taken. A failpoint of the
// runtime that neither life passes must have a reason in testdata/elsewhere.txt.
func TestRuntimeKilledAnywhere(t *testing.T) {
	passed := map[string]bool{}
	for _, v := range variants {
		t.Run(v.oci, func(t *testing.T) {
			c := newClient(t, v.oci)
			c.pids = v.pids
			first, again := filepath.Join(c.Dir, "first"), filepath.Join(c.Dir, "again")
			c.trace(first)
			if c.await("answer", c.answers); v.ownUsers {
				c.await("features", c.askFeatures)
			}
			c.live() // on a new machine: bridge, cgroups and directories come to be
			before := node.ReadHost(t)
			c.check(before)
			c.kill(syscall.SIGTERM)
			c.trace(again)
			c.live()
			c.check(before)
			c.kill(syscall.SIGTERM)
			all := choose(t, again, v.sample)
			once := onlyIn(t, first, again, passed)
			if os.Getenv("BERTH_CRASH") != "full" {
				once = once[:min(len(once), v.sample/4)]
			}
			for _, place := range append(all, once...) { // purged last: a network chosen anew differs from the one before
				well := t.Run(strings.ReplaceAll(place, "/", "."), func(t *testing.T) {
					if slices.Contains(once, place) {
						c.startAnew()
					}
					c.killAt(t, place, before)
				})
				if !well && os.Getenv("BERTH_CRASH") != "full" {
					break
				} else if !well {
					c.startAnew() // the next life is not to blame
				}
			}
		})
	}
	if os.Getenv("BERTH_CRASH_AT") == "" && !t.Failed() {
		elsewhere(t, passed)
	}
}

// trace starts the runtime so that it writes down the places it passes.
func (c *client) trace(file string) {
	c.reset()
	c.env = []string{"BERTH_FAILPOINT_TRACE=" + file}
	c.spawn()
}

// startAnew makes the machine one that has nothing of Berth.
func (c *client) startAnew() {
	c.Purge()
	c.anew = true
}

func (c *client) answers(ctx context.Context) error {
	_, err := c.rt.Version(ctx, &runtimeapi.VersionRequest{})
	return err
}

// askFeatures gives the pod a user namespace of its own where the host can.
func (c *client) askFeatures(ctx context.Context) error {
	r, err := c.rt.Status(ctx, &runtimeapi.StatusRequest{})
	for _, h := range r.GetRuntimeHandlers() {
		c.ownUsers = c.ownUsers || h.Name == "" && h.GetFeatures().GetUserNamespaces()
	}
	c.T.Logf("the pod has a user namespace of its own: %v", c.ownUsers)
	return err
}

// killAt leads a life in which the runtime is killed at place.
func (c *client) killAt(t *testing.T, place string, before node.Host) {
	was := c.Agent
	defer func() { c.Agent = was }()
	c.Agent = was.For(t)
	c.reset()
	c.env = []string{"BERTH_FAILPOINT_STOP=" + place, "BERTH_FAILPOINT_SIGNAL=" + c.signal}
	defer c.kill(syscall.SIGTERM)
	c.spawn()
	c.live()
	if c.killedAt == "" {
		t.Logf("%s was not passed this time", place)
	}
	c.check(before)
}

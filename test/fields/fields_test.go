package fields

import (
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berthd/berth/test/node"
)

// recorded holds the outcomes for $BERTH_FIELDS_RESULTS, a file that becomes one
// of docs/results/fields-*.json.
type recorded struct {
	mu sync.Mutex
	Results
}

// set keeps an outcome, and writes them all: a machine may hang before the last.
func (r *recorded) set(t *testing.T, name, skipped string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case t.Failed():
		r.Cases[name] = "FAILED"
	case t.Skipped():
		r.Cases[name] = skipped
	default:
		r.Cases[name] = "pass"
	}
	path := os.Getenv("BERTH_FIELDS_RESULTS")
	if path == "" {
		return
	}
	r.Commit, r.Host = os.Getenv("BERTH_COMMIT"), hostLine()
	body, err := json.MarshalIndent(r.Results, "", " ")
	if err == nil {
		err = os.WriteFile(path+".new", append(body, '\n'), 0o644)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		t.Error(err)
	}
}

// hostLine says what kind of host this is.
func hostLine() string {
	kernel, _ := os.ReadFile("/proc/sys/kernel/osrelease") // it is always there
	init := "no systemd"
	if _, err := os.Stat("/run/systemd/system"); err == nil {
		init = "systemd"
	}
	return "Linux " + strings.TrimSpace(string(kernel)) + ", " + init
}

// TestFields runs every case: those that need no agent of their own on one for
// each OCI runtime. BERTH_OCI_RUNTIMES chooses among crun and runc.
func TestFields(t *testing.T) {
	cases, err := Load("testdata")
	if err != nil {
		t.Fatal(err)
	}
	binary := node.Binary(t, "BERTH_BIN")
	runtimes := strings.Fields(os.Getenv("BERTH_OCI_RUNTIMES"))
	if len(runtimes) == 0 {
		runtimes = []string{"crun", "runc"}
	}
	outcome := &recorded{Results: Results{Cases: map[string]string{}}}
	for _, oci := range runtimes {
		t.Run(oci, func(t *testing.T) {
			shared := start(t, binary, "--oci-runtime", oci)
			t.Run("case", func(t *testing.T) { // ends before the agent does
				for _, c := range cases {
					t.Run(c.Name, func(t *testing.T) {
						t.Parallel()
						skipped := ""
						defer func() { outcome.set(t, oci+"/"+c.Name, skipped) }()
						r := &running{skipped: &skipped, t: t, home: t, c: c, a: shared.For(t), dir: t.TempDir(), pod: "f-" + c.Name}
						// A pod that has shown what it was to show would only slow the others down.
						defer func() { _ = os.Remove(filepath.Join(shared.Manifests, c.Name+".yaml")) }()
						if c.Alone {
							r.boot = func(flags []string) *node.Agent { return start(t, binary, append(flags, "--oci-runtime", oci)...) }
						}
						r.run()
					})
				}
			})
		})
	}
}

// start starts an agent that has the images the cases use.
func start(t *testing.T, binary string, flags ...string) *node.Agent {
	a := node.New(t, binary)
	a.Flags = flags
	a.Start()
	a.ImportBusybox()
	spec, err := serverSpec()
	if err != nil {
		t.Fatal(err)
	}
	if err := importSpec(a, t.TempDir(), spec); err != nil {
		t.Fatal(err)
	}
	return a
}

package fields

import (
	"os"
	"strings"
	"testing"

	"github.com/berthd/berth/test/node"
)

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
	for _, oci := range runtimes {
		t.Run(oci, func(t *testing.T) {
			shared := start(t, binary, "--oci-runtime", oci)
			t.Run("case", func(t *testing.T) { // ends before the agent does
				for _, c := range cases {
					t.Run(c.Name, func(t *testing.T) {
						t.Parallel()
						r := &running{t: t, c: c, a: shared.For(t), dir: t.TempDir(), pod: "f-" + c.Name}
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

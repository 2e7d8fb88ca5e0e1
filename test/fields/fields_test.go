package fields

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/berthd/berth/test/image"
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
						a := shared.For(t)
						if c.Alone {
							a = start(t, binary, append([]string{"--oci-runtime", oci}, c.Flags...)...)
						}
						(&running{t: t, c: c, a: a, dir: t.TempDir(), pod: "f-" + c.Name}).run()
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

// serverImage is busybox with /server in it.
const serverImage = "docker.io/library/server:1"

// serverSpec builds the program once a test process.
var serverSpec = sync.OnceValues(func() (image.Spec, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("berth-fields-server-%d", os.Getpid()))
	defer os.Remove(path)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./server")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return image.Spec{}, fmt.Errorf("build the server: %w: %s", err, out)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return image.Spec{}, err
	}
	spec, err := image.BusyboxSpec(serverImage)
	spec.Layers = append(spec.Layers, image.Layer{"/server": {Body: body, Mode: 0o755}})
	return spec, err
})

// importSpec imports an image that is made in dir.
func importSpec(a *node.Agent, dir string, spec image.Spec) error {
	path := filepath.Join(dir, "image.tar")
	f, err := os.Create(path)
	if err != nil {
		return err
	}
	if err := errors.Join(image.WriteOCI(f, spec), f.Close()); err != nil {
		return err
	}
	_, err = a.Berth("images", "import", path)
	return err
}

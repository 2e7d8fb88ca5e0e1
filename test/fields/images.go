package fields

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"sync"

	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/node"
)

// serverImage is busybox with /server in it.
const serverImage = "docker.io/library/server:1"

// serverSpec builds the program once a test process, or takes it from
// $BERTH_FIELDS_SERVER where there is no Go.
var serverSpec = sync.OnceValues(func() (image.Spec, error) {
	path := os.Getenv("BERTH_FIELDS_SERVER")
	if path == "" {
		path = filepath.Join(os.TempDir(), fmt.Sprintf("berth-fields-server-%d", os.Getpid()))
		defer os.Remove(path)
		build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "./server")
		build.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := build.CombinedOutput(); err != nil {
			return image.Spec{}, fmt.Errorf("build the server: %w: %s", err, out)
		}
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
	return a.Load(path)
}

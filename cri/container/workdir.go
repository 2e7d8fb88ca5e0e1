package container

import (
	"path"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/cri/ocispec"
	securejoin "github.com/cyphar/filepath-securejoin"
)

// checkWorkingDir refuses a working directory that links of the image, or of a
// volume, lead into a process's own /proc directory: a descriptor that an OCI
// runtime has forgotten to close would be a way out (CVE-2024-21626). Nobody is
// in the root filesystem yet; volumes may change until the runtime looks, which
// runtimes without that hole (see berth check) verify themselves.
func checkWorkingDir(in ocispec.Input) error {
	dir := ocispec.WorkingDir(in)
	roots := map[string]string{in.Rootfs: dir}
	for _, m := range in.Config.GetMounts() {
		at := path.Clean("/" + m.GetContainerPath())
		if rest, ok := strings.CutPrefix(dir, at+"/"); ok && filepath.IsAbs(m.GetHostPath()) {
			roots[m.GetHostPath()] = rest
		}
	}
	for root, dir := range roots {
		real, err := securejoin.SecureJoin(root, dir)
		if err != nil {
			continue // links without end: no working directory at all
		}
		if err := ocispec.CheckWorkingDir("/" + strings.TrimPrefix(strings.TrimPrefix(real, root), "/")); err != nil {
			return kinded(err)
		}
	}
	return nil
}

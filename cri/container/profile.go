package container

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/cri/ocispec"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const maxSeccomp = 4 << 20

// loadSeccomp reads a Localhost profile; whatever is wrong with it fails the
// container: it must not run with less protection than was asked for.
func loadSeccomp(ref string) (*specs.LinuxSeccomp, error) {
	path := strings.TrimPrefix(ref, "localhost/")
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("seccomp profile %q is not an absolute path: %w", ref, errdefs.ErrInvalidArgument)
	}
	b, err := readProfile(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("seccomp profile %s is not on this node: put it there, or correct localhostProfile: %w: %w", path, errdefs.ErrFailedPrecondition, err)
	}
	if err != nil {
		return nil, fmt.Errorf("loading the seccomp profile %s: %w", path, err)
	}
	p, err := ocispec.ParseSeccomp(b)
	if err != nil {
		return nil, kinded(fmt.Errorf("seccomp profile %s: %w", path, err))
	}
	return p, nil
}

func readProfile(path string) ([]byte, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("it is not a file: %w", errdefs.ErrFailedPrecondition)
	}
	b, err := io.ReadAll(io.LimitReader(f, maxSeccomp+1))
	if err == nil && len(b) > maxSeccomp {
		err = fmt.Errorf("it has more than the %d bytes that are allowed: %w", maxSeccomp, errdefs.ErrFailedPrecondition)
	}
	return b, err
}

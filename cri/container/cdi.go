package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"github.com/berthd/berth/cri/cdi"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// injectDevices edits spec as the CDI devices say that the container asks for.
func (s *Store) injectDevices(c *container, in ocispec.Input, spec *specs.Spec) error {
	names, err := cdi.Requested(in.Config)
	if err != nil {
		return fmt.Errorf("%w: %w", errdefs.ErrInvalidArgument, err)
	}
	edits, err := s.cfg.CDI.Resolve(names)
	if err != nil || edits.None() {
		return unavailable(err)
	}
	if in.Sandbox.Users.NS != "" {
		if err := s.stageDevices(c, in.Sandbox.Users, edits); err != nil {
			return unavailable(err)
		}
	}
	return unavailable(edits.Apply(spec))
}

func unavailable(err error) error {
	if errors.Is(err, cdi.ErrUnknown) {
		return fmt.Errorf("%w: %w", errdefs.ErrFailedPrecondition, err)
	}
	return err
}

// stageDevices mounts the sources of the devices' mounts with the IDs of the
// container's user namespace, until it has been created.
func (s *Store) stageDevices(c *container, users ocispec.Users, edits *cdi.Edits) error {
	ns, err := os.Open(users.NS)
	if err != nil {
		return fmt.Errorf("opening the pod's user namespace: %w", err)
	}
	defer ns.Close()
	return edits.Restage(func(n int, source string) (string, error) {
		real, err := filepath.EvalSymlinks(source)
		if err != nil {
			return "", fmt.Errorf("%w: %w", cdi.ErrUnknown, err)
		}
		return s.stage(c.id, "cdi"+strconv.Itoa(n), real, staging{users: ns, private: true})
	})
}

// CDIDevices lists the devices that containers can ask for, and by file what is
// wrong with specifications of devices.
func (s *Store) CDIDevices() (names []string, faults map[string]string) { return s.cfg.CDI.Devices() }

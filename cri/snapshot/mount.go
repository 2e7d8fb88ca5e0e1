package snapshot

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// overlayMount mounts lower (topmost first) with upper and work at target.
// More lower directories than fit on a page of options are given relative to
// their shared parent.
func overlayMount(target string, lower []string, upper, work string, extra []string) error {
	opts := []string{"workdir=" + work, "upperdir=" + upper, "lowerdir=" + strings.Join(lower, ":")}
	opts = append(opts, overlayOptions()...)
	m := mount.Mount{Type: "overlay", Source: "overlay", Options: append(opts, extra...)}
	return m.Mount(target)
}

// overlayOptions are those of every overlay on this host.
func overlayOptions() []string {
	if _, err := os.Stat("/sys/module/overlay/parameters/index"); err == nil {
		// Layers are shared by many mounts, which the index refuses.
		return []string{"index=off"}
	}
	return nil
}

// unmountAll unmounts everything mounted at target itself. A path that is no
// mount point or is gone is success.
func unmountAll(target string) error {
	for {
		failpoint.Hit("cri/snapshot/unmount")
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EBUSY) {
			// A stray reader must not keep a container from being removed.
			err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW|unix.MNT_DETACH)
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		}
		return fmt.Errorf("unmount %s: %w", target, err)
	}
}

// probeVolatile tells whether overlayfs knows "volatile" (kernel 5.10): the
// writable part of a container does not outlive a boot, so syncing it, which
// every unmount otherwise does, is waste.
func probeVolatile(root string) bool {
	// One name, so that a killed probe's mount is found by the next.
	dir := filepath.Join(root, probeDir)
	paths := map[string]string{}
	for _, d := range []string{"lower", "upper", "work", "target"} {
		paths[d] = filepath.Join(dir, d)
	}
	if unmountAll(paths["target"]) != nil || os.RemoveAll(dir) != nil {
		return false
	}
	defer os.RemoveAll(dir)
	for _, path := range paths {
		if err := os.MkdirAll(path, 0o755); err != nil {
			return false
		}
	}
	err := overlayMount(paths["target"], []string{paths["lower"]}, paths["upper"], paths["work"], []string{"volatile"})
	return err == nil && unmountAll(paths["target"]) == nil
}

package mountns

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// madeShared lists, one a line, the mount points that Open found private and
// made shared. It is written before they are.
const madeShared = "made-shared"

// shareHost makes the host's mounts shared if / is not.
func shareHost(dir string, log *slog.Logger) error {
	mounts, err := mountinfo.GetMounts(nil)
	if err != nil {
		return fmt.Errorf("reading the host's mounts: %w", err)
	}
	var private []string
	for _, m := range mounts {
		shared := strings.Contains(m.Optional, "shared:")
		if m.Mountpoint == "/" && shared {
			return nil
		}
		if !shared {
			private = append(private, m.Mountpoint)
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of pinned namespaces: %w", err)
	}
	record := filepath.Join(dir, madeShared)
	failpoint.Hit("cri/mountns/record-shared")
	if err := os.WriteFile(record, []byte(strings.Join(private, "\n")+"\n"), 0o600); err != nil {
		return fmt.Errorf("recording which mounts become shared: %w", err)
	}
	failpoint.Hit("cri/mountns/make-shared")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_SHARED, ""); err != nil {
		return fmt.Errorf("making the host's mounts shared (needs CAP_SYS_ADMIN): %w", err)
	}
	log.Info("the host's / was a private mount: it and all below are now shared, so that mounts propagate to and from containers",
		"mounts", len(private), "recorded", record)
	return nil
}

// unshareHost undoes shareHost, where dir says that it was done.
func unshareHost(dir string) error {
	b, err := os.ReadFile(filepath.Join(dir, madeShared))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("reading which mounts were made shared: %w", err)
	}
	failpoint.Hit("cri/mountns/undo-shared")
	var errs []error
	for _, point := range strings.Split(strings.TrimSpace(string(b)), "\n") {
		err := unix.Mount("", point, "", unix.MS_PRIVATE, "")
		// Gone since, or hidden below a later mount: neither is ours to mend.
		if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("making %s private again: %w", point, err))
		}
	}
	return errors.Join(errs...)
}

// holdDir makes dir a private mount of itself.
func holdDir(dir string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("making the directory of pinned namespaces: %w", err)
	}
	held, err := mountinfo.Mounted(dir)
	if err != nil {
		return fmt.Errorf("looking for a mount at %s: %w", dir, err)
	}
	if !held {
		failpoint.Hit("cri/mountns/hold")
		if err := unix.Mount(dir, dir, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("bind-mounting %s on itself: %w", dir, err)
		}
	}
	failpoint.Hit("cri/mountns/hold-private")
	if err := unix.Mount("", dir, "", unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("making %s private: %w", dir, err)
	}
	return nil
}

// Purge removes the pinned namespaces under dir, with every pin in them, and
// undoes what Open did to the host. Programs inside keep their namespace until
// they end. Idempotent. No Namespaces may be open on dir.
func Purge(dir string) error {
	failpoint.Hit("cri/mountns/purge")
	var errs []error
	for _, path := range []string{filepath.Join(dir, "pins"), filepath.Join(dir, "oci"), dir} {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		for err == nil { // mounts can lie on top of each other
			err = unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		}
		if !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
			errs = append(errs, fmt.Errorf("unmounting %s: %w", path, err))
		}
	}
	if err := unshareHost(dir); err != nil {
		errs = append(errs, err)
	}
	if len(errs) == 0 {
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, fmt.Errorf("removing the directory of pinned namespaces: %w", err))
		}
	}
	return errors.Join(errs...)
}

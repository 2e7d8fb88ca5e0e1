package mountns

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Volatile makes sure that dir, the state directory, lies in memory and is
// forgotten by a reboot: where it does not (a machine whose /run is on disk) a
// tmpfs is mounted on it. It comes before anything else uses dir. Idempotent:
// a killed agent's mount is found again. What an earlier boot left below is
// hidden.
//
// Others may pass through it, not look into it: the root users of user
// namespaces reach their containers' root filesystems that way.
//
// Besides being what boot-scoped records mean, this is several times faster:
// ext4 starts writing back a file's blocks whenever a rename replaces it.
func Volatile(dir string, log *slog.Logger) error {
	failpoint.Hit("cri/mountns/volatile")
	if err := os.MkdirAll(dir, 0o711); err != nil {
		return fmt.Errorf("making the state directory: %w", err)
	}
	var st unix.Statfs_t
	if err := unix.Statfs(dir, &st); err != nil {
		return fmt.Errorf("looking at the file system of %s: %w", dir, err)
	}
	if st.Type == unix.TMPFS_MAGIC || st.Type == unix.RAMFS_MAGIC {
		return nil
	}
	if err := unix.Mount("berth", dir, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=0711"); err != nil {
		return fmt.Errorf("mounting a tmpfs for state on %s (needs CAP_SYS_ADMIN): %w", dir, err)
	}
	failpoint.Hit("cri/mountns/volatile-done")
	log.Info("the state directory is not in memory: a tmpfs is mounted on it", "path", dir)
	return nil
}

// purgePatience is how long a program that was killed may take to let go of a file.
const purgePatience = 5 * time.Second

// PurgeVolatile undoes Volatile, when nothing below dir is mounted or used any
// more; programs that are ending are waited for. Idempotent.
func PurgeVolatile(dir string) error {
	failpoint.Hit("cri/mountns/volatile-purge")
	for end := time.Now().Add(purgePatience); ; time.Sleep(50 * time.Millisecond) {
		err := unix.Unmount(dir, unix.UMOUNT_NOFOLLOW)
		if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return fmt.Errorf("unmounting the tmpfs for state from %s: %w", dir, err)
		}
	}
}

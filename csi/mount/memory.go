package mount

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Tmpfs makes the directory target a tmpfs of at least size bytes (0: as much as
// the kernel thinks right). It is idempotent: a tmpfs that is there and large
// enough stays as it is, a smaller one grows. The content is kept out of swap
// where the kernel can do that (6.4).
func (k Kernel) Tmpfs(target string, size int64) error {
	mounted, err := k.Mounted(target)
	if err != nil {
		return err
	}
	if mounted {
		return growTmpfs(target, size)
	}
	options := "mode=01777"
	if size > 0 {
		options += ",size=" + strconv.FormatInt(size, 10)
	}
	failpoint.Hit("csi/mount/tmpfs")
	err = unix.Mount("tmpfs", target, "tmpfs", 0, options+",noswap")
	if errors.Is(err, unix.EINVAL) {
		err = unix.Mount("tmpfs", target, "tmpfs", 0, options)
	}
	failpoint.Hit("csi/mount/tmpfs-done")
	if err != nil {
		return fmt.Errorf("mount a tmpfs on %s: %w", target, err)
	}
	return nil
}

func growTmpfs(target string, size int64) error {
	var st unix.Statfs_t
	if err := unix.Statfs(target, &st); err != nil {
		return fmt.Errorf("statfs %s: %w", target, err)
	}
	if st.Type != unix.TMPFS_MAGIC {
		return fmt.Errorf("%s is a mount, but not of a tmpfs; unmount it", target)
	}
	if size == 0 || int64(st.Blocks)*st.Bsize >= size {
		return nil
	}
	failpoint.Hit("csi/mount/tmpfs-grow")
	if err := unix.Mount("", target, "", unix.MS_REMOUNT, "size="+strconv.FormatInt(size, 10)); err != nil {
		return fmt.Errorf("grow the tmpfs on %s to %d bytes: %w", target, size, err)
	}
	return nil
}

// noswap asks the kernel, without mounting anything, whether a tmpfs can be kept
// out of swap.
var noswap = sync.OnceValue(func() bool {
	fd, err := unix.Fsopen("tmpfs", unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	return unix.FsconfigSetFlag(fd, "noswap") == nil
})

// Swappable says whether the content of a tmpfs can reach a disk: the node swaps,
// and the kernel is too old (before 6.4) to except a tmpfs from it.
func Swappable() bool {
	swaps, err := os.ReadFile("/proc/swaps")
	return err == nil && bytes.Count(bytes.TrimSpace(swaps), []byte("\n")) > 0 && !noswap()
}

// Hugetlbfs makes the directory target a file system of huge pages of pageSize
// bytes. It is idempotent: one of that page size that is there stays as it is.
func (k Kernel) Hugetlbfs(target string, pageSize int64) error {
	mounted, err := k.Mounted(target)
	if err != nil {
		return err
	}
	if mounted {
		var st unix.Statfs_t
		if err := unix.Statfs(target, &st); err != nil {
			return fmt.Errorf("statfs %s: %w", target, err)
		}
		if st.Type != unix.HUGETLBFS_MAGIC || st.Bsize != pageSize {
			return fmt.Errorf("%s is a mount, but not of huge pages of %d bytes; unmount it", target, pageSize)
		}
		return nil
	}
	failpoint.Hit("csi/mount/hugetlbfs")
	err = unix.Mount("nodev", target, "hugetlbfs", 0, "mode=0777,pagesize="+strconv.FormatInt(pageSize, 10))
	failpoint.Hit("csi/mount/hugetlbfs-done")
	if err != nil {
		return fmt.Errorf("mount huge pages of %d bytes on %s: %w", pageSize, target, err)
	}
	return nil
}

// HugePages is what the node has of huge pages of one size.
type HugePages struct {
	Size int64 // bytes
	// Pages are those reserved, and those that may be added when asked for.
	Pages int64
}

// ReadHugePages lists the sizes the kernel knows, the smallest first; none on a
// kernel without huge pages.
func ReadHugePages() []HugePages {
	const dir = "/sys/kernel/mm/hugepages"
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil
	}
	var all []HugePages
	for _, e := range entries {
		kib, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimPrefix(e.Name(), "hugepages-"), "kB"), 10, 64)
		if err != nil {
			continue
		}
		one := HugePages{Size: kib << 10}
		for _, counter := range []string{"nr_hugepages", "nr_overcommit_hugepages"} {
			text, err := os.ReadFile(filepath.Join(dir, e.Name(), counter))
			if err != nil {
				continue
			}
			if n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64); err == nil {
				one.Pages += n
			}
		}
		all = append(all, one)
	}
	slices.SortFunc(all, func(a, b HugePages) int { return int(a.Size>>10) - int(b.Size>>10) })
	return all
}

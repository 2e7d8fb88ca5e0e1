package mount

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

func TestHugetlbfsIsIdempotent(t *testing.T) {
	sizes := ReadHugePages()
	if len(sizes) == 0 {
		t.Skip("this kernel has no huge pages")
	}
	dir := filepath.Join(tree(t), "huge")
	must(t, os.Mkdir(dir, 0o755))
	for range 2 {
		must(t, Kernel{}.Hugetlbfs(dir, sizes[0].Size))
	}
	if paths, _ := (Kernel{}).Below(dir); len(paths) != 1 {
		t.Errorf("%d mounts, want one", len(paths))
	}
	var st unix.Statfs_t
	must(t, unix.Statfs(dir, &st))
	if st.Type != unix.HUGETLBFS_MAGIC || st.Bsize != sizes[0].Size {
		t.Errorf("type %x, pages of %d", st.Type, st.Bsize)
	}
	if err := (Kernel{}).Hugetlbfs(dir, 12345); err == nil {
		t.Error("another page size passes for this one")
	}
	must(t, Kernel{}.Unmount(dir))
	if err := (Kernel{}).Hugetlbfs(dir, 12345); err == nil || !strings.Contains(err.Error(), "12345") {
		t.Errorf("a page size that no kernel has: %v", err)
	}
}

func TestHugePagesOfTheNode(t *testing.T) {
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		t.Skip("this kernel has no huge pages: ", err)
	}
	have := ReadHugePages()
	if len(have) != len(entries) {
		t.Fatalf("%v, want %d sizes", have, len(entries))
	}
	for i, one := range have {
		if i > 0 && have[i-1].Size >= one.Size {
			t.Errorf("not in order: %v", have)
		}
		if _, err := os.Stat("/sys/kernel/mm/hugepages/hugepages-" + strconv.FormatInt(one.Size>>10, 10) + "kB"); err != nil {
			t.Error(err)
		}
	}
}

// TestNoswapProbe compares the probe with what a mount answers, and with what
// memory for pods is mounted with.
func TestNoswapProbe(t *testing.T) {
	dir := tree(t)
	one, two := filepath.Join(dir, "one"), filepath.Join(dir, "two")
	must(t, os.Mkdir(one, 0o755))
	must(t, os.Mkdir(two, 0o755))
	err := unix.Mount("tmpfs", one, "tmpfs", 0, "noswap")
	if noswap() != (err == nil) {
		t.Errorf("the probe says %v, a mount %v", noswap(), err)
	}
	must(t, Kernel{}.Tmpfs(two, 1<<20))
	found, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(two))
	must(t, err)
	if len(found) != 1 || strings.Contains(found[0].VFSOptions, "noswap") != noswap() {
		t.Errorf("mounted as %+v, noswap is %v", found, noswap())
	}
}

package container

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/cri/ocispec"
	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// checkPlaces refuses what would make an OCI runtime, older ones above all, work
// at a place that the image or a volume chooses. Nobody is in the root filesystem
// yet; volumes may change until the runtime looks, which runtimes without known
// holes (see berth check) verify themselves.
func checkPlaces(in ocispec.Input) error {
	if err := checkTops(in.Rootfs); err != nil {
		return err
	}
	for _, file := range []string{"/etc/passwd", "/etc/group"} {
		if err := checkAccounts(in, file); err != nil {
			return err
		}
	}
	for i, m := range in.Config.GetMounts() {
		for _, at := range meanings(in, i, path.Clean("/"+m.GetContainerPath())) {
			if err := checkDestination(in, m, at); err != nil {
				return fmt.Errorf("mount at %s: %w: %w", m.GetContainerPath(), err, errdefs.ErrInvalidArgument)
			}
		}
	}
	for _, dir := range meanings(in, -1, ocispec.WorkingDir(in)) {
		if err := ocispec.CheckWorkingDir(dir); err != nil {
			return kinded(err)
		}
	}
	return nil
}

// checkAccounts refuses accounts that OCI runtimes, which read them inside, could
// wait for or read without end: what links lead to in /dev or /proc, and what a
// volume brings that is no file.
func checkAccounts(in ocispec.Input, file string) error {
	for _, at := range meanings(in, -1, file) {
		for _, top := range []string{"/dev/", "/proc/", "/sys/"} {
			if strings.HasPrefix(at, top) {
				return fmt.Errorf("%s of the image is a link to %s: %w", file, at, errdefs.ErrInvalidArgument)
			}
		}
		for _, m := range in.Config.GetMounts() {
			rest, below := strings.CutPrefix(at, path.Clean("/"+m.GetContainerPath()))
			if !below || rest != "" && rest[0] != '/' || !filepath.IsAbs(m.GetHostPath()) {
				continue
			}
			source, err := securejoin.SecureJoin(m.GetHostPath(), rest)
			if err != nil {
				continue
			}
			if st, err := os.Lstat(source); err == nil && !st.Mode().IsRegular() && !st.IsDir() { // a directory on a file is the runtime's to refuse
				return fmt.Errorf("%s is not a file: %s of the volume at %s is mounted there: %w", file, st.Mode().Type(), m.GetContainerPath(), errdefs.ErrInvalidArgument)
			}
		}
	}
	return nil
}

// checkTops sees that the image's /dev, /proc and /sys are directories, where they
// are there. By a link at /dev, runc 1.1 replaces /dev/ptmx and other links in a
// directory of the host's.
func checkTops(rootfs string) error {
	root, err := os.OpenRoot(rootfs)
	if err != nil {
		return fmt.Errorf("opening the root filesystem: %w", err)
	}
	defer root.Close()
	for _, top := range []string{"dev", "proc", "sys"} {
		st, err := root.Lstat(top)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at /%s of the image: %w", top, err)
		}
		if !st.IsDir() {
			return fmt.Errorf("/%s of the image is no directory (%s): %w", top, st.Mode().Type(), errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// meanings are the places that p may turn out to be once links are followed: in the
// image, and in each volume that it lies in. except is the mount that p is the
// destination of; -1: none.
func meanings(in ocispec.Input, except int, p string) []string {
	out := []string{p}
	follow := func(root, rest string) {
		real, err := securejoin.SecureJoin(root, rest)
		if err != nil {
			return // links without end lead nowhere
		}
		if at := "/" + strings.TrimPrefix(strings.TrimPrefix(real, root), "/"); !slices.Contains(out, at) {
			out = append(out, at)
		}
	}
	follow(in.Rootfs, p)
	for i, m := range in.Config.GetMounts() {
		if rest, below := strings.CutPrefix(p, path.Clean("/"+m.GetContainerPath())+"/"); below && i != except && filepath.IsAbs(m.GetHostPath()) {
			follow(m.GetHostPath(), rest)
		}
	}
	return out
}

// procFiles may be mounted on in /proc: what shows a container its own share of
// the machine (lxcfs). Anything else there is read or written by OCI runtimes, to
// confine the container (CVE-2025-52881).
var procFiles = []string{
	"/proc/cpuinfo", "/proc/diskstats", "/proc/loadavg", "/proc/meminfo", "/proc/net/dev", "/proc/slabinfo", "/proc/stat", "/proc/swaps", "/proc/uptime",
}

// runtimeDevices are opened by OCI runtimes inside the container: /dev/null to hide
// files with (CVE-2025-31133), the terminals to be its own.
var runtimeDevices = []string{
	"/dev/null", "/dev/zero", "/dev/full", "/dev/random", "/dev/urandom", "/dev/tty", "/dev/console", "/dev/ptmx", "/dev/pts",
}

// checkDestination refuses to mount m at a place that a runtime relies on.
func checkDestination(in ocispec.Input, m *runtimeapi.Mount, at string) error {
	switch {
	case at == "/":
		return errors.New("it would hide the whole image")
	case at == "/proc":
		if !onFilesystem(m.GetHostPath(), unix.PROC_SUPER_MAGIC) {
			return errors.New("only a /proc of the host's may be mounted at /proc")
		}
	case strings.HasPrefix(at, "/proc/"):
		if !slices.Contains(procFiles, at) {
			return fmt.Errorf("nothing may be mounted at %s", at)
		}
	case in.Config.GetLinux().GetSecurityContext().GetPrivileged():
	case at == "/dev":
		if !sameFile(m.GetHostPath(), "/dev") {
			return errors.New("only the host's /dev may be mounted at /dev, unless the container is privileged")
		}
	case slices.Contains(runtimeDevices, at):
		st, err := os.Lstat(m.GetHostPath())
		if (err != nil || st.Mode()&os.ModeCharDevice == 0) && !onFilesystem(m.GetHostPath(), unix.DEVPTS_SUPER_MAGIC) {
			return fmt.Errorf("only a device may be mounted at %s, unless the container is privileged", at)
		}
	}
	return nil
}

func onFilesystem(path string, magic int64) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && int64(st.Type) == magic
}

func sameFile(a, b string) bool {
	x, errA := os.Stat(a)
	y, errB := os.Stat(b)
	return errA == nil && errB == nil && os.SameFile(x, y)
}

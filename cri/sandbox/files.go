package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/cri/label"
	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxHostFile = 1 << 20 // of /etc/hosts and /etc/resolv.conf
	maxDNS      = 32      // servers, searches, options each: as libc reads at most 32 searches
	shmSize     = "64m"
	// etcSize bounds what a pod's containers can write into those three files: twice
	// maxHostFile, and as much again to edit them in. Without it /etc/hosts would be
	// a way to fill the state directory, which all pods need (CVE-2020-8557).
	etcSize = "4m"
)

// Files are the paths of what a sandbox gives its containers to mount.
type Files struct {
	Hostname   string // content of /etc/hostname
	Hosts      string // content of /etc/hosts, a copy of the host's
	ResolvConf string // content of /etc/resolv.conf
	// Shm is what to mount at /dev/shm: a tmpfs of the pod's own, or the host's.
	Shm string
}

// etcIn is where the files lie: a small tmpfs of the sandbox's own, whose memory
// counts against the container that writes.
func etcIn(dir string) string { return filepath.Join(dir, "etc") }

func filesIn(dir string, hostIPC bool) Files {
	f := Files{
		Hostname: filepath.Join(etcIn(dir), "hostname"), Hosts: filepath.Join(etcIn(dir), "hosts"),
		ResolvConf: filepath.Join(etcIn(dir), "resolv.conf"), Shm: filepath.Join(dir, "shm"),
	}
	if hostIPC {
		f.Shm = "/dev/shm"
	}
	return f
}

// makeFiles writes the files and mounts shm, all owned by the pod's root user.
func makeFiles(dir string, c creation) error {
	f := filesIn(dir, c.modes.hostIPC)
	uid, gid := int(c.users.UIDs.Host), int(c.users.GIDs.Host)
	hosts, err := readHost("/etc/hosts")
	if err != nil {
		return err
	}
	if err := mountEtc(etcIn(dir)); err != nil {
		return err
	}
	for path, content := range map[string]string{f.Hostname: c.hostname + "\n", f.Hosts: hosts, f.ResolvConf: c.resolv} {
		failpoint.Hit("cri/sandbox/file")
		// Readable for all: containers of any user read them.
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			return fmt.Errorf("writing a file of the sandbox: %w", err)
		}
		if err := os.Chown(path, uid, gid); err != nil {
			return fmt.Errorf("giving a file of the sandbox to the pod's root: %w", err)
		}
	}
	if c.modes.hostIPC {
		return nil
	}
	failpoint.Hit("cri/sandbox/shm-mkdir")
	if err := os.Mkdir(f.Shm, 0o700); err != nil {
		return fmt.Errorf("making the sandbox's /dev/shm: %w", err)
	}
	data := label.MountData(fmt.Sprintf("mode=1777,size=%s,uid=%d,gid=%d", shmSize, uid, gid), c.labels.Mount)
	failpoint.Hit("cri/sandbox/shm-mount")
	if err := unix.Mount("shm", f.Shm, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, data); err != nil {
		return fmt.Errorf("mounting the sandbox's /dev/shm: %w", err)
	}
	failpoint.Hit("cri/sandbox/shm-mount-done")
	return nil
}

func mountEtc(etc string) error {
	failpoint.Hit("cri/sandbox/etc-mkdir")
	if err := os.Mkdir(etc, 0o711); err != nil {
		return fmt.Errorf("making the directory of the sandbox's files: %w", err)
	}
	failpoint.Hit("cri/sandbox/etc-mount")
	flags := uintptr(unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC)
	if err := unix.Mount("etc", etc, "tmpfs", flags, "mode=711,nr_inodes=16,size="+etcSize); err != nil {
		return fmt.Errorf("mounting the directory of the sandbox's files: %w", err)
	}
	failpoint.Hit("cri/sandbox/etc-mount-done")
	return nil
}

// labelFiles gives the files to the pod's containers, where SELinux would keep
// them from reading.
func (s *Store) labelFiles(dir string, c creation) error {
	f := filesIn(dir, c.modes.hostIPC)
	for _, path := range []string{f.Hostname, f.Hosts, f.ResolvConf} {
		if err := s.cfg.Labels.Share(path, c.labels.Mount); err != nil {
			return err
		}
	}
	return nil
}

// removeFiles undoes any part of makeFiles. A container that still has one of
// the two mounted keeps its own mount of it.
func removeFiles(dir string) error {
	f := filesIn(dir, false)
	for _, at := range []string{f.Shm, etcIn(dir)} {
		for {
			failpoint.Hit("cri/sandbox/files-unmount")
			err := unix.Unmount(at, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
			if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
				break
			}
			if err != nil {
				return fmt.Errorf("unmounting %s of the sandbox: %w", filepath.Base(at), err)
			}
		}
		failpoint.Hit("cri/sandbox/file-remove")
		if err := os.Remove(at); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("removing a directory of the sandbox: %w", err)
		}
	}
	return nil
}

// resolvConf renders the DNS configuration; without any it is the host's file.
func resolvConf(c *runtimeapi.DNSConfig) (string, error) {
	if c == nil || len(c.Servers) == 0 && len(c.Searches) == 0 && len(c.Options) == 0 {
		return readHost("/etc/resolv.conf")
	}
	for what, list := range map[string][]string{"servers": c.Servers, "searches": c.Searches, "options": c.Options} {
		if len(list) > maxDNS {
			return "", fmt.Errorf("DNS configuration has %d %s, at most %d are allowed: %w", len(list), what, maxDNS, errdefs.ErrInvalidArgument)
		}
		for _, word := range list {
			if word == "" || len(word) > 255 || strings.ContainsAny(word, " \t\r\n\x00#;") {
				return "", fmt.Errorf("DNS configuration: %q in %s is not one word of at most 255 characters: %w", word, what, errdefs.ErrInvalidArgument)
			}
		}
	}
	var b strings.Builder
	if len(c.Searches) > 0 {
		fmt.Fprintf(&b, "search %s\n", strings.Join(c.Searches, " "))
	}
	for _, s := range c.Servers {
		fmt.Fprintf(&b, "nameserver %s\n", s)
	}
	if len(c.Options) > 0 {
		fmt.Fprintf(&b, "options %s\n", strings.Join(c.Options, " "))
	}
	return b.String(), nil
}

// readHost reads a file of the host's, empty if it is missing.
func readHost(path string) (string, error) {
	st, err := os.Stat(path)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	if err == nil && st.Size() > maxHostFile {
		err = fmt.Errorf("%s has %d bytes, more than %d: make it smaller", path, st.Size(), maxHostFile)
	}
	var b []byte
	if err == nil {
		b, err = os.ReadFile(path)
	}
	if err != nil {
		return "", fmt.Errorf("copying a file of the host's for the sandbox: %w", err)
	}
	return string(b), nil
}

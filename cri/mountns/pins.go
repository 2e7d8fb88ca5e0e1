package mountns

import (
	"errors"
	"fmt"
	"os"
	"path"
	"slices"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Kind is a kind of namespace, spelled as in /proc/<pid>/ns.
type Kind string

// The kinds that can be pinned.
const (
	Net  Kind = "net"
	IPC  Kind = "ipc"
	UTS  Kind = "uts"
	PID  Kind = "pid"
	User Kind = "user"
)

// buildPins turns a fresh copy of the host's mounts into the pins namespace:
// one tmpfs and nothing of the host, so that no mount of the host is kept alive.
func buildPins() error {
	failpoint.Hit("cri/mountns/build-pins")
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("leaving the host's propagation: %w", err)
	}
	// Any directory serves to carry the tmpfs until it becomes the root.
	const carrier = "/proc"
	if err := unix.Mount("pins", carrier, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, "mode=0700,size=4m"); err != nil {
		return fmt.Errorf("mounting the tmpfs for pins: %w", err)
	}
	if err := unix.Chdir(carrier); err != nil {
		return err
	}
	// Old and new root at the same place: the old one lies on top, and is taken off.
	if err := unix.PivotRoot(".", "."); err != nil {
		return fmt.Errorf("making the tmpfs for pins the root: %w", err)
	}
	if err := unix.Unmount(".", unix.MNT_DETACH); err != nil {
		return fmt.Errorf("leaving the host's mounts: %w", err)
	}
	return unix.Chdir("/")
}

// Pin keeps the given namespaces of the living process pid under name, until
// Unpin. It replaces what was pinned there before. name is one path element.
func (n *Namespaces) Pin(pid int, kinds []Kind, name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	files := map[Kind]*os.File{}
	defer func() {
		for _, f := range files {
			f.Close()
		}
	}()
	for _, k := range kinds {
		f, err := os.Open(fmt.Sprintf("/proc/%d/ns/%s", pid, k))
		if err != nil {
			return fmt.Errorf("opening the %s namespace to pin as %s: %w", k, name, err)
		}
		files[k] = f
	}
	return n.pins.do(func() error {
		failpoint.Hit("cri/mountns/pin-mkdir")
		if err := os.Mkdir("/"+name, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
			return fmt.Errorf("pinning namespaces as %s: %w", name, err)
		}
		for _, k := range kinds {
			if err := pinOne(files[k], pinPath(name, k)); err != nil {
				return fmt.Errorf("pinning the %s namespace as %s: %w", k, name, err)
			}
		}
		return nil
	})
}

// pinOne attaches the nsfs file f at target.
func pinOne(f *os.File, target string) error {
	if err := unmountAll(target); err != nil {
		return err
	}
	point, err := os.OpenFile(target, os.O_CREATE|os.O_RDONLY|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return err
	}
	point.Close()
	tree, err := unix.OpenTree(int(f.Fd()), "", unix.AT_EMPTY_PATH|unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return fmt.Errorf("open_tree (Linux 5.2 or newer is needed): %w", err)
	}
	defer unix.Close(tree)
	failpoint.Hit("cri/mountns/pin")
	if err := unix.MoveMount(tree, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
		return fmt.Errorf("move_mount: %w", err)
	}
	failpoint.Hit("cri/mountns/pin-done")
	return nil
}

// Open opens a pinned namespace. The file serves as /proc/<pid>/fd/N for other
// programs, whatever their mount namespace. It fails with errdefs.ErrNotFound if
// it is not pinned.
func (n *Namespaces) Open(name string, kind Kind) (*os.File, error) {
	if err := checkName(name); err != nil {
		return nil, err
	}
	var f *os.File
	err := n.pins.do(func() (err error) {
		f, err = openPinned(pinPath(name, kind))
		return err
	})
	if err != nil {
		return nil, err
	}
	if f == nil {
		return nil, fmt.Errorf("%s namespace pinned as %s: %w", kind, name, errdefs.ErrNotFound)
	}
	return f, nil
}

// Unpin lets go of every namespace pinned under name. Unpinning what is not
// pinned succeeds.
func (n *Namespaces) Unpin(name string) error {
	if err := checkName(name); err != nil {
		return err
	}
	return n.pins.do(func() error {
		dir := "/" + name
		entries, err := os.ReadDir(dir)
		if errors.Is(err, os.ErrNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("unpinning %s: %w", name, err)
		}
		for _, e := range entries {
			if err := unmountAll(path.Join(dir, e.Name())); err != nil {
				return fmt.Errorf("unpinning the %s namespace of %s: %w", e.Name(), name, err)
			}
		}
		failpoint.Hit("cri/mountns/unpin-remove")
		if err := os.RemoveAll(dir); err != nil {
			return fmt.Errorf("unpinning %s: %w", name, err)
		}
		return nil
	})
}

// List returns every name with the kinds that are pinned under it, sorted; a
// half-made name has none.
func (n *Namespaces) List() (map[string][]Kind, error) {
	out := map[string][]Kind{}
	err := n.pins.do(func() error {
		names, err := os.ReadDir("/")
		if err != nil {
			return fmt.Errorf("listing pinned namespaces: %w", err)
		}
		for _, name := range names {
			out[name.Name()] = nil
			kinds, err := os.ReadDir("/" + name.Name())
			if err != nil {
				return fmt.Errorf("listing pinned namespaces: %w", err)
			}
			for _, k := range kinds {
				f, err := openPinned(pinPath(name.Name(), Kind(k.Name())))
				if err != nil {
					return err
				}
				if f != nil {
					f.Close()
					out[name.Name()] = append(out[name.Name()], Kind(k.Name()))
				}
			}
			slices.Sort(out[name.Name()])
		}
		return nil
	})
	return out, err
}

func pinPath(name string, kind Kind) string { return "/" + name + "/" + string(kind) }

func checkName(name string) error {
	if name == "" || name == "." || name == ".." || len(name) > 128 || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("%q cannot name a pin: %w", name, errdefs.ErrInvalidArgument)
	}
	return nil
}

// unmountAll unmounts whatever is mounted at path, in this thread's namespace.
func unmountAll(path string) error {
	for {
		failpoint.Hit("cri/mountns/unmount-pin")
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOENT) {
			return nil
		}
		if err != nil {
			return err
		}
	}
}

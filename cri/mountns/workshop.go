package mountns

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Workshop is a mount namespace of its own, pinned nowhere, with nothing in it
// but a small tmpfs. What is put together there is seen by nobody, is copied
// into no container, and is gone when the agent is killed.
//
// It is where overlays of idmapped layers are made: overlayfs takes its layers
// by path, and idmapped copies of layers would otherwise have to be mounted
// where every other mount namespace gets to see them.
type Workshop struct {
	t    *thread
	made int // on the thread only
}

// OpenWorkshop makes a workshop. Needs root.
func OpenWorkshop() (*Workshop, error) {
	failpoint.Hit("cri/mountns/workshop")
	t, err := newThread(func() error {
		if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
			return err
		}
		return buildPins()
	})
	if err != nil {
		return nil, fmt.Errorf("making a mount namespace to put overlays together in (needs CAP_SYS_ADMIN): %w", err)
	}
	return &Workshop{t: t}, nil
}

// Close ends the workshop; what was made in it stays with its owner.
func (w *Workshop) Close() { w.t.close() }

// Overlay describes an overlay mount.
type Overlay struct {
	// Lower are the layers, topmost first; two or more if there is no Writable.
	Lower []*Tree
	// Writable holds the directories "upper" and "work"; nil for a read-only
	// overlay. WritablePath is where it lies on the host: the mount's options
	// name it so.
	Writable     *Tree
	WritablePath string
	Options      []string
	Flags        uintptr // MS_*
}

// Overlay mounts o and returns it detached. The trees in o are used up, and
// still the caller's to close.
func (w *Workshop) Overlay(o Overlay) (tree *Tree, err error) {
	err = w.t.do(func() error {
		w.made++
		tree, err = w.overlay("/"+strconv.Itoa(w.made), o)
		return err
	})
	return tree, err
}

func (w *Workshop) overlay(root string, o Overlay) (tree *Tree, err error) {
	opts := o.Options
	var mounted []string
	defer func() {
		for _, path := range mounted {
			if uerr := unix.Unmount(path, unix.MNT_DETACH); uerr != nil {
				err = errors.Join(err, fmt.Errorf("clearing the workshop of %s: %w", path, uerr))
			}
			_ = os.Remove(path) // an empty directory, or, if it is still mounted, none that can be removed
		}
		_ = os.Remove(root)
		if err != nil {
			tree.Close()
			tree = nil
		}
	}()
	place := func(t *Tree, path string) error {
		if err := os.MkdirAll(path, 0o700); err != nil {
			return fmt.Errorf("placing a layer: %w", err)
		}
		if err := t.Attach(path); err != nil {
			return err
		}
		mounted = append(mounted, path)
		return nil
	}
	var lower []string
	for i, t := range o.Lower {
		path := root + "/" + strconv.Itoa(i)
		if err := place(t, path); err != nil {
			return nil, err
		}
		lower = append(lower, path)
	}
	opts = append([]string{"lowerdir=" + strings.Join(lower, ":")}, opts...)
	if o.Writable != nil {
		if err := place(o.Writable, o.WritablePath); err != nil {
			return nil, err
		}
		opts = append([]string{"upperdir=" + o.WritablePath + "/upper", "workdir=" + o.WritablePath + "/work"}, opts...)
	}
	merged := root + "/merged"
	if err := os.Mkdir(merged, 0o700); err != nil {
		return nil, fmt.Errorf("placing an overlay: %w", err)
	}
	data := strings.Join(opts, ",")
	if len(data) >= os.Getpagesize() {
		return nil, fmt.Errorf("mounting an overlay of %d layers: their options take %d bytes, %d are allowed", len(lower), len(data), os.Getpagesize()-1)
	}
	failpoint.Hit("cri/mountns/workshop-overlay")
	if err := unix.Mount("overlay", merged, "overlay", o.Flags, data); err != nil {
		return nil, fmt.Errorf("mounting an overlay of %d layers: %w", len(lower), err)
	}
	mounted = append(mounted, merged)
	return CloneTree(merged, false)
}

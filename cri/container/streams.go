package container

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"sync"

	"github.com/berthd/berth/cri/monitor"
	"github.com/berthd/berth/cri/ocispec"
	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// HostUser is a user of a user namespace as the host sees it.
type HostUser struct{ UID, GID int }

// hostUser translates u; nil outside of user namespaces. IDs that the namespace
// does not have are nobody's: its root stands in.
func hostUser(u ocispec.User, in ocispec.Users) *HostUser {
	if in.NS == "" {
		return nil
	}
	if u.UID >= in.UIDs.Length {
		u.UID = 0
	}
	if u.GID >= in.GIDs.Length {
		u.GID = 0
	}
	return &HostUser{UID: int(in.UIDs.Host + u.UID), GID: int(in.GIDs.Host + u.GID)}
}

// giveStreams gives the pipes that a created container has as its streams to its
// user, who otherwise could not open /dev/stdout. The runtimes do it by
// themselves outside of user namespaces. Inside, runc leaves the pipes to the
// host's root, and crun, told of the mapping, would give away the host's
// /dev/null too, whose new owner could then close it to everybody.
func giveStreams(init monitor.Identity, u HostUser) error {
	for fd := range 3 {
		f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/%d", init.PID, fd), unix.O_PATH|unix.O_CLOEXEC, 0)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return fmt.Errorf("looking at a container's streams: %w", err)
		}
		err = givePipe(f, u)
		f.Close()
		if err != nil {
			return err
		}
	}
	return nil
}

// givePipe changes the owner of f if it is a pipe.
func givePipe(f *os.File, u HostUser) error {
	st, err := f.Stat()
	if err != nil {
		return fmt.Errorf("looking at a container's streams: %w", err)
	}
	if st.Mode()&fs.ModeNamedPipe == 0 {
		return nil
	}
	failpoint.Hit("cri/container/give-pipe")
	if err := unix.Fchownat(int(f.Fd()), "", u.UID, u.GID, unix.AT_EMPTY_PATH); err != nil {
		return fmt.Errorf("giving a container its streams: %w", err)
	}
	return nil
}

// outputs are the reading ends of an exec's own pipes, made where the process
// must own them.
type outputs struct {
	files []*os.File
	copy  sync.WaitGroup
}

// pipe makes one pipe owned by u, copies what comes out of it to dst, and returns
// its writing end, the caller's to close.
func (o *outputs) pipe(u HostUser, dst io.Writer) (*os.File, error) {
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("making a pipe: %w", err)
	}
	o.files = append(o.files, r)
	if err := givePipe(w, u); err != nil {
		w.Close()
		return nil, err
	}
	if dst == nil {
		dst = io.Discard
	}
	o.copy.Go(func() { io.Copy(dst, r) })
	return w, nil
}

// drain waits until all has been copied, but not for children of the process
// that keep its streams open: after patience it stops reading.
func (o *outputs) drain(end func(*os.File)) {
	for _, f := range o.files {
		end(f)
	}
	o.copy.Wait()
	o.close()
}

func (o *outputs) close() {
	for _, f := range o.files {
		f.Close()
	}
}

package local

import (
	"context"
	"errors"
	"fmt"

	"github.com/berthd/berth/csi/volume"
	"golang.org/x/sys/unix"
)

// errnos is what the machine is to do about an answer of the kernel, and what a
// person can do about it.
var errnos = []struct {
	errno unix.Errno
	code  volume.Code
	hint  string
}{
	{unix.ENOSPC, volume.Exhausted, "free space or inodes on that file system"},
	{unix.EDQUOT, volume.Exhausted, "raise the disk quota"},
	{unix.ENOMEM, volume.Exhausted, "free memory on the node"},
	{unix.EMFILE, volume.Exhausted, "raise the agent's limit of open files"},
	{unix.ENFILE, volume.Exhausted, "raise fs.file-max"},
	{unix.EROFS, volume.Denied, "remount that file system writable, or choose another root directory"},
	{unix.EACCES, volume.Denied, "the agent must run as root"},
	{unix.EPERM, volume.Denied, "the agent must run as root with CAP_SYS_ADMIN; an immutable file (lsattr) refuses too"},
}

// Classify makes err a *volume.Error of the operation op on the volume name. One
// that already has a Code keeps it.
func Classify(op, name string, err error) *volume.Error {
	var e *volume.Error
	if errors.As(err, &e) {
		return &volume.Error{Op: op, Volume: name, Code: e.Code, Err: e.Err}
	}
	out := &volume.Error{Op: op, Volume: name, Code: volume.Internal, Err: err}
	switch {
	case errors.Is(err, context.DeadlineExceeded):
		out.Code = volume.Timeout
	case errors.Is(err, context.Canceled):
		out.Code = volume.Canceled
	}
	for _, known := range errnos {
		if errors.Is(err, known.errno) {
			out.Code, out.Err = known.code, fmt.Errorf("%w; %s", err, known.hint)
			break
		}
	}
	return out
}

package image

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// lockRoot takes the lock of an image root for the life of the returned file.
func lockRoot(root string) (*os.File, error) {
	f, err := os.OpenFile(filepath.Join(root, "lock"), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open lock of image root: %w", err)
	}
	if err := patientFlock(f); err != nil {
		holder := make([]byte, 32)
		n, _ := f.Read(holder)
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("image root %s is in use by process %s: stop it, or give another root",
				root, strings.TrimSpace(string(holder[:n])))
		}
		return nil, fmt.Errorf("lock image root %s: %w", root, err)
	}
	if err := f.Truncate(0); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock of image root: %w", err), f.Close())
	}
	if _, err := f.WriteAt(fmt.Appendf(nil, "%d\n", os.Getpid()), 0); err != nil {
		return nil, errors.Join(fmt.Errorf("write lock of image root: %w", err), f.Close())
	}
	return f, nil
}

// A program that the last holder was about to start has the lock's file open
// until its exec, and with it the lock. That is waited out: long where the
// process that the file names has ended, for it can only be that, and short
// where that process lives and may well hold the lock itself.
const (
	lockPatience = 10 * time.Second
	livePatience = time.Second
	lockPause    = 10 * time.Millisecond
)

// patientFlock locks f. It fails with EWOULDBLOCK where the lock stays held.
func patientFlock(f *os.File) error {
	for begin := time.Now(); ; time.Sleep(lockPause) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		waited := time.Since(begin)
		if !errors.Is(err, unix.EWOULDBLOCK) || waited > lockPatience || waited > livePatience && holderLives(f) {
			return err
		}
	}
}

// unlockRoot gives the lock up, also for a program between fork and exec that
// has the file open: the lock is of the open file, not of the process.
func unlockRoot(f *os.File) error {
	var unlock error
	if conn, err := f.SyscallConn(); err == nil {
		if err := conn.Control(func(fd uintptr) { unlock = unix.Flock(int(fd), unix.LOCK_UN) }); err != nil {
			return fmt.Errorf("unlock image root: %w", err) // closed before
		}
	}
	return errors.Join(unlock, f.Close())
}

func holderLives(f *os.File) bool {
	body := make([]byte, 32)
	n, _ := f.ReadAt(body, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(body[:n])))
	return err == nil && unix.Kill(pid, 0) == nil
}

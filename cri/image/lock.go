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

// lockPatience is how long the lock of a process that has ended may still be
// held: a program that it was about to start when it was killed has the file
// open until its exec.
const lockPatience = 10 * time.Second

// patientFlock locks f. It waits for a holder that is no more, and fails at once
// with EWOULDBLOCK if the process that the file names is alive.
func patientFlock(f *os.File) error {
	for end := time.Now().Add(lockPatience); ; time.Sleep(20 * time.Millisecond) {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if !errors.Is(err, unix.EWOULDBLOCK) || time.Now().After(end) || holderLives(f) {
			return err
		}
	}
}

func holderLives(f *os.File) bool {
	body := make([]byte, 32)
	n, _ := f.ReadAt(body, 0)
	pid, err := strconv.Atoi(strings.TrimSpace(string(body[:n])))
	return err == nil && unix.Kill(pid, 0) == nil
}

package image

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// fingerprint tells whether a file, or anything in a directory, changed, without
// reading it.
func fingerprint(path string) (string, error) {
	st, err := os.Stat(path)
	if err != nil {
		return "", err
	}
	sum := sha256.New()
	note := func(name string, st os.FileInfo) {
		fmt.Fprintf(sum, "%q %v %d %d\n", name, st.Mode(), st.Size(), st.ModTime().UnixNano())
	}
	switch {
	case st.Mode().IsRegular():
		note("", st)
	case st.IsDir():
		n := 0
		err = filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if n++; n > maxFolderFiles {
				return fmt.Errorf("directory has more than %d files", maxFolderFiles)
			}
			info, err := e.Info()
			if err == nil {
				note(name, info)
			}
			return err
		})
	default:
		return "", errors.New("neither a file nor a directory")
	}
	return fmt.Sprintf("%x", sum.Sum(nil)[:16]), err
}

// beingWritten tells whether somebody has the file, or one in the directory, open
// for writing. File systems that cannot tell say no.
func beingWritten(path string) bool {
	busy := errors.New("busy")
	err := filepath.WalkDir(path, func(name string, e fs.DirEntry, err error) error {
		if err != nil || !e.Type().IsRegular() {
			return nil //nolint:nilerr // what cannot be looked at fails the import, which says why
		}
		if openForWriting(name) {
			return busy
		}
		return nil
	})
	return errors.Is(err, busy)
}

// openForWriting asks for a read lease, which the kernel grants on no file that is
// open for writing.
func openForWriting(name string) bool {
	fd, err := unix.Open(name, unix.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return false
	}
	defer unix.Close(fd)
	_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_RDLCK)
	if err == nil {
		_, err = unix.FcntlInt(uintptr(fd), unix.F_SETLEASE, unix.F_UNLCK)
	}
	return errors.Is(err, unix.EAGAIN)
}

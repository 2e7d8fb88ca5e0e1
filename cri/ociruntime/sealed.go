package ociruntime

import (
	"fmt"
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// seal copies the program at path into memory that nobody can write any more
// (all of a memfd's seals); it lives as long as the file is open.
//
// A runtime must not be run from a file that a container could reach through
// /proc/<pid>/exe and overwrite (CVE-2019-5736). Called by its path, crun
// therefore starts each time by mounting itself read-only, unmounting that and
// executing itself anew, which takes three times what the call itself does;
// crun and runc leave it out where they find themselves sealed. nil, and then the
// path serves as before, where the kernel grants no such memory or path is not
// a plain program.
func seal(path string) *os.File {
	src, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer src.Close()
	magic := make([]byte, 4)
	if _, err := io.ReadFull(src, magic); err != nil || string(magic) != "\x7fELF" {
		return nil // a script's interpreter would have to open it by this name
	}
	if _, err := src.Seek(0, io.SeekStart); err != nil {
		return nil
	}
	flags := unix.MFD_CLOEXEC | unix.MFD_ALLOW_SEALING
	fd, err := unix.MemfdCreate("oci-runtime", flags|unix.MFD_EXEC)
	if err != nil { // MFD_EXEC is of Linux 6.3
		fd, err = unix.MemfdCreate("oci-runtime", flags)
	}
	if err != nil {
		return nil
	}
	f := os.NewFile(uintptr(fd), "oci-runtime")
	if _, err = io.Copy(f, src); err == nil {
		_, err = unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, unix.F_SEAL_SEAL|unix.F_SEAL_SHRINK|unix.F_SEAL_GROW|unix.F_SEAL_WRITE)
	}
	if err != nil {
		f.Close()
		return nil
	}
	return f
}

// Executable is the path to run: the sealed copy, for as long as this process
// lives, or Path. A monitor that outlives the agent finds nothing there, and the
// creation it was started for fails, as it should.
func (b Binary) Executable() string {
	if b.sealed == nil {
		return b.Path
	}
	return fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), b.sealed.Fd())
}

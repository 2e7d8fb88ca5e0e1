package ociruntime

import (
	"bytes"
	"errors"
	"os"
	"os/exec"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

func TestSealed(t *testing.T) {
	for _, name := range preferred {
		path, err := exec.LookPath(name)
		if err != nil {
			t.Logf("%s is not installed: not tested", name)
			continue
		}
		b, err := Find(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		exe := b.Executable()
		if !strings.HasPrefix(exe, "/proc/") {
			t.Fatalf("%s runs from %s: this kernel has memfd, so it should be sealed", name, exe)
		}
		got, err := os.ReadFile(exe)
		want, _ := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, want) {
			t.Errorf("the sealed copy of %s is another program (%v)", path, err)
		}
		if f, err := os.OpenFile(exe, os.O_RDWR, 0); err == nil {
			if _, err := f.Write([]byte("x")); !errors.Is(err, unix.EPERM) {
				t.Errorf("%s can be written: %v", exe, err)
			}
			f.Close()
		}
	}
}

// What cannot be sealed, or does not run sealed, runs from its path.
func TestNotSealed(t *testing.T) {
	lying := script(t, `echo crun version 1.8.1`)
	if b, err := Find(t.Context(), lying); err != nil || b.Executable() != lying {
		t.Errorf("a script runs from %q: %v", b.Executable(), err)
	}
	if f := seal("/nonesuch"); f != nil {
		t.Error("sealed what is not there")
	}
	if b := (Binary{Path: "/usr/bin/crun"}); b.Executable() != b.Path {
		t.Errorf("unsealed runs from %q", b.Executable())
	}
}

package ociruntime

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// Binary is an OCI runtime on this host.
type Binary struct {
	// Name is "crun" or "runc".
	Name string
	// Path is absolute.
	Path string
	// Version is what it says of itself: "1.8.1".
	Version string
	// Features are the build features it names: "+SYSTEMD", "+SECCOMP"; runc: "libseccomp".
	Features []string
	// Why says, for a person, why this one was taken and others were not.
	Why string

	sealed *os.File // nil if it runs from Path
}

// oldest are the first versions that do what Berth needs: recursive read-only
// mounts and descriptors that cannot be inherited by a container.
var oldest = map[string][2]int{"crun": {1, 4}, "runc": {1, 1}}

// preferred is the order of choice: crun starts a container in a third of runc's time.
var preferred = []string{"crun", "runc"}

// Find returns the runtime at path, or else the first usable of crun and runc on
// PATH. The error says what each one lacks.
func Find(ctx context.Context, path string) (Binary, error) {
	if path != "" {
		b, err := inspect(ctx, path)
		if err != nil {
			return Binary{}, fmt.Errorf("the configured OCI runtime cannot be used: %w", err)
		}
		b.Why = b.Name + " " + b.Version + " is configured"
		return b, nil
	}
	var rejected []string
	for _, name := range preferred {
		found, err := exec.LookPath(name)
		if err != nil {
			rejected = append(rejected, name+" is not installed")
			continue
		}
		b, err := inspect(ctx, found)
		if err != nil {
			rejected = append(rejected, err.Error())
			continue
		}
		b.Why = b.Name + " " + b.Version + " is the first usable of " + strings.Join(preferred, ", ")
		if len(rejected) > 0 {
			b.Why += " (" + strings.Join(rejected, "; ") + ")"
		}
		return b, nil
	}
	return Binary{}, fmt.Errorf("no usable OCI runtime: %s; install crun 1.4 or runc 1.1, or newer (apt-get install crun)",
		strings.Join(rejected, "; "))
}

func inspect(ctx context.Context, path string) (Binary, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	path, err := exec.LookPath(path)
	if err != nil {
		return Binary{}, err
	}
	if path, err = filepath.Abs(path); err != nil {
		return Binary{}, err
	}
	plain := Binary{Path: path}
	if sealed := seal(path); sealed != nil {
		// Whether the host lets it run from there is only known by trying.
		b, err := plain.ask(ctx, sealed)
		if err == nil {
			return b, nil
		}
		sealed.Close()
	}
	return plain.ask(ctx, nil)
}

// ask runs the runtime, from sealed if that is not nil, and completes b from what
// it says of itself.
func (b Binary) ask(ctx context.Context, sealed *os.File) (Binary, error) {
	b.sealed = sealed
	failpoint.Hit("cri/ociruntime/version")
	out, err := exec.CommandContext(ctx, b.Executable(), "--version").Output()
	if err != nil {
		return Binary{}, fmt.Errorf("%s --version: %w", b.Path, err)
	}
	told, err := parseVersion(string(out))
	if err != nil {
		return Binary{}, fmt.Errorf("%s --version: %w", b.Path, err)
	}
	told.Path, told.sealed = b.Path, sealed
	return told, nil
}

// parseVersion reads "crun version 1.8.1\n...\n+SYSTEMD +SELINUX ..." and
// "runc version 1.1.5+ds1\n...\nlibseccomp: 2.5.4".
func parseVersion(out string) (Binary, error) {
	var b Binary
	for i, line := range strings.Split(strings.TrimSpace(out), "\n") {
		f := strings.Fields(line)
		switch {
		case i == 0 && len(f) >= 3 && f[1] == "version":
			b.Name, b.Version = f[0], f[2]
		case strings.HasPrefix(line, "+"):
			b.Features = append(b.Features, f...)
		case strings.HasPrefix(line, "libseccomp:"):
			b.Features = append(b.Features, "libseccomp")
		}
	}
	least, known := oldest[b.Name]
	if !known {
		return Binary{}, errors.New("is neither crun nor runc")
	}
	major, rest, _ := strings.Cut(b.Version, ".")
	minor, _, _ := strings.Cut(rest, ".")
	x, err1 := strconv.Atoi(major)
	y, err2 := strconv.Atoi(strings.TrimRightFunc(minor, func(r rune) bool { return r < '0' || r > '9' }))
	if err1 != nil || err2 != nil {
		return Binary{}, fmt.Errorf("version %q is not understood", b.Version)
	}
	if x < least[0] || x == least[0] && y < least[1] {
		return Binary{}, fmt.Errorf("%s %s is too old: %d.%d or newer is needed", b.Name, b.Version, least[0], least[1])
	}
	return b, nil
}

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
	"syscall"
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

// FindHandler returns the runtime at path for a runtime handler of that name. Any
// program that takes crun's and runc's command line will do; of one that is
// neither, nothing is known but what every OCI runtime can.
func FindHandler(ctx context.Context, name, path string) (Binary, error) {
	b, told := inspect(ctx, path)
	err := told
	if errors.Is(err, errUnknown) || errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		// One that is too slow now, at a busy start, may serve later: then its pods tell.
		if path, err = exec.LookPath(path); err == nil {
			path, err = filepath.Abs(path)
		}
		b = Binary{Name: filepath.Base(path), Path: path, Version: "unknown"}
	}
	if err != nil {
		return Binary{}, fmt.Errorf("the OCI runtime of runtime handler %q cannot be used: %w", name, err)
	}
	b.Why = "runtime handler " + name + " is configured"
	if b.Version == "unknown" && errors.Is(told, context.DeadlineExceeded) {
		b.Why += fmt.Sprintf(", but has not told its version within %v", askTime)
	}
	return b, nil
}

// userns are the oldest versions that containers in user namespaces have been
// seen to run with. Neither has to know idmapped mounts: those are made for it.
var userns = map[string][2]int{"crun": {1, 8}, "runc": {1, 1}}

// UserNamespaces tells why b cannot run containers in user namespaces; nil if it can.
func (b Binary) UserNamespaces() error {
	least, known := userns[b.Name]
	if !known {
		return fmt.Errorf("the OCI runtime %s is neither crun nor runc, and is not known to run containers in user namespaces", b.Name)
	}
	if !b.atLeast(least) {
		return fmt.Errorf("%s %s is too old to run containers in user namespaces: %d.%d or newer is needed", b.Name, b.Version, least[0], least[1])
	}
	return nil
}

// RecursiveReadOnly tells whether b can make a mount read-only with all below it.
func (b Binary) RecursiveReadOnly() bool { return b.atLeast(oldest[b.Name]) }

// atLeast is false for a version that is not understood, and for runtimes of
// which none is known.
func (b Binary) atLeast(least [2]int) bool {
	x, y, ok := numbers(b.Version)
	return ok && least != [2]int{} && (x > least[0] || x == least[0] && y >= least[1])
}

// askTime bounds the question for a version: nothing starts before it is answered.
const askTime = 5 * time.Second

func inspect(ctx context.Context, path string) (Binary, error) {
	ctx, cancel := context.WithTimeout(ctx, askTime)
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
		if ctx.Err() != nil {
			return Binary{}, err
		}
	}
	return plain.ask(ctx, nil)
}

// ask runs the runtime, from sealed if that is not nil, and completes b from what
// it says of itself.
func (b Binary) ask(ctx context.Context, sealed *os.File) (Binary, error) {
	b.sealed = sealed
	failpoint.Hit("cri/ociruntime/version")
	cmd := exec.CommandContext(ctx, b.Executable(), "--version")
	cmd.Env, cmd.WaitDelay = environ, time.Second
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	out := limited{max: maxStderr}
	cmd.Stdout = &out
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = fmt.Errorf("no answer within %v: %w", askTime, ctx.Err())
		}
		return Binary{}, fmt.Errorf("%s --version: %w", b.Path, err)
	}
	told, err := parseVersion(out.String())
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
		return Binary{}, errUnknown
	}
	if _, _, ok := numbers(b.Version); !ok {
		return Binary{}, fmt.Errorf("version %q is not understood", b.Version)
	}
	if !b.atLeast(least) {
		return Binary{}, fmt.Errorf("%s %s is too old: %d.%d or newer is needed", b.Name, b.Version, least[0], least[1])
	}
	return b, nil
}

var errUnknown = errors.New("is neither crun nor runc")

// numbers reads the first two of "1.1.5+ds1", "1.2-rc.1".
func numbers(version string) (major, minor int, ok bool) {
	first, rest, _ := strings.Cut(version, ".")
	second, _, _ := strings.Cut(rest, ".")
	x, err1 := strconv.Atoi(first)
	y, err2 := strconv.Atoi(strings.TrimRightFunc(second, func(r rune) bool { return r < '0' || r > '9' }))
	return x, y, err1 == nil && err2 == nil
}

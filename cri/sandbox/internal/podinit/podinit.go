package podinit

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/berthd/berth/test/failpoint"
	"golang.org/x/sys/unix"
)

// Setting is a sysctl: the file below /proc/sys that is written, and its value.
type Setting struct{ Path, Value string }

// Options tell what the program makes and does.
type Options struct {
	// Clone are the CLONE_NEW* flags of the namespaces to make.
	Clone uintptr
	// Hostname is set in the new UTS namespace; empty leaves it.
	Hostname string
	// Loopback raises the device lo of the new network namespace.
	Loopback bool
	// Sysctls are written in order.
	Sysctls []Setting
	// Stay keeps the program as the PID 1 of the new PID namespace.
	Stay bool
	// UIDs and GIDs are the mappings of a new user namespace, which then owns the
	// other new ones; the program runs as its ID 0. None: no user namespace.
	UIDs, GIDs []syscall.SysProcIDMap
}

// attr tells the kernel what to make.
func (o Options) attr(pidfd *int) *syscall.SysProcAttr {
	a := &syscall.SysProcAttr{Cloneflags: o.Clone, PidFD: pidfd}
	if len(o.UIDs) > 0 {
		a.Cloneflags |= unix.CLONE_NEWUSER
		a.UidMappings, a.GidMappings, a.GidMappingsEnableSetgroups = o.UIDs, o.GIDs, true
		a.Credential = &syscall.Credential{} // sysctls belong to the namespace's root
	}
	return a
}

// Init is a started program. It must be ended by Go or by Abandon.
type Init struct {
	// PID is its number in the agent's PID namespace.
	PID int
	// FD is a pidfd of it; after Go with Options.Stay it is the caller's to close.
	FD int

	opts    Options
	control *os.File
	status  *os.File
	reap    func() error
}

// binaryFile holds the program as a sealed file without a name, once made.
var binaryFile = sync.OnceValues(func() (*os.File, error) {
	fd, err := unix.MemfdCreate("berth-init", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return nil, fmt.Errorf("memfd_create: %w", err)
	}
	f := os.NewFile(uintptr(fd), "berth-init")
	if _, err := f.Write(program); err != nil {
		f.Close()
		return nil, err
	}
	seals := unix.F_SEAL_SEAL | unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		f.Close()
		return nil, fmt.Errorf("sealing the program: %w", err)
	}
	return f, nil
})

// Start clones the program into new namespaces. It waits there for Go.
func Start(o Options) (*Init, error) {
	file, err := binaryFile()
	if err != nil {
		return nil, fmt.Errorf("placing the pod init in memory: %w", err)
	}
	controlIn, controlOut, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("starting the pod init: %w", err)
	}
	defer controlIn.Close()
	statusIn, statusOut, err := os.Pipe()
	if err != nil {
		controlOut.Close()
		return nil, fmt.Errorf("starting the pod init: %w", err)
	}
	defer statusOut.Close()
	i := &Init{FD: -1, opts: o, control: controlOut, status: statusIn}
	failpoint.Hit("cri/sandbox/podinit-clone")
	proc, err := os.StartProcess(fmt.Sprintf("/proc/self/fd/%d", file.Fd()), argv(o), &os.ProcAttr{
		Env:   []string{},
		Dir:   "/",
		Files: []*os.File{controlIn, statusOut, statusOut},
		Sys:   o.attr(&i.FD),
	})
	runtime.KeepAlive(file)
	if err != nil {
		controlOut.Close()
		statusIn.Close()
		return nil, fmt.Errorf("starting the pod init in new namespaces (needs CAP_SYS_ADMIN): %w", err)
	}
	failpoint.Hit("cri/sandbox/podinit-clone-done")
	i.PID = proc.Pid
	i.reap = func() error { _, err := proc.Wait(); return err }
	return i, nil
}

func argv(o Options) []string {
	out := []string{"berth-init", "hold", o.Hostname, ""}
	if o.Stay {
		out[1] = "reap"
	}
	if o.Loopback {
		out[3] = "lo"
	}
	for _, s := range o.Sysctls {
		out = append(out, s.Path, s.Value)
	}
	return out
}

// Go lets the program do its settings and waits for its report; ctx bounds the
// wait, and without a deadline it is ten seconds. After an error the program has
// ended. Otherwise it has ended unless Options.Stay: then the caller waits for
// it by Wait.
func (i *Init) Go(ctx context.Context) error {
	err := i.settle(ctx)
	i.close()
	if err != nil || !i.opts.Stay {
		err = errors.Join(err, i.end())
	}
	return err
}

func (i *Init) settle(ctx context.Context) error {
	deadline, ok := ctx.Deadline()
	if !ok {
		deadline = time.Now().Add(10 * time.Second)
	}
	if err := i.status.SetReadDeadline(deadline); err != nil {
		return err
	}
	failpoint.Hit("cri/sandbox/podinit-go")
	if _, err := i.control.Write([]byte{1}); err != nil {
		return fmt.Errorf("telling the pod init to go: %w", err)
	}
	var answer [8]byte
	if _, err := io.ReadFull(i.status, answer[:]); err != nil {
		return fmt.Errorf("waiting for the pod init's report (was it killed?): %w", err)
	}
	return i.failure(int(binary.NativeEndian.Uint32(answer[:4])), syscall.Errno(binary.NativeEndian.Uint32(answer[4:])))
}

// failure names the step that failed, as init.c counts them.
func (i *Init) failure(step int, errno syscall.Errno) error {
	switch {
	case step == 0:
		return nil
	case step == 1:
		return fmt.Errorf("setting the host name %q: %w", i.opts.Hostname, errno)
	case step == 2:
		return fmt.Errorf("raising the loopback device: %w", errno)
	case step-3 < len(i.opts.Sysctls):
		s := i.opts.Sysctls[step-3]
		return &SysctlError{Setting: s, Err: errno}
	}
	return fmt.Errorf("the pod init failed at an unknown step %d: %w", step, errno)
}

// SysctlError says that the kernel refused a sysctl.
type SysctlError struct {
	Setting Setting
	Err     error
}

func (e *SysctlError) Error() string {
	return fmt.Sprintf("writing %q to %s: %v", e.Setting.Value, e.Setting.Path, e.Err)
}

func (e *SysctlError) Unwrap() error { return e.Err }

// Abandon ends a program that has not been told to go. Its namespaces end with
// it, but for those pinned. Calling it after Go does nothing.
func (i *Init) Abandon() error {
	if i.control == nil {
		return nil
	}
	i.close()
	return i.end()
}

// Wait waits for a staying program to end and collects it.
func (i *Init) Wait() error { return i.reap() }

func (i *Init) close() {
	i.control.Close()
	i.status.Close()
	i.control, i.status = nil, nil
}

// end kills and collects the program.
func (i *Init) end() error {
	failpoint.Hit("cri/sandbox/podinit-end")
	if i.FD >= 0 {
		_ = unix.PidfdSendSignal(i.FD, unix.SIGKILL, nil, 0) // it may have ended
		unix.Close(i.FD)
		i.FD = -1
	}
	return i.reap()
}

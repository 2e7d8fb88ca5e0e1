// Package label owns the SELinux labels of pods and containers: which they are,
// and which levels are taken. Where SELinux is off every label is empty and
// nothing is done.
//
// Each pod gets a level of its own (two categories that no other pod on this
// node has), which its containers share; what a pod or container says of user,
// role, type and level goes before it. A privileged container has no label.
//
//	ForPod (level taken) ─▶ record ─Reserve, after a restart─▶ ... ─Release, with the sandbox─▶ level free
package label

import (
	"errors"
	"fmt"

	"github.com/berthd/berth/test/failpoint"
	"github.com/opencontainers/selinux/go-selinux"
	selabel "github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Labels are what processes run with, and what their files are labelled with.
type Labels struct {
	Process string `json:"process,omitempty"`
	Mount   string `json:"mount,omitempty"`
}

// Kernel is SELinux; tests put another in its place.
type Kernel interface {
	Enabled() bool
	// New makes labels from "user:", "role:", "type:" and "level:" options; without
	// a level it takes a free one.
	New(options []string) (process, mount string, err error)
	// Reserve and Release mark the level of a process label as taken and free.
	Reserve(process string) error
	Release(process string)
	// Relabel labels path and all below it; shared leaves the level out.
	Relabel(path, mount string, shared bool) error
}

// Labeler makes labels. Its methods may be called at once.
type Labeler struct{ kernel Kernel }

// New returns a Labeler on k; nil is the real SELinux.
func New(k Kernel) *Labeler {
	if k == nil {
		k = linux{}
	}
	return &Labeler{kernel: k}
}

// Enabled tells whether labels mean anything here. A nil Labeler has none.
func (l *Labeler) Enabled() bool { return l != nil && l.kernel.Enabled() }

// ForPod makes the labels of a new sandbox and takes a level for it, until Release.
func (l *Labeler) ForPod(o *runtimeapi.SELinuxOption) (Labels, error) {
	if !l.Enabled() {
		return Labels{}, nil
	}
	return l.make(options(o))
}

// ForContainer makes the labels of a container in a sandbox that has pod.
func (l *Labeler) ForContainer(pod Labels, sec *runtimeapi.LinuxContainerSecurityContext) (Labels, error) {
	if !l.Enabled() || sec.GetPrivileged() {
		return Labels{}, nil
	}
	opts := options(sec.GetSelinuxOptions())
	if sec.GetSelinuxOptions().GetLevel() == "" && pod.Process != "" {
		level, err := levelOf(pod.Process)
		if err != nil {
			return Labels{}, err
		}
		if level != "" {
			opts = append(opts, "level:"+level)
		}
	}
	return l.make(opts)
}

func (l *Labeler) make(opts []string) (Labels, error) {
	process, mount, err := l.kernel.New(opts)
	if err != nil {
		return Labels{}, fmt.Errorf("making SELinux labels of %q: %w", opts, err)
	}
	return Labels{Process: process, Mount: mount}, nil
}

// Reserve takes the level of a sandbox that an earlier agent made. Idempotent.
func (l *Labeler) Reserve(pod Labels) error {
	if !l.Enabled() || pod.Process == "" {
		return nil
	}
	if err := l.kernel.Reserve(pod.Process); err != nil {
		return fmt.Errorf("taking the level of the SELinux label %q: %w", pod.Process, err)
	}
	return nil
}

// Release frees the level of a sandbox. Idempotent.
func (l *Labeler) Release(pod Labels) {
	if l.Enabled() && pod.Process != "" {
		l.kernel.Release(pod.Process)
	}
}

// Relabel gives path, and all below it, to the containers whose files have the
// label mount: volumes are their pod's alone. Share gives it to every container
// of that type whatever its level, as one container of a pod may have a level of
// its own. A file system without labels stays as it is.
func (l *Labeler) Relabel(path, mount string) error { return l.relabel(path, mount, false) }

// Share is Relabel without the level; for files that only tell names and addresses.
func (l *Labeler) Share(path, mount string) error { return l.relabel(path, mount, true) }

func (l *Labeler) relabel(path, mount string, shared bool) error {
	if !l.Enabled() || mount == "" {
		return nil
	}
	failpoint.Hit("cri/label/relabel")
	if err := l.kernel.Relabel(path, mount, shared); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return fmt.Errorf("labelling %s for SELinux: %w", path, err)
	}
	return nil
}

// MountData adds mount, unless empty, to the data of a mount(2) as the label of
// all files in a file system that is being mounted.
func MountData(data, mount string) string { return selabel.FormatMountLabel(data, mount) }

// options spells what CRI says, in a fixed order.
func options(o *runtimeapi.SELinuxOption) []string {
	var out []string
	for _, f := range []struct{ key, value string }{
		{"user", o.GetUser()}, {"role", o.GetRole()}, {"type", o.GetType()}, {"level", o.GetLevel()},
	} {
		if f.value != "" {
			out = append(out, f.key+":"+f.value)
		}
	}
	return out
}

func levelOf(process string) (string, error) {
	c, err := selinux.NewContext(process)
	if err != nil {
		return "", fmt.Errorf("SELinux label %q of the pod: %w", process, err)
	}
	return c["level"], nil
}

// linux is the SELinux of this host.
type linux struct{}

func (linux) Enabled() bool { return selinux.GetEnabled() }

func (linux) New(options []string) (string, string, error) { return selabel.InitLabels(options) }

func (linux) Reserve(process string) error { return selinux.ReserveLabelV2(process) }

func (linux) Release(process string) { selinux.ReleaseLabel(process) }

func (linux) Relabel(path, mount string, shared bool) error {
	return selabel.Relabel(path, mount, shared)
}

// Package apparmor owns the AppArmor profile that containers get by default, and
// knows which profiles the kernel has loaded. On hosts without AppArmor there is
// nothing to own.
//
// The profile is generated, and loaded by apparmor_parser at each start of the
// agent: loading what is loaded already replaces it by the same.
package apparmor

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"github.com/berthd/berth/test/failpoint"
)

// DefaultName is the profile's.
const DefaultName = "berth-default"

// loadTime bounds one run of apparmor_parser; compiling takes well under a second.
const loadTime = 30 * time.Second

// Config says where things are; empty fields are where Linux has them.
type Config struct {
	// Parser is the path of apparmor_parser; empty searches PATH and /sbin.
	Parser string
	// Kernel is /sys, Rules /etc/apparmor.d.
	Kernel, Rules string
	Log           *slog.Logger
}

// Profiles are the AppArmor profiles of this host.
type Profiles struct {
	cfg     Config
	enabled bool
	loaded  bool // the default one
}

// Open looks whether AppArmor is on, and loads the default profile if so. A
// profile that cannot be loaded is logged: containers without a wish then run
// without one, as they do on a host without AppArmor.
func Open(ctx context.Context, cfg Config) *Profiles {
	if cfg.Kernel == "" {
		cfg.Kernel = "/sys"
	}
	if cfg.Rules == "" {
		cfg.Rules = "/etc/apparmor.d"
	}
	p := &Profiles{cfg: cfg}
	b, err := os.ReadFile(filepath.Join(cfg.Kernel, "module/apparmor/parameters/enabled"))
	if p.enabled = err == nil && strings.TrimSpace(string(b)) == "Y"; !p.enabled {
		return p
	}
	if err := p.load(ctx); err != nil {
		cfg.Log.Warn("containers run without the default AppArmor profile", "profile", DefaultName, "err", err)
		return p
	}
	p.loaded = true
	return p
}

// Enabled tells whether the kernel enforces profiles.
func (p *Profiles) Enabled() bool { return p != nil && p.enabled }

// Default is the profile that RuntimeDefault stands for; empty if there is none.
func (p *Profiles) Default() string {
	if p == nil || !p.loaded {
		return ""
	}
	return DefaultName
}

// Check tells why a container cannot run with the profile name: the kernel does
// not have it. It is asked each time, for profiles come and go with the host.
func (p *Profiles) Check(name string) error {
	if !p.Enabled() {
		return fmt.Errorf("AppArmor profile %q cannot be enforced: AppArmor is off on this node", name)
	}
	f, err := os.Open(filepath.Join(p.cfg.Kernel, "kernel/security/apparmor/profiles"))
	if err != nil {
		return fmt.Errorf("AppArmor profile %q: reading which profiles are loaded (is securityfs mounted?): %w", name, err)
	}
	defer f.Close()
	if ok, err := listed(f, name); err != nil {
		return fmt.Errorf("AppArmor profile %q: reading which profiles are loaded: %w", name, err)
	} else if !ok {
		return fmt.Errorf("AppArmor profile %q is not loaded on this node: load it with apparmor_parser, or correct the pod", name)
	}
	return nil
}

// listed finds a line "name (mode)". A name may have spaces and parentheses.
func listed(r io.Reader, name string) (bool, error) {
	sc := bufio.NewScanner(r)
	for sc.Scan() {
		if i := strings.LastIndex(sc.Text(), " ("); i >= 0 && sc.Text()[:i] == name {
			return true, nil
		}
	}
	return false, sc.Err()
}

func (p *Profiles) load(ctx context.Context) error {
	parser, err := p.parser()
	if err != nil {
		return err
	}
	text, err := render(p.cfg.Rules)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	// From its standard input; -K: what it compiles is not cached on disk.
	cmd := exec.CommandContext(ctx, parser, "-K", "--replace")
	cmd.Stdin = bytes.NewReader(text)
	failpoint.Hit("cri/apparmor/load")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("loading the profile with %s: %w: %.500s", parser, err, strings.TrimSpace(string(out)))
	}
	return nil
}

func (p *Profiles) parser() (string, error) {
	if p.cfg.Parser != "" {
		return p.cfg.Parser, nil
	}
	for _, name := range []string{"apparmor_parser", "/sbin/apparmor_parser", "/usr/sbin/apparmor_parser"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", errors.New("apparmor_parser is not installed (apt-get install apparmor)")
}

// render writes the profile out, with the abstractions that this host has.
func render(rules string) ([]byte, error) {
	has := func(name string) bool {
		_, err := os.Stat(filepath.Join(rules, name))
		return err == nil
	}
	var b bytes.Buffer
	err := profile.Execute(&b, map[string]any{"Name": DefaultName, "Tunables": has("tunables/global"), "Base": has("abstractions/base")})
	if err != nil {
		return nil, fmt.Errorf("writing the AppArmor profile: %w", err)
	}
	return b.Bytes(), nil
}

// profile lets a container do what its other confinement lets it, but for the
// files by which the kernel is ruled, whatever capabilities it has: writing below
// /proc/sys other than to what is namespaced, to /sys, and reading memory.
var profile = template.Must(template.New("profile").Parse(`{{if .Tunables}}#include <tunables/global>
{{else}}@{PROC}=/proc/
{{end}}
profile {{.Name}} flags=(attach_disconnected,mediate_deleted) {
{{- if .Base}}
  #include <abstractions/base>
{{- end}}
  network,
  capability,
  file,
  umount,

  # The host's agent, its runtimes, and the container itself.
  signal (receive) peer=unconfined,
  signal (receive) peer=crun,
  signal (receive) peer=runc,
  signal (send, receive) peer={{.Name}},
  ptrace (trace, read, tracedby, readby) peer={{.Name}},

  deny mount,

  deny @{PROC}/kcore rwklx,
  deny @{PROC}/mem rwklx,
  deny @{PROC}/kmem rwklx,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/sys/fs/** wklx,
  deny @{PROC}/sys/vm/** wklx,
  deny @{PROC}/sys/dev/** wklx,
  deny @{PROC}/sys/debug/** wklx,
  deny @{PROC}/sys/abi/** wklx,
  deny @{PROC}/sys/user/** wklx,
  deny @{PROC}/sys/kernel/[^msd]** wklx,
  deny @{PROC}/sys/kernel/{modprobe,modules_disabled,sysrq,softlockup_panic,stack_tracer_enabled,sched_*,seccomp/**,sg-big-buff,ds*} wklx,

  deny /sys/[^fk]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/kernel/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
}
`))

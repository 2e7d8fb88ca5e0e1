package hostcheck

import (
	"context"
	"time"
)

// State is how one thing stands.
type State string

// The states.
const (
	OK      State = "ok"      // as it should be
	Warning State = "warning" // pods run, but something is missing or clamped
	Failed  State = "failed"  // pods cannot run before it is mended
)

// Check is one thing that was looked at.
type Check struct {
	Group string `json:"group"` // Programs, Network, Kernel, Security, Cgroups, Memory, Limits, Space
	Name  string `json:"name"`
	State State  `json:"state"`
	// Found says what is there, in a few words.
	Found string `json:"found"`
	// Fix is the command, or else the step, that mends it; empty if nothing is to be done.
	Fix string `json:"fix,omitempty"`
}

// Options say where Berth will look for things. Empty ones mean the defaults.
type Options struct {
	// OCIRuntime is the configured one: crun, runc, a path; empty or "auto" is the first usable.
	OCIRuntime string
	// Conmon is its path; empty: on PATH.
	Conmon     string
	CNIBinDirs []string
	// Dirs are checked for space: directory to what it is for. Those that do not
	// exist yet count as their nearest parent.
	Dirs map[string]string
	// RootDir is where images and volumes lie.
	RootDir string
	// LimitedSwap says that pods are to use swap space.
	LimitedSwap bool
	// Endpoint is that of an external CRI runtime (unix:///path), if one is used: it
	// is asked, and what only the embedded one needs is not looked at.
	Endpoint string
	// Root is put before /proc and /sys, for tests.
	Root string
}

// programTime bounds the call of a program for its version.
const programTime = 5 * time.Second

// Run looks at everything, in an order fit to be read. It takes as long as the
// programs that are asked for their version, each at most some seconds.
func Run(ctx context.Context, o Options) []Check {
	h := host{o}
	var all []Check
	if o.Endpoint == "" {
		all = append(append(all, h.ociRuntime(ctx)), h.holes(ctx)...)
		all = append(all, h.conmon(ctx), h.plugins(), h.iptables(ctx))
	} else {
		all = append(all, h.external(ctx)...)
	}
	all = append(all, h.forwarding(4), h.forwarding(6))
	all = append(all, h.kernel()...)
	all = append(all, h.security(ctx)...)
	all = append(all, h.cgroups()...)
	all = append(all, h.memory()...)
	all = append(all, h.limits()...)
	return append(all, h.space()...)
}

// Worst returns the worst state of all; OK if there are none.
func Worst(all []Check) State {
	worst := OK
	for _, c := range all {
		if c.State == Failed || c.State == Warning && worst == OK {
			worst = c.State
		}
	}
	return worst
}

type host struct{ o Options }

func ok(group, name, found string) Check {
	return Check{Group: group, Name: name, State: OK, Found: found}
}

func warn(group, name, found, fix string) Check {
	return Check{Group: group, Name: name, State: Warning, Found: found, Fix: fix}
}

func failed(group, name, found, fix string) Check {
	return Check{Group: group, Name: name, State: Failed, Found: found, Fix: fix}
}

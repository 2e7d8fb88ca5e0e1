package node

import "os/exec"

// Purge removes everything the agent has on the host, and its runtime; the agent must not be running.
func (a *Agent) Purge() {
	a.T.Helper()
	purge := func(flags ...string) {
		a.T.Helper()
		args := append(append([]string{"purge", "--yes"}, a.dirFlags()...), flags...)
		if msg, err := exec.Command(a.Binary, args...).CombinedOutput(); err != nil {
			a.T.Errorf("berth purge: %v\n%s", err, msg)
		}
	}
	b := a.running.below
	if b == nil {
		purge()
		return
	}
	if b.cmd != nil || b.args != nil { // it has run at all
		a.StartRuntime()
		purge(a.endpointFlags()...)
		a.StopRuntime()
		b.clear(a)
	}
	if _, ours := b.runtime.(berthRuntime); ours {
		purge()
	}
}

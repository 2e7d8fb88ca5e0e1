package plan

import (
	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// verdict is the last verdict on m's current instance.
func (d *decision) verdict(m *member, kind pod.ProbeKind) pod.Verdict {
	if m.cur == nil {
		return pod.NoVerdict
	}
	return d.rec.Boot.Verdicts[m.cur.ID][kind].Verdict
}

// probe lists the probes that shall run: of mains and sidecars that run and have
// their postStart hook behind them, the startup probe alone until it has succeeded. A container that is being stopped
// is only asked whether it is ready.
func (d *decision) probe() {
	for _, m := range d.members {
		if !m.known || !m.running() || !d.hooked(m) || m.kind != pod.Main && m.kind != pod.Sidecar {
			continue
		}
		ending := d.end != endNone || d.stopping(m.cur.ID)
		switch {
		case d.started(m):
			if !ending {
				d.probeOne(m, pod.Liveness, m.spec.LivenessProbe)
			}
			d.probeOne(m, pod.Readiness, m.spec.ReadinessProbe)
		case !ending:
			d.probeOne(m, pod.Startup, m.spec.StartupProbe)
		}
	}
}

func (d *decision) probeOne(m *member, kind pod.ProbeKind, p *v1.Probe) {
	if p == nil {
		return
	}
	d.plan.Probes = append(d.plan.Probes, ProbeTarget{
		Pod: d.pod, Container: m.cur.ID, Name: m.name, Kind: kind, StartedAt: m.cur.StartedAt, Probe: *p,
		IPs: d.rec.Boot.IPs, Ports: m.spec.Ports, Verdict: d.verdict(m, kind),
	})
}

// ready says that m takes traffic.
func (d *decision) ready(m *member) bool {
	switch m.kind {
	case pod.Init:
		return d.initDone(m)
	case pod.Ephemeral:
		return false
	}
	if !d.started(m) {
		return false
	}
	return m.spec.ReadinessProbe == nil || d.verdict(m, pod.Readiness) == pod.Success
}

// initDone says that init container m has done its work in this sandbox.
func (d *decision) initDone(m *member) bool {
	if d.initialized {
		return true
	}
	return m.cur != nil && m.cur.State == pod.Exited && m.cur.ExitCode == 0
}

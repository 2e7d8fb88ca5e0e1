package plan

import (
	"fmt"
	"strings"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// explainContainer says whether and how m holds the pod up.
func (d *decision) explainContainer(m *member) (pod.Explanation, bool) {
	if !m.running() {
		if e, ok := d.explainPull(m); ok {
			return e, true
		}
		if e, ok := d.explainStart(m); ok {
			return e, true
		}
	}
	e := pod.Explanation{Container: m.name}
	if m.kind == pod.Init && d.initialized || m.kind == pod.Ephemeral {
		return e, false
	}
	switch {
	case m.exited() && !d.busy(m.slot) && d.mayRestart(m):
		return d.explainCrash(m), true
	case m.running() && d.stopping(m.cur.ID):
		st := d.rec.Boot.Stopping[m.cur.ID]
		e.Cause, e.Reason = st.Message+".", st.Reason
		if st.Reason == pod.Unhealthy || st.Reason == pod.FailedPostStartHook {
			e.Cause, e.Advice = d.condemnation(m, m.cur, st)
		}
		e.Next, e.NextAt = "What still runs of it then is killed.", st.Deadline
		return e, true
	case m.running() && !d.hooked(m):
		e.Cause, e.Since = fmt.Sprintf("The postStart hook of container %s has not ended.", m.name), m.cur.StartedAt
		e.Reason, e.Next = pod.ContainerCreating, "The containers after it wait for the hook."
		e.Advice = Advise(Trouble{Reason: slowHook, Pod: d.pod, Container: m.name})
		return e, true
	case m.running() && !d.ready(m) && m.kind != pod.Init:
		return d.explainUnready(m), true
	case m.kind == pod.Init && m.running():
		e.Cause, e.Reason, e.Since = fmt.Sprintf("Init container %s is running; the containers after it wait for its end.", m.name), pod.PodInitializing, m.cur.StartedAt
		e.Next = "The next container starts when it has exited with 0."
		e.Advice = Advise(Trouble{Reason: slowInit, Pod: d.pod, Container: m.name})
		return e, true
	}
	return e, false
}

// explainPull tells of an image that m needs and that cannot be had.
func (d *decision) explainPull(m *member) (pod.Explanation, bool) {
	image, slot := m.spec.Image, pod.ImageSlot(m.name)
	f, ok := d.Failures[slot]
	if !ok {
		if image, f, ok = d.volumeImageFailure(m); !ok {
			return pod.Explanation{}, false
		}
		slot = d.volumeImageSlot(m)
	}
	e := pod.Explanation{
		Container: m.name, Reason: f.Reason, Advice: d.advise(f, m.name, image),
		Cause: sentence(fmt.Sprintf("The image %q of container %s cannot be had: %%s.", strings.ReplaceAll(image, "%", "%%"), m.name), f.Message),
	}
	verb := "pulled"
	if !pullFailed(f) {
		verb = "looked for"
	} else if !d.Now.Before(pullBackOffShown(f)) {
		e.Reason = pod.ImagePullBackOff
	}
	d.retry(&e, slot, f, verb, f.NotBefore)
	return e, true
}

// explainStart tells of an instance of m that cannot be started.
func (d *decision) explainStart(m *member) (pod.Explanation, bool) {
	f, ok := d.Failures[m.slot]
	if !ok || f.Op != pod.OpStartContainer {
		return pod.Explanation{}, false
	}
	e := pod.Explanation{
		Container: m.name, Reason: f.Reason, Advice: d.advise(f, m.name, m.spec.Image),
		Cause: sentence(fmt.Sprintf("Container %s cannot be started: %%s.", m.name), d.named(m, f.Message)),
	}
	due := f.NotBefore
	if at := d.crashDue(m); at.After(due) {
		due = at
	}
	d.retry(&e, m.slot, f, "started", due)
	return e, true
}

// named puts into a message of the OCI runtime the name that it leaves out.
func (d *decision) named(m *member, message string) string {
	if len(m.spec.Command) > 0 {
		message = strings.ReplaceAll(message, "the command may not be executed", fmt.Sprintf("the command %q may not be executed", m.spec.Command[0]))
		message = strings.ReplaceAll(message, "the command is not in the image", fmt.Sprintf("the command %q is not in the image", m.spec.Command[0]))
	}
	if dir := m.spec.WorkingDir; dir != "" {
		message = strings.ReplaceAll(message, `the working directory "" cannot`, fmt.Sprintf("the working directory %q cannot", dir))
	}
	for _, v := range m.spec.VolumeMounts {
		at := fmt.Sprintf(`/%s": one of its source`, v.Name)
		if i := strings.Index(message, at); i >= 0 && strings.Contains(message, "mount of ") {
			message = fmt.Sprintf("mount of volume %q at %s%s", v.Name, v.MountPath, message[i+len(at)-len(`: one of its source`):])
		}
	}
	return message
}

// crashDue is when m's crash-loop delay is over; zero if it has none.
func (d *decision) crashDue(m *member) time.Time {
	if !m.exited() {
		return time.Time{}
	}
	if b, ok := d.rec.Boot.Backoff[m.name]; ok && b.Instance == m.last.ID {
		return dueAfter(m.last, b)
	}
	return time.Time{}
}

func (d *decision) explainCrash(m *member) pod.Explanation {
	e := pod.Explanation{Container: m.name, Reason: pod.CrashLoopBackOff, Since: m.last.FinishedAt}
	e.Cause, e.Advice = d.lastEnd(m, m.last)
	e.Next = fmt.Sprintf("It is started again (start %d).", d.rec.Durable.Restarts[m.name]+1)
	if at := d.crashDue(m); at.After(d.Now) {
		e.NextAt = at
	}
	return e
}

// lastEnd says how instance c of m ended, and what can be done about it.
func (d *decision) lastEnd(m *member, c *pod.Container) (cause, advice string) {
	if st, ok := d.rec.Boot.Stopping[c.ID]; ok && (st.Reason == pod.Unhealthy || st.Reason == pod.FailedPostStartHook) {
		return d.condemnation(m, c, st)
	}
	if wasReset(c) {
		return fmt.Sprintf("Container %s was removed because all containers of the pod are restarted (RestartAllContainers).", m.name),
			Advise(Trouble{Reason: resettingAgain, Pod: d.pod, Container: m.name})
	}
	t := Trouble{Pod: d.pod, Container: m.name, Reason: exitedBadly, Message: fmt.Sprint(c.ExitCode)}
	switch {
	case c.Reason == string(pod.OOMKilled):
		t.Reason = pod.OOMKilled
	case c.Reason == string(pod.ContainerStatusUnknown), strings.Contains(c.Message, "its monitor"):
		t.Reason = lostContainer
	case c.ExitCode == 0:
		t.Reason = exitedWell
	case signals[c.ExitCode-128] != "":
		t.Reason = endedBySignal
	}
	kind := "Container"
	if m.kind == pod.Init || m.kind == pod.Sidecar {
		kind = "Init container"
	}
	cause = fmt.Sprintf("%s %s %s.", kind, m.name, exit(c.ExitCode, c.Reason))
	if said := clean(c.Message); said != "" {
		cause += " It left the message: " + said + "."
	}
	return cause, Advise(t)
}

// condemnation says why instance c of m was, or is being, ended by us.
func (d *decision) condemnation(m *member, c *pod.Container, st pod.Stopping) (cause, advice string) {
	if st.Reason == pod.FailedPostStartHook {
		f := d.Failures[m.slot]
		return because(fmt.Sprintf("Container %s was ended because its postStart hook failed", m.name), f.Message),
			Advise(Trouble{Op: pod.OpPostStart, Pod: d.pod, Container: m.name, Message: f.Message})
	}
	kind, p := pod.Liveness, m.spec.LivenessProbe
	if v := d.rec.Boot.Verdicts[c.ID][pod.Startup]; v.Verdict == pod.Failed {
		kind, p = pod.Startup, m.spec.StartupProbe
	}
	said := d.rec.Boot.Verdicts[c.ID][kind].Message
	return because(fmt.Sprintf("Container %s was ended because its %s probe (%s) failed", m.name, kind, probes(p)), said),
		Advise(Trouble{Reason: condemned, Message: said, Pod: d.pod, Container: m.name})
}

// because ends a sentence with what somebody said, if anything.
func because(text, said string) string {
	if said = clean(said); said != "" {
		text += ": " + said
	}
	return text + "."
}

func (d *decision) explainUnready(m *member) pod.Explanation {
	e := pod.Explanation{Container: m.name, Reason: pod.ContainersNotReady, Since: m.cur.StartedAt}
	kind, p, advice := pod.Readiness, m.spec.ReadinessProbe, pod.Unhealthy
	if !d.started(m) {
		kind, p, advice = pod.Startup, m.spec.StartupProbe, slowStart
	}
	v := d.rec.Boot.Verdicts[m.cur.ID][kind]
	switch {
	case v.Verdict == pod.Failed:
		e.Reason, e.Since = pod.Unhealthy, v.At
		e.Cause = because(fmt.Sprintf("Container %s runs, but its %s probe (%s) fails", m.name, kind, probes(p)), v.Message)
	case v.At.IsZero():
		e.Cause = fmt.Sprintf("Container %s runs, but its %s probe (%s) has not succeeded yet.", m.name, kind, probes(p))
	default:
		e.Cause = because(fmt.Sprintf("Container %s runs, but its %s probe (%s) has never succeeded", m.name, kind, probes(p)), v.Message)
	}
	e.Next = fmt.Sprintf("It is probed every %s.", probePeriod(p))
	if kind == pod.Startup && p != nil {
		e.Next = fmt.Sprintf("It is probed every %s, and ended when that has failed %d times.", probePeriod(p), max(p.FailureThreshold, 1))
	}
	e.Advice = Advise(Trouble{Reason: advice, Message: v.Message, Pod: d.pod, Container: m.name})
	return e
}

// probes says what p asks.
func probes(p *v1.Probe) string {
	switch {
	case p == nil:
		return "none"
	case p.Exec != nil:
		return "exec " + clipWords(strings.Join(p.Exec.Command, " "))
	case p.HTTPGet != nil:
		return "httpGet port " + p.HTTPGet.Port.String() + " " + p.HTTPGet.Path
	case p.TCPSocket != nil:
		return "tcpSocket port " + p.TCPSocket.Port.String()
	case p.GRPC != nil:
		return fmt.Sprintf("grpc port %d", p.GRPC.Port)
	}
	return "none"
}

func clipWords(s string) string {
	const most = 60
	if len(s) > most {
		return strings.ToValidUTF8(s[:most], "") + "..."
	}
	return s
}

func probePeriod(p *v1.Probe) string {
	if p == nil || p.PeriodSeconds <= 0 {
		return "10s"
	}
	return fmt.Sprintf("%ds", p.PeriodSeconds)
}

// explainGates is said when every container is ready.
func (d *decision) explainGates() pod.Explanation {
	lacking := d.closedGates()
	if len(lacking) == 0 {
		return d.explainWell()
	}
	for i := range lacking {
		lacking[i] = strings.TrimSuffix(lacking[i], ".")
	}
	why := strings.Join(lacking, "; ")
	return pod.Explanation{
		Reason: pod.ReadinessGatesNotReady, Cause: sentence("All containers are ready, but the pod waits for its readiness gates: %s.", why),
		Next: "It is ready as soon as the condition is True.", Advice: Advise(Trouble{Reason: pod.ReadinessGatesNotReady, Message: why, Pod: d.pod}),
	}
}

// explainWell does not hide that a container has been in a crash loop of late.
func (d *decision) explainWell() pod.Explanation {
	e := pod.Explanation{Well: true, Cause: "The pod runs and is ready."}
	for _, m := range d.members {
		b, ok := d.rec.Boot.Backoff[m.name]
		if !ok || !m.running() || d.Now.Sub(m.cur.StartedAt) > resetAfter {
			continue
		}
		if last := d.before(m, m.cur); last != nil && last.ID == b.Instance && !d.replaced(last) && !wasReset(last) {
			cause, advice := d.lastEnd(m, last)
			e.Cause += fmt.Sprintf(" It has crashed before, though (start %d): %s", d.rec.Durable.Restarts[m.name], cause)
			e.Container, e.Advice = m.name, advice
			return e
		}
	}
	return e
}

// hostPaths are the paths of the host that p mounts.
func hostPaths(p *v1.Pod) (paths []string) {
	for _, v := range p.Spec.Volumes {
		if v.HostPath != nil {
			paths = append(paths, v.HostPath.Path)
		}
	}
	return paths
}

// explainProgress is said when nothing is wrong.
func (d *decision) explainProgress() pod.Explanation {
	e := pod.Explanation{Reason: pod.ContainerCreating, Since: d.rec.Durable.Accepted}
	for _, m := range d.members {
		if _, ok := d.InFlight[pod.ImageSlot(m.name)]; ok && !m.running() && d.inTurn(m) {
			e.Container, e.Cause, e.Next = m.name, fmt.Sprintf("The image %q of container %s is being pulled.", m.spec.Image, m.name), "The container starts when it is here."
			e.Advice = Advise(Trouble{Reason: slowPull, Pod: d.pod, Container: m.name, Image: m.spec.Image})
			return e
		}
	}
	switch {
	case !d.seen():
		e.Cause = "The container runtime is being asked what it knows of the pod."
	case d.Observed.Volumes == nil:
		e.Cause, e.Next = "The pod's volumes are being set up.", "Its sandbox is made when they are."
		e.Advice = Advise(Trouble{Reason: slowVolumes, Message: strings.Join(hostPaths(d.pod), ", "), Pod: d.pod})
	case d.sandbox == nil:
		e.Cause, e.Next = "The pod's sandbox and network are being made.", "Its containers start when they are."
		e.Advice = Advise(Trouble{Reason: slowSandbox, Pod: d.pod})
	default:
		for _, m := range d.members {
			if m.known && m.kind == pod.Main && !m.running() && d.end == endNone && !(m.exited() && !d.mayRestart(m)) {
				e.Container, e.Cause = m.name, fmt.Sprintf("Container %s is being started.", m.name)
				return e
			}
		}
		return d.explainGates()
	}
	return e
}

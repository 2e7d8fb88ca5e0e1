package podspec

import (
	"fmt"
	"slices"
	"strconv"

	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// health checks the hooks and probes of a container that stays.
func (c *checker) health(k *v1.Container, at *field.Path) {
	if l := k.Lifecycle; l != nil {
		at := at.Child("lifecycle")
		c.hook(l.PostStart, at.Child("postStart"))
		c.hook(l.PreStop, at.Child("preStop"))
		c.stopSignal(l.StopSignal, at.Child("stopSignal"))
	}
	c.killer(k.LivenessProbe, at.Child("livenessProbe"))
	c.killer(k.StartupProbe, at.Child("startupProbe"))
	c.probe(k.ReadinessProbe, at.Child("readinessProbe"))
	if p := k.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		c.invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes")
	}
}

// killer is a probe that restarts its container: one success is all it waits for.
func (c *checker) killer(p *v1.Probe, at *field.Path) {
	c.probe(p, at)
	if p != nil && p.SuccessThreshold != 1 {
		c.invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1")
	}
}

func (c *checker) probe(p *v1.Probe, at *field.Path) {
	if p == nil {
		return
	}
	u := &union{f: &c.findings, at: at, what: "handler"}
	arm(u, p.Exec, "exec", c.exec)
	arm(u, p.HTTPGet, "httpGet", c.httpGet)
	arm(u, p.TCPSocket, "tcpSocket", c.tcpSocket)
	arm(u, p.GRPC, "grpc", func(g *v1.GRPCAction, at *field.Path) { c.port(intstr.FromInt32(g.Port), at.Child("port")) })
	u.end()
	for _, n := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds}, {"timeoutSeconds", p.TimeoutSeconds}, {"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold}, {"failureThreshold", p.FailureThreshold},
	} {
		c.add(apivalidation.ValidateNonnegativeField(int64(n.value), at.Child(n.name))...)
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		c.invalid(at.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0")
	}
}

func (c *checker) hook(h *v1.LifecycleHandler, at *field.Path) {
	if h == nil {
		return
	}
	u := &union{f: &c.findings, at: at, what: "handler"}
	arm(u, h.Exec, "exec", c.exec)
	arm(u, h.HTTPGet, "httpGet", c.httpGet)
	arm(u, h.TCPSocket, "tcpSocket", c.tcpSocket)
	arm(u, h.Sleep, "sleep", func(s *v1.SleepAction, at *field.Path) {
		if c.grace != nil && (s.Seconds < 0 || s.Seconds > *c.grace) {
			c.invalid(at, s.Seconds, fmt.Sprintf("must be between 0 and the pod's terminationGracePeriodSeconds (%d)", *c.grace))
		}
	})
	u.end()
}

func (c *checker) exec(e *v1.ExecAction, at *field.Path) {
	if len(e.Command) == 0 {
		c.required(at.Child("command"), "")
	}
}

func (c *checker) httpGet(h *v1.HTTPGetAction, at *field.Path) {
	c.need(at.Child("path"), h.Path)
	c.port(h.Port, at.Child("port"))
	oneOf(&c.findings, at.Child("scheme"), h.Scheme, v1.URISchemeHTTP, v1.URISchemeHTTPS)
	for _, header := range h.HTTPHeaders {
		c.invalid(at.Child("httpHeaders"), header.Name, validation.IsHTTPHeaderName(header.Name)...)
	}
}

func (c *checker) tcpSocket(s *v1.TCPSocketAction, at *field.Path) {
	c.port(s.Port, at.Child("port"))
}

// port: a number, or the name of a port of the container.
func (c *checker) port(p intstr.IntOrString, at *field.Path) {
	switch p.Type {
	case intstr.Int:
		c.invalid(at, p.IntValue(), validation.IsValidPortNum(p.IntValue())...)
	case intstr.String:
		c.invalid(at, p.StrVal, validation.IsValidPortName(p.StrVal)...)
	default:
		c.add(field.InternalError(at, fmt.Errorf("unknown type of port: %v", p.Type)))
	}
}

// linuxSignals are the signals that a container of Linux may be stopped with.
var linuxSignals = func() []v1.Signal {
	all := []v1.Signal{v1.SIGABRT, v1.SIGALRM, v1.SIGBUS, v1.SIGCHLD, v1.SIGCLD, v1.SIGCONT, v1.SIGFPE, v1.SIGHUP, v1.SIGILL, v1.SIGINT,
		v1.SIGIO, v1.SIGIOT, v1.SIGKILL, v1.SIGPIPE, v1.SIGPOLL, v1.SIGPROF, v1.SIGPWR, v1.SIGQUIT, v1.SIGSEGV, v1.SIGSTKFLT, v1.SIGSTOP,
		v1.SIGSYS, v1.SIGTERM, v1.SIGTRAP, v1.SIGTSTP, v1.SIGTTIN, v1.SIGTTOU, v1.SIGURG, v1.SIGUSR1, v1.SIGUSR2, v1.SIGVTALRM,
		v1.SIGWINCH, v1.SIGXCPU, v1.SIGXFSZ, v1.SIGRTMIN, v1.SIGRTMAX}
	for n := 1; n <= 15; n++ {
		all = append(all, v1.Signal("SIGRTMIN+"+strconv.Itoa(n)))
	}
	for n := 1; n <= 14; n++ {
		all = append(all, v1.Signal("SIGRTMAX-"+strconv.Itoa(n)))
	}
	slices.Sort(all)
	return all
}()

// stopSignal: which signals there are depends on the system, so it has to be named.
func (c *checker) stopSignal(s *v1.Signal, at *field.Path) {
	switch {
	case s == nil:
	case c.spec.OS == nil:
		c.forbidden(at, "may not be set for containers with empty `spec.os.name`")
	case c.spec.OS.Name == v1.Windows:
		oneOf(&c.findings, at, *s, v1.SIGKILL, v1.SIGTERM)
	case c.spec.OS.Name == v1.Linux:
		oneOf(&c.findings, at, *s, linuxSignals...)
	}
}

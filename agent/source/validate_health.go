package source

import (
	v1 "k8s.io/api/core/v1"
	apivalidation "k8s.io/apimachinery/pkg/api/validation"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

func validateRestart(c *v1.Container, at *field.Path, init bool) (errs field.ErrorList) {
	p := c.RestartPolicy
	if p != nil {
		errs = append(errs, oneOf(at.Child("restartPolicy"), *p, v1.ContainerRestartPolicyAlways, v1.ContainerRestartPolicyNever, v1.ContainerRestartPolicyOnFailure)...)
	}
	rules := at.Child("restartPolicyRules")
	if len(c.RestartPolicyRules) > 0 && p == nil {
		errs = append(errs, field.Required(at.Child("restartPolicy"), "must specify restartPolicy when restart rules are used"))
	}
	if len(c.RestartPolicyRules) > 0 && init && p != nil && *p == v1.ContainerRestartPolicyAlways {
		errs = append(errs, field.Forbidden(rules, "restartPolicyRules are not allowed for init containers with restartPolicy Always"))
	}
	if len(c.RestartPolicyRules) > 20 {
		errs = append(errs, field.TooMany(rules, len(c.RestartPolicyRules), 20))
	}
	for i, r := range c.RestartPolicyRules {
		at := rules.Index(i)
		errs = append(errs, oneOf(at.Child("action"), r.Action, v1.ContainerRestartRuleActionRestart, v1.ContainerRestartRuleActionRestartAllContainers)...)
		if r.ExitCodes == nil {
			errs = append(errs, field.Required(at.Child("exitCodes"), "must be specified"))
			continue
		}
		at = at.Child("exitCodes")
		errs = append(errs, oneOf(at.Child("operator"), r.ExitCodes.Operator, v1.ContainerRestartRuleOnExitCodesOpIn, v1.ContainerRestartRuleOnExitCodesOpNotIn)...)
		if len(r.ExitCodes.Values) == 0 {
			errs = append(errs, field.Required(at.Child("values"), ""))
		}
		if len(r.ExitCodes.Values) > 255 {
			errs = append(errs, field.TooMany(at.Child("values"), len(r.ExitCodes.Values), 255))
		}
	}
	return errs
}

// validateHealth checks probes and hooks. An ordinary init container has neither.
func validateHealth(c *v1.Container, at *field.Path, init bool) (errs field.ErrorList) {
	if init && (c.RestartPolicy == nil || *c.RestartPolicy != v1.ContainerRestartPolicyAlways) {
		const why = "may not be set for init containers without restartPolicy=Always"
		for name, isSet := range map[string]bool{"lifecycle": c.Lifecycle != nil, "livenessProbe": c.LivenessProbe != nil, "readinessProbe": c.ReadinessProbe != nil, "startupProbe": c.StartupProbe != nil} {
			if isSet {
				errs = append(errs, field.Forbidden(at.Child(name), why))
			}
		}
		return errs
	}
	errs = append(errs, validateProbe(c.LivenessProbe, at.Child("livenessProbe"), true)...)
	errs = append(errs, validateProbe(c.StartupProbe, at.Child("startupProbe"), true)...)
	errs = append(errs, validateProbe(c.ReadinessProbe, at.Child("readinessProbe"), false)...)
	if p := c.ReadinessProbe; p != nil && p.TerminationGracePeriodSeconds != nil {
		errs = append(errs, field.Invalid(at.Child("readinessProbe", "terminationGracePeriodSeconds"), *p.TerminationGracePeriodSeconds, "must not be set for readinessProbes"))
	}
	if l := c.Lifecycle; l != nil {
		errs = append(errs, validateHook(l.PostStart, at.Child("lifecycle", "postStart"))...)
		errs = append(errs, validateHook(l.PreStop, at.Child("lifecycle", "preStop"))...)
	}
	return errs
}

func validateProbe(p *v1.Probe, at *field.Path, kills bool) (errs field.ErrorList) {
	if p == nil {
		return nil
	}
	for name, n := range map[string]int32{"initialDelaySeconds": p.InitialDelaySeconds, "timeoutSeconds": p.TimeoutSeconds, "periodSeconds": p.PeriodSeconds, "successThreshold": p.SuccessThreshold, "failureThreshold": p.FailureThreshold} {
		errs = append(errs, count(at.Child(name), int64(n))...)
	}
	if kills && p.SuccessThreshold != 1 {
		errs = append(errs, field.Invalid(at.Child("successThreshold"), p.SuccessThreshold, "must be 1"))
	}
	if g := p.TerminationGracePeriodSeconds; g != nil && *g <= 0 {
		errs = append(errs, field.Invalid(at.Child("terminationGracePeriodSeconds"), *g, "must be greater than 0"))
	}
	n := 0
	if p.Exec != nil {
		n++
		errs = append(errs, validateExec(p.Exec, at.Child("exec"))...)
	}
	if p.HTTPGet != nil {
		n++
		errs = append(errs, validateHTTP(p.HTTPGet, at.Child("httpGet"))...)
	}
	if p.TCPSocket != nil {
		n++
		errs = append(errs, validPort(at.Child("tcpSocket", "port"), p.TCPSocket.Port)...)
	}
	if p.GRPC != nil {
		n++
		errs = append(errs, invalid(at.Child("grpc", "port"), p.GRPC.Port, validation.IsValidPortNum(int(p.GRPC.Port)))...)
	}
	return append(errs, exactlyOne(at, n)...)
}

func exactlyOne(at *field.Path, n int) field.ErrorList {
	switch {
	case n == 0:
		return field.ErrorList{field.Required(at, "must specify a handler type")}
	case n > 1:
		return field.ErrorList{field.Forbidden(at, "may not specify more than 1 handler type")}
	}
	return nil
}

func validateHook(h *v1.LifecycleHandler, at *field.Path) (errs field.ErrorList) {
	if h == nil {
		return nil
	}
	n := 0
	if h.Exec != nil {
		n++
		errs = append(errs, validateExec(h.Exec, at.Child("exec"))...)
	}
	if h.HTTPGet != nil {
		n++
		errs = append(errs, validateHTTP(h.HTTPGet, at.Child("httpGet"))...)
	}
	if h.Sleep != nil {
		n++
		errs = append(errs, count(at.Child("sleep", "seconds"), h.Sleep.Seconds)...)
	}
	return append(errs, exactlyOne(at, n)...)
}

func validateExec(e *v1.ExecAction, at *field.Path) field.ErrorList {
	if len(e.Command) == 0 {
		return field.ErrorList{field.Required(at.Child("command"), "")}
	}
	return nil
}

func validateHTTP(h *v1.HTTPGetAction, at *field.Path) field.ErrorList {
	errs := validPort(at.Child("port"), h.Port)
	errs = append(errs, oneOf(at.Child("scheme"), h.Scheme, v1.URISchemeHTTP, v1.URISchemeHTTPS)...)
	for i, header := range h.HTTPHeaders {
		errs = append(errs, invalid(at.Child("httpHeaders").Index(i).Child("name"), header.Name, validation.IsHTTPHeaderName(header.Name))...)
	}
	return errs
}

var safeSysctls = sets.New("kernel.shm_rmid_forced", "net.ipv4.ip_local_port_range", "net.ipv4.tcp_syncookies", "net.ipv4.ping_group_range",
	"net.ipv4.ip_unprivileged_port_start", "net.ipv4.ip_local_reserved_ports", "net.ipv4.tcp_keepalive_time", "net.ipv4.tcp_fin_timeout",
	"net.ipv4.tcp_keepalive_intvl", "net.ipv4.tcp_keepalive_probes", "net.ipv4.tcp_rmem", "net.ipv4.tcp_wmem")

var negative = apivalidation.IsNegativeErrorMsg

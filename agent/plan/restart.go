package plan

import (
	"slices"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

const definitionChangedReason pod.Reason = "DefinitionChanged"

// mayRestart says that m's last instance, which has exited, is to be followed by another.
func (d *decision) mayRestart(m *member) bool {
	if d.replaced(m.last) || wasReset(m.last) {
		return true
	}
	switch m.kind {
	case pod.Sidecar:
		return true
	case pod.Ephemeral:
		return false
	case pod.Init:
		return m.failed() && restartsAfter(&d.pod.Spec, m.spec, max(m.last.ExitCode, 1))
	}
	return restartsAfter(&d.pod.Spec, m.spec, m.last.ExitCode)
}

// restartsAfter applies the container's rules, then its policy, then the pod's.
// Rules without a policy of the container are void.
func restartsAfter(spec *v1.PodSpec, c *v1.Container, exit int32) bool {
	policy := spec.RestartPolicy
	if c.RestartPolicy != nil {
		if matchingRule(c, exit) != nil {
			return true // both actions restart the container itself
		}
		policy = v1.RestartPolicy(*c.RestartPolicy)
	}
	switch policy {
	case v1.RestartPolicyNever:
		return false
	case v1.RestartPolicyOnFailure:
		return exit != 0
	}
	return true
}

// matchingRule is the first of c's rules that exit matches, nil if none does.
func matchingRule(c *v1.Container, exit int32) *v1.ContainerRestartRule {
	if c.RestartPolicy == nil {
		return nil
	}
	for i := range c.RestartPolicyRules {
		if ruleMatches(c.RestartPolicyRules[i], exit) {
			return &c.RestartPolicyRules[i]
		}
	}
	return nil
}

// restartsOnProbe says that c is followed by another instance when a probe
// condemns it: by policy alone, because it has not exited with any code yet.
func restartsOnProbe(spec *v1.PodSpec, c *v1.Container) bool {
	if c.RestartPolicy != nil {
		return *c.RestartPolicy != v1.ContainerRestartPolicyNever
	}
	return spec.RestartPolicy != v1.RestartPolicyNever
}

func ruleMatches(rule v1.ContainerRestartRule, exit int32) bool {
	if rule.ExitCodes == nil {
		return false
	}
	in := slices.Contains(rule.ExitCodes.Values, exit)
	return in == (rule.ExitCodes.Operator == v1.ContainerRestartRuleOnExitCodesOpIn)
}

// isRestartable says that c may run more than once, whatever its exit code.
func isRestartable(spec *v1.PodSpec, c *v1.Container) bool {
	if c.RestartPolicy == nil {
		return spec.RestartPolicy != v1.RestartPolicyNever
	}
	return *c.RestartPolicy != v1.ContainerRestartPolicyNever || len(c.RestartPolicyRules) > 0
}

// replaced says that c was stopped for a successor with a new definition or other resources, which
// starts whatever the policy is.
func (d *decision) replaced(c *pod.Container) bool {
	if c == nil {
		return false
	}
	why := d.rec.Boot.Stopping[c.ID].Reason
	return why == definitionChangedReason || why == pod.ResizeRestart
}

// definitionChanged says that instance c was made from another name or image
// than the spec has now.
func (d *decision) definitionChanged(m *member, c *pod.Container) bool {
	return m.known && c.SpecHash != "" && c.SpecHash != pod.SpecHash(m.spec)
}

package admission

import (
	"fmt"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

// appArmorAnnotation, and a container's name after it, is how profiles were
// named before there was a field.
const appArmorAnnotation = "container.apparmor.security.beta.kubernetes.io/"

// appArmor refuses a pod whose profile nobody would enforce. Whether a profile
// is loaded is only seen when the container is created, as it may be loaded late.
func appArmor(d pod.Desired, node Node) *pod.Rejection {
	if node.AppArmor || !wantsAppArmor(d.Pod) {
		return nil
	}
	return &pod.Rejection{Reason: AppArmor, Message: "Cannot enforce AppArmor: AppArmor is not enabled on the host"}
}

func wantsAppArmor(p *v1.Pod) bool {
	confined := func(a *v1.AppArmorProfile) bool { return a != nil && a.Type != v1.AppArmorProfileTypeUnconfined }
	if s := p.Spec.SecurityContext; s != nil && confined(s.AppArmorProfile) {
		return true
	}
	for key, profile := range p.Annotations {
		if strings.HasPrefix(key, appArmorAnnotation) && profile != "" && profile != "unconfined" {
			return true
		}
	}
	return slices.ContainsFunc(contexts(p), func(s *v1.SecurityContext) bool { return confined(s.AppArmorProfile) })
}

// contexts are the security contexts of all of p's containers.
func contexts(p *v1.Pod) []*v1.SecurityContext {
	var all []*v1.SecurityContext
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if s := list[i].SecurityContext; s != nil {
				all = append(all, s)
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if s := p.Spec.EphemeralContainers[i].SecurityContext; s != nil {
			all = append(all, s)
		}
	}
	return all
}

// SELinuxDisabled is the reason of the warning about labels without an effect.
const SELinuxDisabled pod.Reason = "SELinuxDisabled"

// Warnings tells what p asks for and this node passes over. A label that nobody
// enforces keeps no pod from running, as nearly every manifest with one also runs
// where there is no SELinux; but it is not passed over in silence.
func Warnings(p *v1.Pod, node Node) []Warning {
	if node.SELinux {
		return nil
	}
	labelled := p.Spec.SecurityContext != nil && p.Spec.SecurityContext.SELinuxOptions != nil ||
		slices.ContainsFunc(contexts(p), func(s *v1.SecurityContext) bool { return s.SELinuxOptions != nil })
	if !labelled {
		return nil
	}
	return []Warning{{SELinuxDisabled, "seLinuxOptions have no effect: SELinux is off on this node"}}
}

// required lists the node features (KEP-5328) that a pod may depend on: a
// node without one would run the pod otherwise than its author meant.
var required = []struct {
	name string
	by   func(*v1.Pod) bool
}{
	{"RestartAllContainersOnContainerExits", restartsAll},
	{"UserNamespacesHostNetworkSupport", func(p *v1.Pod) bool {
		return p.Spec.HostNetwork && p.Spec.HostUsers != nil && !*p.Spec.HostUsers
	}},
}

func restartsAll(p *v1.Pod) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			for _, rule := range list[i].RestartPolicyRules {
				if rule.Action == v1.ContainerRestartRuleActionRestartAllContainers {
					return true
				}
			}
		}
	}
	return false
}

func features(d pod.Desired, node Node) *pod.Rejection {
	var lacks []string
	for _, f := range required {
		if f.by(d.Pod) && !slices.Contains(node.Features, f.name) {
			lacks = append(lacks, f.name)
		}
	}
	if len(lacks) == 0 {
		return nil
	}
	return &pod.Rejection{Reason: PodFeatureUnsupported, Message: fmt.Sprintf("Pod requires node features that are not available: %s", strings.Join(lacks, ", "))}
}

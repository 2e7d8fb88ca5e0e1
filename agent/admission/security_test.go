package admission

import (
	"strings"
	"testing"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/agent/pod"
)

func setting(sysctls ...string) func(*v1.Pod) {
	return func(p *v1.Pod) {
		p.Spec.SecurityContext = &v1.PodSecurityContext{}
		for _, s := range sysctls {
			p.Spec.SecurityContext.Sysctls = append(p.Spec.SecurityContext.Sysctls, v1.Sysctl{Name: s, Value: "1"})
		}
	}
}

func both(changes ...func(*v1.Pod)) func(*v1.Pod) {
	return func(p *v1.Pod) {
		for _, c := range changes {
			c(p)
		}
	}
}

func TestSecurity(t *testing.T) {
	hostNetwork := func(p *v1.Pod) { p.Spec.HostNetwork = true }
	hostIPC := func(p *v1.Pod) { p.Spec.HostIPC = true }
	profile := func(kind v1.AppArmorProfileType) func(*v1.Pod) {
		return func(p *v1.Pod) {
			p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: kind}}
		}
	}
	strict := v1.SupplementalGroupsPolicyStrict
	no := false
	node := Node{Name: "n", UnsafeSysctls: []string{"net.core.*", "kernel.msgmax", "net/ipv4/vs/*"}, NoStrictGroups: true}
	capable := Node{Name: "n", AppArmor: true, SELinux: true, Features: []string{"RestartAllContainersOnContainerExits", "UserNamespacesHostNetworkSupport"}}
	restartAll := func(p *v1.Pod) {
		p.Spec.Containers[0].RestartPolicyRules = []v1.ContainerRestartRule{{Action: v1.ContainerRestartRuleActionRestartAllContainers}}
	}
	tests := []struct {
		name    string
		change  func(*v1.Pod)
		node    Node
		reason  pod.Reason
		message string
	}{
		{"safe sysctl", setting("net.ipv4.ip_unprivileged_port_start", "kernel.shm_rmid_forced"), node, "", ""},
		{"safe sysctl with slashes", setting("net/ipv4/tcp_syncookies"), node, "", ""},
		{"unsafe sysctl", setting("net.ipv4.tcp_rmem", "kernel.sem"), node, SysctlForbidden, `forbidden sysctl: "kernel.sem" not allowlisted`},
		{"unsafe sysctl that is allowed", setting("kernel.msgmax", "net.core.somaxconn", "net/core/somaxconn"), node, "", ""},
		{"pattern with slashes", setting("net.ipv4.vs.conntrack"), node, "", ""},
		{"no prefix of a plain name", setting("kernel.msgmaxx"), node, SysctlForbidden, `"kernel.msgmaxx" not allowlisted`},
		{"sysctl of the host", setting("vm.overcommit_memory"), node, SysctlForbidden, `"vm.overcommit_memory" not allowlisted`},
		{"dots in a part", setting("net/core/eth0.1"), node, "", ""},
		{"safe sysctl of the host's network", both(setting("net.ipv4.tcp_syncookies"), hostNetwork), node, SysctlForbidden, `forbidden sysctl: "net.ipv4.tcp_syncookies" not allowed with host net enabled`},
		{"allowed sysctl of the host's network", both(setting("net.core.somaxconn"), hostNetwork), node, SysctlForbidden, `"net.core.somaxconn" not allowed with host net enabled`},
		{"sysctl of the host's IPC", both(setting("kernel.shm_rmid_forced"), hostIPC), node, SysctlForbidden, `"kernel.shm_rmid_forced" not allowed with host ipc enabled`},
		{"IPC sysctl with the host's network", both(setting("kernel.shm_rmid_forced"), hostNetwork), node, "", ""},
		{"AppArmor default", profile(v1.AppArmorProfileTypeRuntimeDefault), node, AppArmor, "Cannot enforce AppArmor: AppArmor is not enabled on the host"},
		{"AppArmor localhost", profile(v1.AppArmorProfileTypeLocalhost), node, AppArmor, ""},
		{"AppArmor unconfined", profile(v1.AppArmorProfileTypeUnconfined), node, "", ""},
		{"AppArmor where it is", profile(v1.AppArmorProfileTypeLocalhost), capable, "", ""},
		{"AppArmor of the pod", func(p *v1.Pod) {
			p.Spec.SecurityContext = &v1.PodSecurityContext{AppArmorProfile: &v1.AppArmorProfile{Type: v1.AppArmorProfileTypeRuntimeDefault}}
		}, node, AppArmor, ""},
		{"AppArmor by annotation", func(p *v1.Pod) {
			p.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/c": "runtime/default"}
		}, node, AppArmor, ""},
		{"unconfined by annotation", func(p *v1.Pod) {
			p.Annotations = map[string]string{"container.apparmor.security.beta.kubernetes.io/c": "unconfined"}
		}, node, "", ""},
		{"strict groups", func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: &strict} }, node, StrictGroupsNotSupported, "SupplementalGroupsPolicy=Strict is not supported in this node"},
		{"strict groups where they are", func(p *v1.Pod) { p.Spec.SecurityContext = &v1.PodSecurityContext{SupplementalGroupsPolicy: &strict} }, capable, "", ""},
		{"features", both(restartAll, hostNetwork, func(p *v1.Pod) { p.Spec.HostUsers = &no }), node, PodFeatureUnsupported,
			"Pod requires node features that are not available: RestartAllContainersOnContainerExits, UserNamespacesHostNetworkSupport"},
		{"features that are there", both(restartAll, hostNetwork, func(p *v1.Pod) { p.Spec.HostUsers = &no }), capable, "", ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := Decide(pod.Desired{Pod: podOf("a", tt.change)}, nil, tt.node).Rejection
			switch {
			case got == nil && tt.reason != "":
				t.Errorf("admitted, want %s", tt.reason)
			case got != nil && (got.Reason != tt.reason || !strings.Contains(got.Message, tt.message)):
				t.Errorf("got %+v, want %s %q", got, tt.reason, tt.message)
			}
		})
	}
}

func TestSELinuxIsToldOf(t *testing.T) {
	labelled := podOf("a", func(p *v1.Pod) {
		p.Spec.Containers[0].SecurityContext = &v1.SecurityContext{SELinuxOptions: &v1.SELinuxOptions{Level: "s0:c1"}}
	})
	if v := Decide(pod.Desired{Pod: labelled}, nil, Node{}); v.Rejection != nil || len(v.Warnings) != 1 || v.Warnings[0].Reason != SELinuxDisabled {
		t.Errorf("a label without SELinux: %+v", v)
	}
	if v := Decide(pod.Desired{Pod: labelled}, nil, Node{SELinux: true}); len(v.Warnings) != 0 {
		t.Errorf("a label with SELinux: %+v", v)
	}
	if v := Decide(pod.Desired{Pod: podOf("a", nil)}, nil, Node{}); len(v.Warnings) != 0 {
		t.Errorf("no label: %+v", v)
	}
}

func TestTaints(t *testing.T) {
	node := Node{Taints: []v1.Taint{{Key: "a", Value: "1", Effect: v1.TaintEffectNoExecute}, {Key: "b", Effect: v1.TaintEffectNoSchedule}}}
	tolerating := func(ts ...v1.Toleration) *v1.Pod { return podOf("a", func(p *v1.Pod) { p.Spec.Tolerations = ts }) }
	for name, tt := range map[string]struct {
		pod    *v1.Pod
		source pod.Source
		ok     bool
	}{
		"no toleration":      {tolerating(), pod.SourceAPI, false},
		"static":             {tolerating(), pod.SourceFile, true},
		"equal":              {tolerating(v1.Toleration{Key: "a", Value: "1"}), pod.SourceAPI, true},
		"another value":      {tolerating(v1.Toleration{Key: "a", Value: "2"}), pod.SourceAPI, false},
		"another effect":     {tolerating(v1.Toleration{Key: "a", Value: "1", Effect: v1.TaintEffectNoSchedule}), pod.SourceAPI, false},
		"everything":         {tolerating(v1.Toleration{Operator: v1.TolerationOpExists}), pod.SourceAPI, true},
		"exists":             {tolerating(v1.Toleration{Key: "a", Operator: v1.TolerationOpExists, Effect: v1.TaintEffectNoExecute}), pod.SourceAPI, true},
		"exists of another":  {tolerating(v1.Toleration{Key: "c", Operator: v1.TolerationOpExists}), pod.SourceAPI, false},
		"the second of both": {tolerating(v1.Toleration{Key: "c", Operator: v1.TolerationOpExists}, v1.Toleration{Key: "a", Value: "1"}), pod.SourceAPI, true},
	} {
		t.Run(name, func(t *testing.T) {
			r := Decide(pod.Desired{Pod: tt.pod, Source: tt.source}, nil, node).Rejection
			if (r == nil) != tt.ok || r != nil && r.Message != "Predicate TaintToleration failed: node(s) had taints that the pod didn't tolerate" {
				t.Errorf("got %+v", r)
			}
		})
	}
}

func TestSysctlPatterns(t *testing.T) {
	for pattern, ok := range map[string]bool{
		"net.core.somaxconn": true, "net.*": true, "kernel.msg*": true, "kernel.sem": true, "net/ipv4/*": true, "fs.mqueue.msg_max": true, "kernel.shm*": true,
		"vm.swappiness": false, "*": false, "kernel.*": false, "net.*.x": false, "": false, "Net.core.x": false, "kernel.sema": false, "net. core": false,
	} {
		if err := CheckSysctlPattern(pattern); (err == nil) != ok {
			t.Errorf("%q: %v", pattern, err)
		}
	}
}

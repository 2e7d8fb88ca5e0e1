package sandbox

import (
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRefused(t *testing.T) {
	h := newHost(t)
	s := h.open()
	for name, change := range map[string]func(*runtimeapi.PodSandboxConfig){
		"no metadata": func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil },
		"target": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		},
		"container net": func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Network = contNS },
		"host sysctl":   func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.core_pattern": "x"} },
		"sysctl escape": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net/../kernel/core_pattern": "x"}
		},
		"sysctl plus": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.a+kernel.core_pattern": "x"}
		},
		"sysctl lines":   func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.a": "1\n2"} },
		"unknown sysctl": func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"net.ipv4.nothing": "1"} },
		"host net sysctl": func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = nodeNS
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "1"}
		},
		"dns injection": func(c *runtimeapi.PodSandboxConfig) {
			c.DnsConfig = &runtimeapi.DNSConfig{Searches: []string{"a\nnameserver 1.2.3.4"}}
		},
		"host address": func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "-j ACCEPT"}}
		},
		"host port": func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		},
		"cgroup escape":  func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" },
		"long host name": func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) },
	} {
		t.Run(name, func(t *testing.T) {
			c := h.config("bad", podNS, contNS, podNS)
			change(c)
			if _, err := s.Run(t.Context(), c, ""); !errdefs.IsInvalidArgument(err) {
				t.Errorf("error %v, want invalid argument", err)
			}
			h.clean()
		})
	}
}

func TestSysctlPath(t *testing.T) {
	for name, want := range map[string]string{
		"net.ipv4.ip_forward": "net/ipv4/ip_forward", "net/ipv4/ip_forward": "net/ipv4/ip_forward",
		"net.ipv4.conf.eth0/1.forwarding": "net/ipv4/conf/eth0.1/forwarding", "net/ipv4/conf/eth0.1/forwarding": "net/ipv4/conf/eth0.1/forwarding",
	} {
		if got, err := sysctlPath(name); err != nil || got != want {
			t.Errorf("%s: %q, %v; want %q", name, got, err, want)
		}
	}
}

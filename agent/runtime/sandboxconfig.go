package runtime

import (
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	maxHostname = 63
	maxFQDN     = 64 // what the kernel takes for a hostname
)

// hostname is the pod's, and the domain it lies in, if it names a subdomain.
func (c Config) hostname(p *v1.Pod) (host, domain string) {
	if o := p.Spec.HostnameOverride; o != nil && *o != "" {
		return *o, ""
	}
	host = p.Spec.Hostname
	if host == "" {
		host = p.Name
	}
	if len(host) > maxHostname {
		host = strings.TrimRight(host[:maxHostname], "-.")
	}
	if p.Spec.Subdomain != "" {
		zone := c.ClusterDomain
		if zone == "" {
			zone = "cluster.local"
		}
		domain = p.Spec.Subdomain + "." + p.Namespace + ".svc." + zone
	}
	return host, domain
}

// sandboxHostname is what the sandbox is told.
func (c Config) sandboxHostname(p *v1.Pod) (string, error) {
	if p.Spec.HostNetwork {
		return "", nil
	}
	host, domain := c.hostname(p)
	if !yes(p.Spec.SetHostnameAsFQDN) || domain == "" {
		return host, nil
	}
	fqdn := host + "." + domain
	if len(fqdn) > maxFQDN {
		return "", failAs(opSandbox, pod.Invalid, fmt.Errorf("failed to construct FQDN from pod hostname and cluster domain, FQDN %s is too long (%d characters is the max, %d characters requested)", fqdn, maxFQDN, len(fqdn)))
	}
	return fqdn, nil
}

// portMappings are those of the containers that run while the pod does, sidecars
// among them, each once.
func portMappings(p *v1.Pod) []*cri.PortMapping {
	containers := slices.Clone(p.Spec.Containers)
	for _, c := range p.Spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == v1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	var all []*cri.PortMapping
	for i := range containers {
		seen := map[string]bool{}
		for _, port := range containers[i].Ports {
			key := port.Name
			if key == "" {
				family := "any"
				if port.HostIP != "" {
					family = "v4"
					if strings.Contains(port.HostIP, ":") {
						family = "v6"
					}
				}
				key = fmt.Sprintf("%s-%s-%s:%d:%d", family, port.Protocol, port.HostIP, port.ContainerPort, port.HostPort)
			}
			if seen[key] {
				continue
			}
			seen[key] = true
			all = append(all, &cri.PortMapping{Protocol: protocol(port.Protocol), ContainerPort: port.ContainerPort, HostPort: port.HostPort, HostIp: port.HostIP})
		}
	}
	return all
}

func protocol(p v1.Protocol) cri.Protocol {
	switch p {
	case v1.ProtocolUDP:
		return cri.Protocol_UDP
	case v1.ProtocolSCTP:
		return cri.Protocol_SCTP
	}
	return cri.Protocol_TCP
}

// sandbox is what a sandbox's configuration is made of, beside the pod.
type sandboxSettings struct {
	attempt uint32
	source  pod.Source
	parent  string // cgroup
	dns     *cri.DNSConfig
	ids     *pod.IDMapping // of the pod's user namespace
}

// sandboxConfig is what RunPodSandbox and CreateContainer are told about the pod.
func (c Config) sandboxConfig(p *v1.Pod, s sandboxSettings) (*cri.PodSandboxConfig, error) {
	hostname, err := c.sandboxHostname(p)
	if err != nil {
		return nil, err
	}
	linux := &cri.LinuxPodSandboxConfig{
		CgroupParent: s.parent,
		SecurityContext: &cri.LinuxSandboxSecurityContext{
			Privileged:       anyPrivileged(p),
			Seccomp:          &cri.SecurityProfile{ProfileType: cri.SecurityProfile_RuntimeDefault},
			NamespaceOptions: namespaces(p, s.ids),
		},
	}
	linux.Resources, linux.Overhead = c.sandboxResources(p)
	if sc := p.Spec.SecurityContext; sc != nil {
		out := linux.SecurityContext
		if sc.RunAsUser != nil {
			out.RunAsUser = &cri.Int64Value{Value: *sc.RunAsUser}
		}
		if sc.RunAsGroup != nil {
			out.RunAsGroup = &cri.Int64Value{Value: *sc.RunAsGroup}
		}
		out.SelinuxOptions = selinux(sc.SELinuxOptions)
		out.SupplementalGroups, out.SupplementalGroupsPolicy = groups(p)
		if len(sc.Sysctls) > 0 {
			linux.Sysctls = map[string]string{}
			for _, one := range sc.Sysctls {
				linux.Sysctls[strings.ReplaceAll(one.Name, "/", ".")] = one.Value
			}
		}
	}
	return &cri.PodSandboxConfig{
		Metadata:     &cri.PodSandboxMetadata{Name: p.Name, Uid: string(p.UID), Namespace: p.Namespace, Attempt: s.attempt},
		Hostname:     hostname,
		LogDirectory: filepath.Join(c.LogDir, logDirName(p)),
		DnsConfig:    s.dns,
		PortMappings: portMappings(p),
		Labels:       sandboxLabels(p),
		Annotations:  sandboxAnnotations(p, s.source),
		Linux:        linux,
	}, nil
}

func anyPrivileged(p *v1.Pod) bool {
	for _, list := range [][]v1.Container{p.Spec.InitContainers, p.Spec.Containers} {
		for i := range list {
			if s := list[i].SecurityContext; s != nil && yes(s.Privileged) {
				return true
			}
		}
	}
	for i := range p.Spec.EphemeralContainers {
		if s := p.Spec.EphemeralContainers[i].SecurityContext; s != nil && yes(s.Privileged) {
			return true
		}
	}
	return false
}

package podspec

import (
	"fmt"
	"strings"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/validation"
	"k8s.io/apimachinery/pkg/util/validation/field"
)

// What libc takes of resolv.conf, and the kernel of a host's name.
const (
	maxNameservers = 3
	maxSearches    = 32
	maxSearchChars = 2048
	maxHostname    = 64
)

// network checks names, addresses and what the host's network implies.
func (c *checker) network(at *field.Path) {
	c.dns(at)
	for _, l := range []struct{ name, value string }{{"hostname", c.spec.Hostname}, {"subdomain", c.spec.Subdomain}} {
		if l.value != "" {
			c.label(at.Child(l.name), l.value)
		}
	}
	if name := c.spec.HostnameOverride; name != nil {
		at := at.Child("hostnameOverride")
		if isTrue(c.spec.SetHostnameAsFQDN) {
			c.forbidden(at, "may not be specified when setHostnameAsFQDN is true")
		}
		if c.spec.HostNetwork {
			c.forbidden(at, "may not be specified when hostNetwork is true")
		}
		if len(*name) > maxHostname {
			c.add(field.TooLong(at, "", maxHostname))
		}
		c.subdomain(at, *name)
	}
	for i, a := range c.spec.HostAliases {
		at := at.Child("hostAliases").Index(i)
		c.address(at.Child("ip"), a.IP)
		for j, name := range a.Hostnames {
			c.subdomain(at.Child("hostnames").Index(j), name)
		}
	}
	if c.spec.HostNetwork {
		c.portsOfHost(at.Child("containers"))
	}
}

// address: an IP address, of which two readings are not possible (leading zeros,
// IPv4 within IPv6).
func (c *checker) address(at *field.Path, ip string) {
	c.add(validation.IsValidIPForLegacyField(at, ip, true, nil)...)
}

// portsOfHost: with the host's network, a port is the host's own.
func (c *checker) portsOfHost(at *field.Path) {
	for i := range c.spec.Containers {
		for j, p := range c.spec.Containers[i].Ports {
			if p.HostPort != p.ContainerPort {
				c.invalid(at.Index(i).Child("ports").Index(j).Child("hostPort"), p.HostPort, "must match `containerPort` when `hostNetwork` is true")
			}
		}
	}
}

func (c *checker) dns(at *field.Path) {
	none := c.spec.DNSPolicy == v1.DNSNone
	chosen(&c.findings, at.Child("dnsPolicy"), c.spec.DNSPolicy, v1.DNSClusterFirstWithHostNet, v1.DNSClusterFirst, v1.DNSDefault, v1.DNSNone)
	d := c.spec.DNSConfig
	at = at.Child("dnsConfig")
	switch {
	case d == nil && none:
		c.required(at, "must be given when `dnsPolicy` is None")
		return
	case d == nil:
		return
	case none && len(d.Nameservers) == 0:
		c.required(at.Child("nameservers"), "must name at least one server when `dnsPolicy` is None")
		return
	}
	c.nameservers(d.Nameservers, at.Child("nameservers"))
	c.searches(d.Searches, at.Child("searches"))
	for i, o := range d.Options {
		if o.Name == "" {
			c.required(at.Child("options").Index(i), "must not be empty")
		}
	}
}

func (c *checker) nameservers(all []string, at *field.Path) {
	if len(all) > maxNameservers {
		c.invalid(at, all, fmt.Sprintf("must not have more than %v nameservers", maxNameservers))
	}
	for i, server := range all {
		c.address(at.Index(i), server)
	}
}

func (c *checker) searches(all []string, at *field.Path) {
	if len(all) > maxSearches {
		c.invalid(at, all, fmt.Sprintf("must not have more than %v search paths", maxSearches))
	}
	if len(strings.Join(all, " ")) > maxSearchChars {
		c.invalid(at, all, fmt.Sprintf("must not have more than %v characters (including spaces) in the search list", maxSearchChars))
	}
	for i, domain := range all {
		if domain != "." {
			domain = strings.TrimSuffix(domain, ".")
			c.invalid(at.Index(i), domain, validation.IsDNS1123SubdomainWithUnderscore(domain)...)
		}
	}
}

package runtime

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of resolv.conf in Kubernetes.
const (
	maxNameservers   = 3
	maxSearches      = 32
	maxSearchChars   = 2048
	maxResolvConf    = 10 << 20
	clusterDNSOption = "ndots:5"
)

// parseResolvConf reads a resolv.conf: the last search line counts.
func parseResolvConf(text string) *cri.DNSConfig {
	d := &cri.DNSConfig{}
	for _, line := range strings.Split(text, "\n") {
		line, _, _ = strings.Cut(line, "#")
		fields := strings.Fields(line)
		if len(fields) < 2 {
			continue
		}
		switch fields[0] {
		case "nameserver":
			d.Servers = append(d.Servers, fields[1])
		case "search":
			d.Searches = nil
			for _, s := range fields[1:] {
				if s != "." {
					s = strings.TrimSuffix(s, ".")
				}
				d.Searches = append(d.Searches, s)
			}
		case "options":
			d.Options = mergeOptions(d.Options, fields[1:])
		}
	}
	return d
}

func readResolvConf(path string) (*cri.DNSConfig, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
	}
	defer f.Close()
	text, err := io.ReadAll(io.LimitReader(f, maxResolvConf))
	if err != nil {
		return nil, fmt.Errorf("read the node's resolv.conf: %w", err)
	}
	return parseResolvConf(string(text)), nil
}

// mergeOptions puts options of later over earlier ones of the same name, which keep their place.
func mergeOptions(old, later []string) []string {
	for _, o := range later {
		name, _, _ := strings.Cut(o, ":")
		at := slices.IndexFunc(old, func(have string) bool {
			n, _, _ := strings.Cut(have, ":")
			return n == name
		})
		if at < 0 {
			old = append(old, o)
		} else {
			old[at] = o
		}
	}
	return old
}

func union(lists ...[]string) []string {
	var all []string
	for _, list := range lists {
		for _, s := range list {
			if !slices.Contains(all, s) {
				all = append(all, s)
			}
		}
	}
	return all
}

// dnsConfig is the pod's resolver configuration. host is the node's. warnings
// tell what had to be left out.
func (c Config) dnsConfig(p *v1.Pod, host *cri.DNSConfig) (d *cri.DNSConfig, warnings []string) {
	d = &cri.DNSConfig{}
	cluster := len(c.ClusterDNS) > 0 && (p.Spec.DNSPolicy == v1.DNSClusterFirstWithHostNet || p.Spec.DNSPolicy == v1.DNSClusterFirst && !p.Spec.HostNetwork)
	switch {
	case p.Spec.DNSPolicy == v1.DNSNone:
	case cluster:
		d.Servers = c.ClusterDNS
		if c.ClusterDomain != "" {
			d.Searches = []string{p.Namespace + ".svc." + c.ClusterDomain, "svc." + c.ClusterDomain, c.ClusterDomain}
		}
		d.Searches, d.Options = union(d.Searches, host.Searches), []string{clusterDNSOption}
	default:
		d.Servers, d.Searches, d.Options = slices.Clone(host.Servers), slices.Clone(host.Searches), slices.Clone(host.Options)
	}
	if more := p.Spec.DNSConfig; more != nil {
		d.Servers, d.Searches = union(d.Servers, more.Nameservers), union(d.Searches, more.Searches)
		var options []string
		for _, o := range more.Options {
			if o.Value != nil && *o.Value != "" {
				options = append(options, o.Name+":"+*o.Value)
			} else {
				options = append(options, o.Name)
			}
		}
		d.Options = mergeOptions(d.Options, options)
	}
	return d, limitDNS(d)
}

// limitDNS leaves out what a resolver would not read.
func limitDNS(d *cri.DNSConfig) (warnings []string) {
	if len(d.Servers) > maxNameservers {
		d.Servers = d.Servers[:maxNameservers]
		warnings = append(warnings, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(d.Servers, " "))
	}
	cut := len(d.Searches) > maxSearches
	d.Searches = d.Searches[:min(len(d.Searches), maxSearches)]
	for len(strings.Join(d.Searches, " ")) > maxSearchChars {
		d.Searches, cut = d.Searches[:len(d.Searches)-1], true
	}
	if cut {
		warnings = append(warnings, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(d.Searches, " "))
	}
	return warnings
}

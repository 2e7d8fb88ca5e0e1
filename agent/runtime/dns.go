package runtime

import (
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/berthd/berth/agent/pod"
	v1 "k8s.io/api/core/v1"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Limits of resolv.conf in Kubernetes.
const (
	maxNameservers   = 3
	maxSearches      = 32
	maxSearchChars   = 2048
	maxSearch        = 253 // of one domain: some resolvers abort on longer ones
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
	switch {
	case p.Spec.DNSPolicy == v1.DNSNone:
	case wantsClusterDNS(p) && len(c.ClusterDNS) > 0:
		d.Servers = slices.Clone(c.ClusterDNS)
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

func wantsClusterDNS(p *v1.Pod) bool {
	return p.Spec.DNSPolicy == v1.DNSClusterFirstWithHostNet || p.Spec.DNSPolicy == v1.DNSClusterFirst && !p.Spec.HostNetwork
}

// missesClusterDNS says that the pod's policy falls back to Default where
// somebody could have expected otherwise. ClusterFirst is what defaulting writes:
// without a cluster it is nobody's wish.
func (c Config) missesClusterDNS(p *v1.Pod, source pod.Source) bool {
	return wantsClusterDNS(p) && len(c.ClusterDNS) == 0 &&
		(p.Spec.DNSPolicy == v1.DNSClusterFirstWithHostNet || c.ClusterDomain != "" || source == pod.SourceAPI)
}

// hostDNS is the node's own resolver configuration, as pods may have it.
func (r *Runtime) hostDNS(p *v1.Pod) (*cri.DNSConfig, error) {
	switch {
	case p.Spec.DNSPolicy == v1.DNSNone:
		return &cri.DNSConfig{}, nil
	case !r.cfg.NoHostDNS:
		return readResolvConf(r.cfg.Node.ResolvConf)
	}
	d := &cri.DNSConfig{Searches: []string{"."}}
	for _, ip := range inFamilyOrder(r.cfg.Node.IPs, first(r.cfg.Node.IPs)) {
		if strings.Contains(ip, ":") {
			d.Servers = append(d.Servers, "::1")
		} else {
			d.Servers = append(d.Servers, "127.0.0.1")
		}
	}
	return d, nil
}

// CheckResolvConf says what of the node's resolv.conf pods will not get, in
// sentences; none if they get all. Three search domains are the cluster's.
// (kubelet: CheckLimitsForResolvConf)
func (r *Runtime) CheckResolvConf() []string {
	if r.cfg.NoHostDNS {
		return nil
	}
	file := r.cfg.Node.ResolvConf
	d, err := readResolvConf(file)
	if err != nil {
		return []string{err.Error() + "; pods that need it wait for it"}
	}
	domains := maxSearches
	if r.cfg.ClusterDomain != "" {
		domains -= 3
	}
	var all []string
	if len(d.Searches) > domains {
		all = append(all, fmt.Sprintf("%s contains a search line of more than %d domains", file, domains))
	}
	if len(strings.Join(d.Searches, " ")) > maxSearchChars {
		all = append(all, fmt.Sprintf("%s contains a search line that is longer than %d characters", file, maxSearchChars))
	}
	if len(d.Servers) > maxNameservers {
		all = append(all, fmt.Sprintf("%s contains more than %d name servers", file, maxNameservers))
	}
	return all
}

// tellDNS tells what is not as the pod would have it: once, and again when it
// changes, not at each attempt at a sandbox.
func (r *Runtime) tellDNS(t *task, cut []string) {
	var all []pod.Event
	if r.cfg.missesClusterDNS(t.pod, t.desired.Source) {
		all = append(all, pod.Event{Reason: "MissingClusterDNS", Message: fmt.Sprintf("the node does not have ClusterDNS IP configured and cannot create Pod using %q policy. Falling back to %q policy.", t.pod.Spec.DNSPolicy, v1.DNSDefault)})
	}
	for _, w := range cut {
		all = append(all, pod.Event{Reason: "DNSConfigForming", Message: w})
	}
	var text strings.Builder
	for _, e := range all {
		text.WriteString(e.Message + "\n")
	}
	r.mu.Lock()
	before := r.told[t.uid]
	if text.Len() == 0 {
		delete(r.told, t.uid)
	} else {
		r.told[t.uid] = text.String()
	}
	r.mu.Unlock()
	if before == text.String() {
		return
	}
	for _, e := range all {
		r.event(t, true, e.Reason, e.Message)
	}
}

// limitDNS leaves out what a resolver would not read.
func limitDNS(d *cri.DNSConfig) (warnings []string) {
	if len(d.Servers) > maxNameservers {
		d.Servers = d.Servers[:maxNameservers]
		warnings = append(warnings, "Nameserver limits were exceeded, some nameservers have been omitted, the applied nameserver line is: "+strings.Join(d.Servers, " "))
	}
	all := len(d.Searches)
	d.Searches = slices.DeleteFunc(d.Searches, func(s string) bool { return len(s) > maxSearch })
	cut := all != len(d.Searches) || len(d.Searches) > maxSearches
	d.Searches = d.Searches[:min(len(d.Searches), maxSearches)]
	for len(strings.Join(d.Searches, " ")) > maxSearchChars {
		d.Searches, cut = d.Searches[:len(d.Searches)-1], true
	}
	if cut {
		warnings = append(warnings, "Search Line limits were exceeded, some search paths have been omitted, the applied search line is: "+strings.Join(d.Searches, " "))
	}
	return warnings
}

package runtime

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"

	"github.com/berthd/berth/test/failpoint"
	v1 "k8s.io/api/core/v1"
)

const hostsPath = "/etc/hosts"

// hostsContent is the managed hosts file of a pod with a network of its own.
func hostsContent(ips []string, hostname, domain string, aliases []v1.HostAlias) string {
	var b strings.Builder
	b.WriteString("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n" +
		"fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n")
	for _, ip := range ips {
		if domain != "" {
			fmt.Fprintf(&b, "%s\t%s.%s\t%s\n", ip, hostname, domain, hostname)
		} else {
			fmt.Fprintf(&b, "%s\t%s\n", ip, hostname)
		}
	}
	return b.String() + aliasLines(aliases)
}

// nodeHostsContent is the managed hosts file of a pod in the node's network.
func nodeHostsContent(node string, aliases []v1.HostAlias) string {
	return "# Kubernetes-managed hosts file (host network).\n" + node + aliasLines(aliases)
}

func aliasLines(aliases []v1.HostAlias) string {
	if len(aliases) == 0 {
		return ""
	}
	var b strings.Builder
	b.WriteString("\n# Entries added by HostAliases.\n")
	for _, a := range aliases {
		fmt.Fprintf(&b, "%s\t%s\n", a.IP, strings.Join(a.Hostnames, "\t"))
	}
	return b.String()
}

// managesHosts says that the pod's hosts file is ours to write: unless the
// container brings one, or no address is known.
func managesHosts(p *v1.Pod, c *v1.Container, ips []string) bool {
	for _, m := range c.VolumeMounts {
		if m.MountPath == hostsPath {
			return false
		}
	}
	return p.Spec.HostNetwork || len(ips) > 0
}

// writeHosts writes the pod's hosts file and returns its path. It is written in
// place, for running containers have this very file mounted; a file cut short by
// a kill is written again before the next container starts.
func (r *Runtime) writeHosts(p *v1.Pod, dir string, ips []string) (string, error) {
	var content string
	if p.Spec.HostNetwork {
		f, err := os.Open(r.cfg.Node.HostsFile)
		if err != nil {
			return "", fmt.Errorf("read the node's hosts file: %w", err)
		}
		defer f.Close()
		node, err := io.ReadAll(io.LimitReader(f, 1<<20))
		if err != nil {
			return "", fmt.Errorf("read the node's hosts file: %w", err)
		}
		content = nodeHostsContent(string(node), p.Spec.HostAliases)
	} else {
		host, domain := r.cfg.hostname(p)
		content = hostsContent(ips, host, domain, p.Spec.HostAliases)
	}
	path := filepath.Join(dir, "etc-hosts")
	if holds(path, content) {
		return path, nil
	}
	failpoint.Hit("agent/runtime/hosts-write")
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		return "", fmt.Errorf("write the pod's hosts file: %w", err)
	}
	failpoint.Hit("agent/runtime/hosts-write-done")
	return path, nil
}

// holds tells whether the file has that content. It reads no more than that: the
// pod's containers have written what they like, a hole of a terabyte perhaps.
func holds(path, content string) bool {
	f, err := os.Open(path)
	if err != nil {
		return false
	}
	defer f.Close()
	have, err := io.ReadAll(io.LimitReader(f, int64(len(content))+1))
	return err == nil && string(have) == content
}

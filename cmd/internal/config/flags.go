package config

import (
	"fmt"
	"path/filepath"

	"github.com/spf13/pflag"
)

// stdin stands for standard input among manifest files.
const stdin = "-"

// Overrides are the flags of the agent. One that is given wins over the file;
// a list given by flags replaces the file's.
type Overrides struct {
	set   *pflag.FlagSet
	path  string
	value Config
	flags []flag
}

// flag takes one flag's value into a configuration.
type flag struct {
	name, field string
	take        func(to, from *Config)
}

// RuntimeFlags adds those of the agent's flags to fs that concern its CRI runtime.
// Their values count once fs is parsed.
func RuntimeFlags(fs *pflag.FlagSet) *Overrides {
	o := &Overrides{set: fs, value: *New()}
	fs.StringVar(&o.path, "config", "", "configuration file (default "+DefaultPath+" if it exists)")
	o.text("root-dir", "rootDir", func(c *Config) *string { return &c.RootDir }, "what outlives a reboot: records, images, volumes")
	o.text("state-dir", "stateDir", func(c *Config) *string { return &c.StateDir }, "what a reboot may lose: sockets, sandboxes, containers")
	o.text("cgroup-root", "cgroups.root", func(c *Config) *string { return &c.Cgroups.Root }, "cgroup below which the pods' cgroups lie")
	o.text("cgroup-driver", "cgroups.driver", func(c *Config) *string { return &c.Cgroups.Driver }, "cgroupfs or systemd (default: systemd where it runs the host)")
	o.text("oci-runtime", "runtime.ociRuntime", func(c *Config) *string { return &c.Runtime.OCIRuntime }, "crun, runc or a path (default: the first usable)")
	o.text("conmon", "runtime.conmon", func(c *Config) *string { return &c.Runtime.Conmon }, "path of conmon (default: from PATH)")
	o.list("cni-conf-dir", "network.confDirs", func(c *Config) *[]string { return &c.Network.ConfDirs }, "directory of CNI configurations; may be repeated")
	o.list("cni-bin-dir", "network.binDirs", func(c *Config) *[]string { return &c.Network.BinDirs }, "directory of CNI plugins; may be repeated")
	o.text("certs-dir", "runtime.certsDir", func(c *Config) *string { return &c.Runtime.CertsDir }, "how to reach registries, a tree of hosts.toml")
	o.text("log-level", "logging.level", func(c *Config) *string { return &c.Logging.Level }, "debug, info, warn or error")
	o.text("log-format", "logging.format", func(c *Config) *string { return &c.Logging.Format }, "text or json")
	return o
}

// Flags adds the agent's flags to fs. Their values count once fs is parsed.
func Flags(fs *pflag.FlagSet) *Overrides {
	o := RuntimeFlags(fs)
	v := &o.value
	o.list("manifest-dir", "manifests.directories", func(c *Config) *[]string { return &c.Manifests.Directories }, "directory of manifests; may be repeated")
	o.list("manifest-file", "manifests.files", func(c *Config) *[]string { return &c.Manifests.Files }, "single manifest, - for standard input; may be repeated")
	o.list("manifest-url", "manifests.urls", func(c *Config) *[]string { return &c.Manifests.URLs }, "address of a manifest; may be repeated")
	o.text("log-dir", "logDir", func(c *Config) *string { return &c.LogDir }, "container logs")
	o.text("node-name", "nodeName", func(c *Config) *string { return &c.NodeName }, "name of this node (default: the host's)")
	o.text("container-runtime-endpoint", "runtime.endpoint", func(c *Config) *string { return &c.Runtime.Endpoint }, "unix:///path of an external CRI runtime (default: the embedded one)")
	o.number("max-pods", "maxPods", func(c *Config) *int { return &c.MaxPods }, "most pods on this node")
	o.number("pod-max-pids", "podPidsLimit", func(c *Config) *int { return &c.PodPidsLimit }, "most processes and threads of one pod, -1 for no limit")
	o.list("allowed-unsafe-sysctls", "allowedUnsafeSysctls", func(c *Config) *[]string { return &c.AllowedUnsafeSysctls }, "sysctl, or the beginning of some and a *, that pods may set beyond the safe ones; may be repeated")
	o.list("cluster-dns", "clusterDNS", func(c *Config) *[]string { return &c.ClusterDNS }, "name server of pods with dnsPolicy ClusterFirst; may be repeated")
	o.text("cluster-domain", "clusterDomain", func(c *Config) *string { return &c.ClusterDomain }, "domain that these name servers serve")
	o.text("resolv-conf", "resolvConf", func(c *Config) *string { return &c.ResolvConf }, "what pods with dnsPolicy Default get")
	fs.BoolVar(&v.SeccompDefault, "seccomp-default", v.SeccompDefault, "containers that name no seccomp profile get RuntimeDefault")
	o.flags = append(o.flags, flag{"seccomp-default", "seccompDefault", func(to, from *Config) { to.SeccompDefault = from.SeccompDefault }})
	fs.StringToStringVar(&v.NodeLabels, "node-labels", v.NodeLabels, "labels of this node, NAME=VALUE,...; may be repeated")
	o.flags = append(o.flags, flag{"node-labels", "nodeLabels", func(to, from *Config) { to.NodeLabels = from.NodeLabels }})
	return o
}

func (o *Overrides) text(name, field string, of func(*Config) *string, usage string) {
	p := of(&o.value)
	o.set.StringVar(p, name, *p, usage)
	o.flags = append(o.flags, flag{name, field, func(to, from *Config) { *of(to) = *of(from) }})
}

func (o *Overrides) list(name, field string, of func(*Config) *[]string, usage string) {
	p := of(&o.value)
	o.set.StringArrayVar(p, name, *p, usage)
	o.flags = append(o.flags, flag{name, field, func(to, from *Config) { *of(to) = *of(from) }})
}

func (o *Overrides) number(name, field string, of func(*Config) *int, usage string) {
	p := of(&o.value)
	o.set.IntVar(p, name, *p, usage)
	o.flags = append(o.flags, flag{name, field, func(to, from *Config) { *of(to) = *of(from) }})
}

// paths are the flags whose relative values mean the working directory.
var paths = map[string]func(*Config) []*string{
	"root-dir":      func(c *Config) []*string { return []*string{&c.RootDir} },
	"state-dir":     func(c *Config) []*string { return []*string{&c.StateDir} },
	"log-dir":       func(c *Config) []*string { return []*string{&c.LogDir} },
	"conmon":        func(c *Config) []*string { return []*string{&c.Runtime.Conmon} },
	"resolv-conf":   func(c *Config) []*string { return []*string{&c.ResolvConf} },
	"certs-dir":     func(c *Config) []*string { return []*string{&c.Runtime.CertsDir} },
	"manifest-dir":  func(c *Config) []*string { return each(c.Manifests.Directories) },
	"manifest-file": func(c *Config) []*string { return each(c.Manifests.Files) },
	"cni-conf-dir":  func(c *Config) []*string { return each(c.Network.ConfDirs) },
	"cni-bin-dir":   func(c *Config) []*string { return each(c.Network.BinDirs) },
}

func each(list []string) []*string {
	out := make([]*string, len(list))
	for i := range list {
		out[i] = &list[i]
	}
	return out
}

// Load reads the configuration file that --config names (else DefaultPath, if
// it exists), lets the flags that were given win, and checks the outcome.
func (o *Overrides) Load() (*Config, error) {
	c, err := read(o.path)
	if err != nil {
		return nil, err
	}
	if c.positions == nil {
		c.positions = map[string]position{}
	}
	for _, f := range o.flags {
		if !o.set.Changed(f.name) {
			continue
		}
		f.take(c, &o.value)
		c.blameFlag(f)
		if of := paths[f.name]; of != nil {
			for _, p := range of(c) {
				if *p == "" || *p == stdin {
					continue
				}
				if *p, err = filepath.Abs(*p); err != nil {
					return nil, fmt.Errorf("--%s: %w", f.name, err)
				}
			}
		}
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return c, nil
}

// blameFlag makes problems with a field name the flag that set it.
func (c *Config) blameFlag(f flag) {
	at := position{file: "--" + f.name}
	c.positions[f.field] = at
	for i := range max(len(c.Manifests.Directories), len(c.Manifests.Files), len(c.Manifests.URLs), len(c.Network.ConfDirs), len(c.Network.BinDirs), len(c.AllowedUnsafeSysctls), len(c.ClusterDNS)) {
		c.positions[fmt.Sprintf("%s[%d]", f.field, i)] = at
	}
	for name := range c.NodeLabels {
		c.positions[f.field+"["+clip(name, 60)+"]"] = at
	}
}

package config

import (
	"fmt"
	"maps"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/net/http/httpguts"
	"k8s.io/apimachinery/pkg/util/validation"
)

// checker collects what is wrong with the values of a configuration.
type checker struct {
	c        *Config
	problems []Problem
}

func (k *checker) blame(field, format string, args ...any) {
	at := k.c.positions[field]
	k.problems = append(k.problems, Problem{at.file, at.line, field, fmt.Sprintf(format, args...)})
}

// Check says everything that is wrong with c, as Problems, or returns nil.
func (c *Config) Check() error {
	k := &checker{c: c, problems: c.problems}
	k.paths()
	k.sources()
	k.runtime()
	k.network()
	k.limits()
	k.node()
	k.pods()
	if len(k.problems) == 0 {
		return nil
	}
	return sorted(k.problems)
}

func (k *checker) absolute(field, path string) {
	switch {
	case path == "":
		k.blame(field, "expected an absolute path, got nothing")
	case !filepath.IsAbs(path):
		k.blame(field, "expected an absolute path, got %q", clip(path, 100))
	case strings.ContainsRune(path, 0):
		k.blame(field, "a path holds no NUL byte")
	}
}

func (k *checker) optional(field, path string) {
	if path != "" {
		k.absolute(field, path)
	}
}

// maxSocket is the longest path of a unix socket: 107 bytes, one of them for
// the name that it has until it is in place.
const maxSocket = 106

func (k *checker) paths() {
	c := k.c
	k.absolute("rootDir", c.RootDir)
	k.absolute("stateDir", c.StateDir)
	k.absolute("logDir", c.LogDir)
	k.optional("sockets.agent", c.Sockets.Agent)
	k.optional("sockets.cri", c.Sockets.CRI)
	for field, path := range map[string]string{"sockets.agent": c.AgentSocket(), "sockets.cri": c.CRISocket()} {
		if len(path) > maxSocket {
			k.blame(field, "the path %s is longer than the %d bytes that a socket's may have", clip(path, 120), maxSocket)
		}
	}
	if c.AgentSocket() == c.CRISocket() {
		k.blame("sockets.cri", "the agent's socket and the runtime's must differ, both are %s", c.CRISocket())
	}
	if c.RootDir == c.StateDir {
		k.blame("stateDir", "rootDir and stateDir must differ: one outlives a reboot, the other does not")
	}
	if name := c.NodeName; name != "" {
		for _, why := range validation.IsDNS1123Subdomain(name) {
			k.blame("nodeName", "%q cannot be a node's name: %s", clip(name, 100), why)
		}
	}
}

func (k *checker) sources() {
	m := k.c.Manifests
	for i, d := range m.Directories {
		k.absolute(fmt.Sprintf("manifests.directories[%d]", i), d)
	}
	for i, f := range m.Files {
		if f != stdin {
			k.absolute(fmt.Sprintf("manifests.files[%d]", i), f)
		}
	}
	for i, address := range m.URLs {
		u, err := url.Parse(address)
		if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" { // the address may hold a token: not shown
			k.blame(fmt.Sprintf("manifests.urls[%d]", i), "expected an address of the form http(s)://host/path")
		}
	}
	for name, value := range m.Headers {
		if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
			k.blame("manifests.headers["+clip(name, 60)+"]", "this is not a valid HTTP header")
		}
	}
	if len(m.Headers) > 0 && len(m.URLs) == 0 {
		k.blame("manifests.headers", "headers are given, but no urls that they would be sent to")
	}
}

func (k *checker) runtime() {
	r := k.c.Runtime
	if e := r.Endpoint; e != "" && (!strings.HasPrefix(e, "unix:///") || len(e) == len("unix:///")) {
		k.blame("runtime.endpoint", "expected unix:///path of a CRI socket, got %q", clip(e, 100))
	}
	if o := r.OCIRuntime; o != "" && o != "crun" && o != "runc" && !filepath.IsAbs(o) {
		k.blame("runtime.ociRuntime", "expected crun, runc or an absolute path, got %q", clip(o, 100))
	}
	k.optional("runtime.conmon", r.Conmon)
	k.optional("runtime.certsDir", r.CertsDir)
	k.optional("runtime.importDir", r.ImportDir)
	for i, dir := range r.CDISpecDirs {
		k.absolute(fmt.Sprintf("runtime.cdiSpecDirs[%d]", i), dir)
	}
	for _, name := range slices.Sorted(maps.Keys(r.Handlers)) {
		h := r.Handlers[name]
		field := "runtime.handlers[" + clip(name, 60) + "]"
		for _, why := range validation.IsDNS1123Label(name) {
			k.blame(field, "%q cannot be a handler's name: %s", clip(name, 60), why)
		}
		k.absolute(field, h.Path)
		for i, a := range h.Annotations {
			if a == "" || strings.Contains(strings.TrimSuffix(a, "*"), "*") {
				k.blame(fmt.Sprintf("%s.annotations[%d]", field, i), `expected the name of an annotation, or the beginning of one and "*", got %q`, clip(a, 100))
			}
		}
		for i, a := range h.Args {
			if !strings.HasPrefix(a, "-") {
				k.blame(fmt.Sprintf("%s.args[%d]", field, i), "expected an option that begins with a dash, with its value after an equals sign, got %q", clip(a, 100))
			}
		}
	}
	if d := k.c.Cgroups.Driver; d != "" && d != "cgroupfs" && d != "systemd" {
		k.blame("cgroups.driver", "expected cgroupfs, systemd or nothing (systemd where it runs the host), got %q", clip(d, 60))
	}
	k.optional("cgroups.root", k.c.Cgroups.Root)
}

func (k *checker) network() {
	n := k.c.Network
	for i, d := range n.ConfDirs {
		k.absolute(fmt.Sprintf("network.confDirs[%d]", i), d)
	}
	for i, d := range n.BinDirs {
		k.absolute(fmt.Sprintf("network.binDirs[%d]", i), d)
	}
	for i, s := range n.Subnets {
		if p, err := netip.ParsePrefix(s); err != nil || p != p.Masked() {
			k.blame(fmt.Sprintf("network.subnets[%d]", i), `expected an address range such as "10.85.0.0/16", got %q`, clip(s, 60))
		}
	}
}

func (k *checker) between(field string, got, least, most int) {
	if got < least || got > most {
		k.blame(field, "expected a number from %d to %d, got %d", least, most, got)
	}
}

func (k *checker) limits() {
	c := k.c
	k.between("maxPods", c.MaxPods, 1, 10000)
	k.between("parallelPulls", c.ParallelPulls, 1, 100)
	k.between("containerLogs.maxFiles", c.ContainerLogs.MaxFiles, 2, 1000)
	if m := c.CrashLoopBackOff.Max; m < time.Second || m > 300*time.Second {
		k.blame("crashLoopBackOff.max", "expected a duration from 1s to 300s, got %s", m)
	}
	if s := c.ContainerLogs.MaxSize; s < 4<<10 {
		k.blame("containerLogs.maxSize", "expected at least 4Ki, got %d bytes", s)
	}
	if _, ok := levels[c.Logging.Level]; !ok {
		k.blame("logging.level", "expected debug, info, warn or error, got %q", clip(c.Logging.Level, 60))
	}
	if f := c.Logging.Format; f != "text" && f != "json" {
		k.blame("logging.format", "expected text or json, got %q", clip(f, 60))
	}
}

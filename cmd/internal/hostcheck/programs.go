package hostcheck

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/berthd/berth/cri/ociruntime"
)

const programs, network = "Programs", "Network"

// install is how this host's distribution installs a Debian package (or the
// one of the same content).
func (h host) install(debian string) string {
	for _, m := range []struct{ tool, command string }{
		{"apt-get", "apt-get install -y "}, {"dnf", "dnf install -y "}, {"zypper", "zypper install -y "}, {"apk", "apk add "}, {"pacman", "pacman -S "},
	} {
		if _, err := lookPath(m.tool); err == nil {
			return m.command + packageFor(m.tool, debian)
		}
	}
	return "install " + debian
}

func packageFor(tool, debian string) string {
	switch {
	case debian == "containernetworking-plugins" && (tool == "apk" || tool == "pacman" || tool == "zypper"):
		return "cni-plugins"
	default:
		return debian
	}
}

// lookPath looks on PATH and where root's programs are even if PATH lacks it.
func lookPath(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil || strings.Contains(name, "/") {
		return path, err
	}
	for _, dir := range []string{"/usr/sbin", "/sbin"} {
		if path, e := exec.LookPath(filepath.Join(dir, name)); e == nil {
			return path, nil
		}
	}
	return "", err
}

var versionPattern = regexp.MustCompile(`\d+\.\d+(\.\d+)?`)

// version asks a program for its version.
func version(ctx context.Context, path string) (text string, major, minor int, err error) {
	ctx, cancel := context.WithTimeout(ctx, programTime)
	defer cancel()
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, path, "--version")
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Run(); err != nil {
		return "", 0, 0, fmt.Errorf("%s --version: %w", path, err)
	}
	text = versionPattern.FindString(out.String())
	if text == "" {
		return "", 0, 0, fmt.Errorf("%s --version tells no version", path)
	}
	parts := strings.Split(text, ".")
	major, _ = strconv.Atoi(parts[0]) // digits by the pattern
	minor, _ = strconv.Atoi(parts[1])
	return text, major, minor, nil
}

func (h host) ociRuntime(ctx context.Context) Check {
	path := h.o.OCIRuntime
	if path == "auto" {
		path = ""
	}
	b, err := ociruntime.Find(ctx, path)
	if err != nil {
		return failed(programs, "OCI runtime", err.Error(), h.install("crun"))
	}
	found := fmt.Sprintf("%s at %s", b.Why, b.Path)
	if others := otherRuntimes(ctx, b.Name); others != "" {
		found += "; also here: " + others
	}
	return ok(programs, "OCI runtime", found)
}

func otherRuntimes(ctx context.Context, chosen string) string {
	var others []string
	for _, name := range []string{"crun", "runc"} {
		path, err := lookPath(name)
		if name == chosen || err != nil {
			continue
		}
		if v, _, _, err := version(ctx, path); err == nil {
			others = append(others, name+" "+v)
		}
	}
	return strings.Join(others, ", ")
}

func (h host) conmon(ctx context.Context) Check {
	name := h.o.Conmon
	if name == "" {
		name = "conmon"
	}
	path, err := lookPath(name)
	if err != nil {
		return failed(programs, "conmon", name+" is not installed", h.install("conmon"))
	}
	v, major, minor, err := version(ctx, path)
	if err != nil {
		return failed(programs, "conmon", err.Error(), h.install("conmon"))
	}
	if major < 2 || major == 2 && minor < 1 {
		return failed(programs, "conmon", v+" at "+path+": 2.1 or newer is needed", h.install("conmon"))
	}
	return ok(programs, "conmon", v+" at "+path)
}

// neededPlugins are what Berth's own network is made of.
var neededPlugins = []string{"bridge", "host-local", "portmap", "firewall", "loopback"}

func (h host) plugins() Check {
	dirs := h.o.CNIBinDirs
	if len(dirs) == 0 {
		dirs = []string{"/opt/cni/bin", "/usr/lib/cni"}
	}
	var missing []string
	where := map[string]bool{}
	for _, name := range neededPlugins {
		dir := ""
		for _, d := range dirs {
			if i, err := os.Stat(filepath.Join(d, name)); err == nil && i.Mode()&0o111 != 0 && i.Mode().IsRegular() {
				dir = d
				break
			}
		}
		if dir == "" {
			missing = append(missing, name)
		} else {
			where[dir] = true
		}
	}
	if len(missing) > 0 {
		return failed(network, "CNI plugins", fmt.Sprintf("%s missing in %s", strings.Join(missing, ", "), strings.Join(dirs, ", ")), h.install("containernetworking-plugins"))
	}
	var in []string
	for _, d := range dirs {
		if where[d] {
			in = append(in, d)
		}
	}
	return ok(network, "CNI plugins", strings.Join(neededPlugins, ", ")+" in "+strings.Join(in, ", "))
}

func (h host) iptables(ctx context.Context) Check {
	path, err := lookPath("iptables")
	if err != nil {
		return failed(network, "iptables", "not installed: pods would have no way out, and no host ports", h.install("iptables"))
	}
	v, _, _, err := version(ctx, path)
	if err != nil {
		return failed(network, "iptables", err.Error(), h.install("iptables"))
	}
	return ok(network, "iptables", v+" at "+path)
}

package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
	"sigs.k8s.io/yaml"

	"github.com/berthd/berth/test/image"
)

// containerd below one agent, with directories, a socket and a network of its own.
type containerd struct {
	bin, bridge, subnet string
	paused              bool // it has the image of its sandboxes
}

const pauseImage = "registry.k8s.io/pause:3.10.2"

// containerdConfig wants directory, programs, default handler, crun, certs.d, CNI configurations.
const containerdConfig = `version = 3
root = "%[1]s/ctd/root"
state = "%[1]s/ctd/state"
[grpc]
address = "%[1]s/ctd.sock"
[plugins.'io.containerd.internal.v1.opt']
path = "%[1]s/ctd/opt"
[plugins.'io.containerd.nri.v1.nri']
disable = true
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "%[5]s"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "` + pauseImage + `"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = [%[6]s]
conf_dir = "%[7]s"
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "%[3]s"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[2]s/runc"
SystemdCgroup = false
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = "%[4]s"
SystemdCgroup = false
`

const containerdNetwork = `{"cniVersion":"1.0.0","name":"%[2]s","plugins":[
 {"type":"bridge","bridge":"%[2]s","isGateway":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"%[3]s"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%[1]s/ctd/hostlocal"}},
 {"type":"bandwidth","capabilities":{"bandwidth":true}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`

// crun refuses the version of the OCI specification that containerd 2.4 writes
// (Debian's crun 1.8.1 does), and to run on a host whose cgroup v1 has a v2 beside
// it: it gets a version that it knows, and a mount namespace without the latter, in
// which all other mounts are the host's.
const crunScript = `#!/bin/sh
before=
for arg in "$@"; do
	[ "$before" != --bundle ] || sed -i 's/"ociVersion":"[^"]*"/"ociVersion":"1.0.2"/' "$arg/config.json"
	before=$arg
done
[ -e /sys/fs/cgroup/unified ] || exec crun "$@"
exec unshare -m --propagation unchanged sh -c 'mount --make-private /sys/fs/cgroup && umount /sys/fs/cgroup/unified && exec crun "$@"' crun "$@"
`

func newContainerd(a *Agent) *containerd {
	h := fnv.New32a()
	h.Write([]byte(a.Dir))
	return &containerd{bin: peer(a), bridge: fmt.Sprintf("bt%08x", h.Sum32())}
}

// peer is where test/peer/build.sh has put containerd.
func peer(a *Agent) string {
	dir := os.Getenv("PEER")
	if dir == "" {
		home, err := os.UserHomeDir()
		if err != nil {
			a.T.Fatal(err)
		}
		dir = filepath.Join(home, ".cache/berth-peer")
	}
	bin := filepath.Join(dir, "bin")
	for _, program := range []string{"containerd", "containerd-shim-runc-v2", "ctr", "runc", "bridge", "host-local", "portmap", "bandwidth"} {
		if _, err := os.Stat(filepath.Join(bin, program)); err != nil {
			a.T.Fatalf("%v: run sh test/peer/build.sh", err)
		}
	}
	return bin
}

func (c *containerd) socket(a *Agent) string { return a.Dir + "/ctd.sock" }

func (c *containerd) command(a *Agent) (*exec.Cmd, error) {
	if c.subnet == "" {
		var err error
		if c.subnet, err = freeSubnet(); err != nil {
			return nil, err
		}
	}
	w, err := c.wishes(a)
	if err != nil {
		return nil, err
	}
	if err := errors.Join(os.MkdirAll(a.Dir+"/ctd/net.d", 0o711), os.MkdirAll(w.certs, 0o755)); err != nil {
		return nil, err
	}
	bins := `"` + strings.Join(append(w.bins, c.bin), `", "`) + `"`
	for name, body := range map[string]string{
		"config.toml":          fmt.Sprintf(containerdConfig, a.Dir, c.bin, w.handler, a.Dir+"/ctd/crun", w.certs, bins, w.conf),
		"net.d/10-it.conflist": fmt.Sprintf(containerdNetwork, a.Dir, c.bridge, c.subnet),
		"crun":                 crunScript,
	} {
		if err := os.WriteFile(filepath.Join(a.Dir, "ctd", name), []byte(body), 0o755); err != nil {
			return nil, err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return nil, err
	}
	cmd := exec.Command(filepath.Join(c.bin, "containerd"), "-c", a.Dir+"/ctd/config.toml")
	cmd.Env = append(os.Environ(), "PATH="+c.bin+":"+os.Getenv("PATH"))
	return cmd, nil
}

// wishes are what the agent's flags and configuration want of its runtime: here
// they are containerd's.
type wishes struct {
	handler, certs, conf string
	bins                 []string
}

func (c *containerd) wishes(a *Agent) (wishes, error) {
	w := wishes{handler: "runc", certs: a.Dir + "/ctd/certs.d", conf: a.Dir + "/ctd/net.d"}
	for _, f := range flagsOf(a.Flags, runtimeFlags) {
		switch name, value, _ := strings.Cut(f, "="); name {
		case "--oci-runtime":
			w.handler = value
		case "--certs-dir":
			w.certs = value
		case "--cni-conf-dir":
			w.conf = value
		case "--cni-bin-dir":
			w.bins = append(w.bins, value)
		case "--config":
			body, err := os.ReadFile(value)
			if err != nil {
				return w, err
			}
			var config struct {
				Network struct {
					ConfDirs []string `json:"confDirs"`
					BinDirs  []string `json:"binDirs"`
				} `json:"network"`
			}
			if err := yaml.Unmarshal(body, &config); err != nil {
				return w, err
			}
			if dirs := config.Network.ConfDirs; len(dirs) > 0 {
				w.conf = dirs[0]
			}
			w.bins = append(w.bins, config.Network.BinDirs...)
		}
	}
	return w, nil
}

// ready gives containerd the image of its sandboxes.
func (c *containerd) ready(a *Agent) error {
	if c.paused {
		return nil
	}
	archive, err := pauseArchive()
	if err != nil {
		return err
	}
	path := a.Dir + "/pause.tar"
	if err := os.WriteFile(path, archive, 0o600); err != nil {
		return err
	}
	err = c.load(a, path)
	c.paused = err == nil
	return err
}

func (c *containerd) load(a *Agent, archive string) error {
	out, err := exec.Command(filepath.Join(c.bin, "ctr"), "-a", c.socket(a), "-n", "k8s.io", "images", "import", archive).CombinedOutput()
	if err != nil {
		return fmt.Errorf("ctr images import: %w: %s", err, out)
	}
	return nil
}

// pauseArchive is the image of sandboxes, built once a test process.
var pauseArchive = sync.OnceValues(func() ([]byte, error) {
	path := filepath.Join(os.TempDir(), fmt.Sprintf("berth-test-pause-%d", os.Getpid()))
	defer os.Remove(path)
	build := exec.Command("go", "build", "-trimpath", "-ldflags", "-s -w", "-o", path, "github.com/berthd/berth/test/node/pause")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("build the pause program: %w: %s", err, out)
	}
	body, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var archive strings.Builder
	err = image.WriteOCI(&archive, image.Spec{
		Names: []string{pauseImage}, Layers: []image.Layer{{"/pause": {Body: body, Mode: 0o755}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}},
	})
	return []byte(archive.String()), err
})

// freeSubnet is one that no address or route of this host lies in.
func freeSubnet() (string, error) {
	out, err := exec.Command("ip", "-4", "-j", "route", "show", "table", "all").Output()
	if err != nil {
		return "", fmt.Errorf("list routes: %w", err)
	}
	var routes []struct {
		Dst string `json:"dst"`
	}
	if err := json.Unmarshal(out, &routes); err != nil {
		return "", err
	}
	for range 200 {
		mine := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(210 + rand.N(40)), byte(rand.N(256)), 0}), 24)
		free := true
		for _, r := range routes {
			if !strings.Contains(r.Dst, "/") {
				r.Dst += "/32"
			}
			if p, err := netip.ParsePrefix(r.Dst); err == nil && p.Bits() > 8 && p.Overlaps(mine) {
				free = false
			}
		}
		if free {
			return mine.String(), nil
		}
	}
	return "", errors.New("no free subnet was found below 10.210.0.0")
}

// marks are what the network of containerd is recognized by on the host.
func (c *containerd) marks() []string { return []string{c.bridge, c.subnet} }

// clear takes away shims, mounts, the bridge and the rules of its network.
func (c *containerd) clear(a *Agent) {
	for _, pid := range c.shims(a) {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
	}
	for end := time.Now().Add(10 * time.Second); len(c.shims(a)) > 0 && time.Now().Before(end); {
		time.Sleep(20 * time.Millisecond)
	}
	mounts, err := os.ReadFile("/proc/self/mounts")
	if err != nil {
		a.T.Error(err)
	}
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], a.Dir+"/ctd/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH) // RemoveAll says what is left
		}
	}
	_ = exec.Command("ip", "link", "delete", c.bridge).Run() // there is none before the first pod
}

// shims are this containerd's, found by the socket they were given.
func (c *containerd) shims(a *Agent) []int {
	var pids []int
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline") // the pattern is valid
	for _, path := range all {
		line, err := os.ReadFile(path)
		if err != nil || !strings.Contains(string(line), "containerd-shim-runc-v2") || !strings.Contains(string(line), c.socket(a)) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(filepath.Dir(path))); err == nil {
			pids = append(pids, pid)
		}
	}
	return pids
}

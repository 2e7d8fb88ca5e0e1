package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// peerNode is kubelet + containerd + runc, standalone: static pods from a directory.
type peerNode struct {
	before              map[string]bool // network namespaces that were there before it
	bin, work           string
	containerd, kubelet *started
}

func (p *peerNode) name() string      { return "peer" }
func (p *peerNode) manifests() string { return filepath.Join(p.work, "manifests") }
func (p *peerNode) home() string      { return p.work }
func (p *peerNode) programs() *regexp.Regexp {
	return regexp.MustCompile(`^(kubelet|containerd|containerd-shim-runc-v2|pause)$`)
}
func (p *peerNode) place(name, stamps string) error { return place(p.manifests(), name, stamps) }

const containerdConfig = `version = 3
root = "%[1]s/ctd/root"
state = "%[1]s/ctd/state"
[grpc]
address = "%[1]s/ctd.sock"
[plugins.'io.containerd.cri.v1.images']
snapshotter = "overlayfs"
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10.2"
[plugins.'io.containerd.cri.v1.runtime']
restrict_oom_score_adj = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["%[2]s"]
conf_dir = "%[1]s/cni"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
BinaryName = "%[2]s/runc"
SystemdCgroup = false
`

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[1]s/ctd.sock
failCgroupV1: false
failSwapOn: false
cgroupDriver: cgroupfs
cgroupRoot: /
staticPodPath: %[1]s/manifests
authentication: {anonymous: {enabled: false}, webhook: {enabled: false}}
authorization: {mode: AlwaysAllow}
enableServer: false
readOnlyPort: 0
healthzPort: 0
maxPods: 1000
serializeImagePulls: false
featureGates: {KubeletInUserNamespace: true}
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
protectKernelDefaults: false
resolvConf: /etc/resolv.conf
podLogsDir: %[1]s/logs
`

const peerNetwork = `{"cniVersion":"1.0.0","name":"benchpeer","plugins":[
 {"type":"bridge","bridge":"benchpeer0","isGateway":true,"ipMasq":true,"hairpinMode":true,
  "ipam":{"type":"host-local","ranges":[[{"subnet":"10.244.0.0/16"}]],"routes":[{"dst":"0.0.0.0/0"}],"dataDir":"%[1]s/hostlocal"}},
 {"type":"portmap","capabilities":{"portMappings":true}}]}
`

func (p *peerNode) up(archive string) error {
	for _, d := range []string{p.manifests(), p.work + "/cni", p.work + "/kubelet"} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return err
		}
	}
	for name, body := range map[string]string{
		"containerd.toml":    fmt.Sprintf(containerdConfig, p.work, p.bin),
		"kubelet.yaml":       fmt.Sprintf(kubeletConfig, p.work),
		"cni/10-it.conflist": fmt.Sprintf(peerNetwork, p.work),
	} {
		if err := os.WriteFile(filepath.Join(p.work, name), []byte(body), 0o644); err != nil {
			return err
		}
	}
	if err := os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("1"), 0o644); err != nil {
		return err
	}
	if err := os.Setenv("PATH", p.bin+":"+os.Getenv("PATH")); err != nil {
		return err
	}
	p.before = map[string]bool{}
	for _, ns := range netNamespaces() {
		p.before[ns] = true
	}
	var err error
	if p.containerd, err = start(p.work+"/containerd.log", p.bin+"/containerd", "-c", p.work+"/containerd.toml"); err != nil {
		return err
	}
	ctr := func(args ...string) ([]byte, error) {
		return exec.Command(p.bin+"/ctr", append([]string{"-a", p.work + "/ctd.sock", "-n", "k8s.io"}, args...)...).CombinedOutput()
	}
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		if _, err := ctr("version"); err == nil {
			break
		}
		if time.Now().After(end) {
			return fmt.Errorf("containerd did not come up:\n%s", tail(p.work+"/containerd.log"))
		}
	}
	if msg, err := ctr("image", "import", archive); err != nil {
		return fmt.Errorf("import into the peer: %w: %s", err, msg)
	}
	p.kubelet, err = start(p.work+"/kubelet.log", p.bin+"/kubelet", "--config="+p.work+"/kubelet.yaml", "--root-dir="+p.work+"/kubelet", "--v=0")
	return err
}

func (p *peerNode) down() {
	for _, m := range glob(p.manifests() + "/*.yaml") {
		_ = os.Remove(m)
	}
	if p.kubelet != nil {
		for end := time.Now().Add(time.Minute); time.Now().Before(end) && len(p.shims()) > 0; {
			time.Sleep(time.Second)
		}
	}
	p.kubelet.end(10 * time.Second)
	p.containerd.end(10 * time.Second)
	p.kubelet, p.containerd = nil, nil
	for _, pid := range p.shims() {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	for _, ns := range netNamespaces() {
		if !p.before[ns] {
			_ = syscall.Unmount(ns, syscall.MNT_DETACH)
			_ = os.Remove(ns)
		}
	}
	for _, link := range glob("/var/log/containers/*.log") {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, p.work+"/") {
			_ = os.Remove(link)
		}
	}
	_ = exec.Command("ip", "link", "delete", "benchpeer0").Run()
	if err := dropPeerRules(); err != nil {
		fmt.Fprintf(os.Stderr, "the peer's masquerading rules stay: %v\n", err)
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], p.work+"/") {
			_ = syscall.Unmount(f[1], syscall.MNT_DETACH)
		}
	}
}

// shims are the peer's own shim processes, found by the socket they were given.
func (p *peerNode) shims() []int {
	var pids []int
	for _, d := range glob("/proc/[0-9]*") {
		body, _ := os.ReadFile(d + "/cmdline")
		if strings.Contains(string(body), "containerd-shim-runc-v2") && strings.Contains(string(body), p.work+"/ctd.sock") {
			pid, _ := strconv.Atoi(filepath.Base(d))
			pids = append(pids, pid)
		}
	}
	return pids
}

// netNamespaces are those that containerd pins for its pods; pods that are not
// removed before it ends leave theirs.
func netNamespaces() []string { return glob("/run/netns/cni-*") }

func glob(pattern string) []string {
	found, _ := filepath.Glob(pattern)
	return found
}

// dropPeerRules deletes the rules and chains that the peer's network left in
// the nat table: they name it in a comment. The peer's last pods are not
// detached before it ends.
func dropPeerRules() error {
	saved, err := exec.Command("iptables-save", "-t", "nat").Output()
	if err != nil {
		return err
	}
	var edit strings.Builder
	chains := map[string]bool{}
	edit.WriteString("*nat\n")
	for _, rule := range strings.Split(string(saved), "\n") {
		if !strings.Contains(rule, `name: \"benchpeer\"`) {
			continue
		}
		edit.WriteString("-D" + strings.TrimPrefix(rule, "-A") + "\n")
		if f := strings.Fields(rule); strings.HasPrefix(f[1], "CNI-") {
			chains[f[1]] = true
		}
	}
	for chain := range chains {
		edit.WriteString("-X " + chain + "\n")
	}
	edit.WriteString("COMMIT\n")
	restore := exec.Command("iptables-restore", "-w", "10", "--noflush")
	restore.Stdin = strings.NewReader(edit.String())
	if msg, err := restore.CombinedOutput(); err != nil {
		return fmt.Errorf("%w: %s", err, msg)
	}
	return nil
}

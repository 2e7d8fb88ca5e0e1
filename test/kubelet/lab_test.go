package kubelet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"
	v1 "k8s.io/api/core/v1"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/berthd/berth/test/cluster"
	"github.com/berthd/berth/test/hostgroup"
	"github.com/berthd/berth/test/image"
	"github.com/berthd/berth/test/node"
	"github.com/berthd/berth/test/patience"
)

const (
	pauseImage    = "registry.k8s.io/pause:3.10.2"
	workloadImage = "docker.io/library/berth-kubelet-test:1"
	nodeName      = "test-node"
)

// lab is a cluster with one node: the upstream kubelet on a runtime.
type lab struct {
	t       *testing.T
	home    string
	cluster *cluster.Cluster
	cri     criRuntime
	runtime *cluster.Program
	kubelet *cluster.Program
	health  string                    // http://… of the kubelet
	config  func(gates string) string // of the kubelet

	mu      *sync.Mutex
	results *[]result
}

// result is the outcome of one check.
type result struct {
	name string
	took time.Duration
	err  bool
}

const kubeletConfig = `apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
containerRuntimeEndpoint: unix://%[2]s
cgroupDriver: cgroupfs
cgroupRoot: %[3]s
failCgroupV1: false
failSwapOn: false
staticPodPath: %[1]s/manifests
podLogsDir: %[1]s/logs
volumePluginDir: %[1]s/plugins
authentication: {anonymous: {enabled: false}, webhook: {enabled: true}, x509: {clientCAFile: %[4]s}}
authorization: {mode: Webhook}
tlsCertFile: %[5]s
tlsPrivateKeyFile: %[6]s
port: %[7]d
healthzPort: %[8]d
readOnlyPort: 0
clusterDNS: [10.218.0.10]
clusterDomain: cluster.local
serializeImagePulls: false
nodeStatusUpdateFrequency: 5s
syncFrequency: 10s
fileCheckFrequency: 1s
evictionHard: {memory.available: 100Mi, nodefs.available: 1%%, imagefs.available: 1%%}
imageGCHighThresholdPercent: 100
resolvConf: /etc/resolv.conf
featureGates: {KubeletInUserNamespace: true%[9]s}
`

// open starts the cluster, the runtime and the kubelet; they end with the test.
func open(t *testing.T) *lab {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("needs root: a kubelet makes cgroups and mounts")
	}
	bin := cluster.DefaultBin()
	for _, p := range append([]string{"kubelet", "runc", "bridge", "host-local", "portmap", "loopback"}, cluster.Programs...) {
		if _, err := os.Stat(filepath.Join(bin, p)); err != nil {
			t.Skipf("%s is not built: run test/peer/build.sh node cluster", p)
		}
	}
	l := &lab{t: t, mu: &sync.Mutex{}, results: &[]result{}}
	switch name := os.Getenv("BERTH_KUBELET_RUNTIME"); name {
	case "", "berth":
		l.cri = onBerth{node.Binary(t, "BERTH_BIN"), bin}
	case "containerd":
		l.cri = onContainerd{bin}
	default:
		t.Fatalf("BERTH_KUBELET_RUNTIME=%s: it is berth or containerd", name)
	}
	var err error
	if l.home, err = os.MkdirTemp("/tmp", "kob-"); err != nil { // short: sockets lie below it
		t.Fatal(err)
	}
	t.Cleanup(l.sweep)
	for _, d := range []string{"", "/manifests", "/logs", "/plugins", "/cni", "/r", "/kubelet", "/certs.d"} {
		if err := os.MkdirAll(l.home+d, 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(l.home+d, 0o755); err != nil { // users of user namespaces pass through
			t.Fatal(err)
		}
	}
	if err := hostgroup.Make(l.group()); err != nil {
		t.Fatal(err)
	}
	if l.runtime, err = l.cri.program(l.home, socketOf(l.home)); err != nil {
		t.Fatal(err)
	}
	l.startRuntime()
	if err := l.cri.load(t.Context(), socketOf(l.home), l.images()); err != nil {
		t.Fatal(err)
	}
	l.cluster = cluster.New(t, cluster.Config{Dir: l.home + "/cluster"})
	l.describeKubelet()
	l.gate("")
	if err := l.kubelet.Start(); err != nil {
		t.Fatal(err)
	}
	return l
}

// group is the kubelet's root cgroup.
func (l *lab) group() string { return "/" + filepath.Base(l.home) + "-k" }

// on is l reporting to t.
func (l *lab) on(t *testing.T) *lab {
	double := *l
	double.t = t
	return &double
}

// check runs f as a subtest and keeps its outcome.
func (l *lab) check(name string, f func(*lab)) {
	l.t.Helper()
	l.t.Run(name, func(t *testing.T) { l.observe(t, name, f) })
}

// beside is check for what may run beside the others.
func (l *lab) beside(name string, f func(*lab)) {
	l.t.Helper()
	l.t.Run(name, func(t *testing.T) { t.Parallel(); l.observe(t, name, f) })
}

func (l *lab) observe(t *testing.T, name string, f func(*lab)) {
	began := time.Now()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		*l.results = append(*l.results, result{name, time.Since(began), t.Failed()})
	}()
	f(l.on(t))
}

func (l *lab) startRuntime() {
	l.t.Helper()
	if err := l.runtime.Start(); err != nil {
		l.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(l.t.Context(), patience.For(time.Minute))
	defer cancel()
	if err := awaitRuntime(ctx, socketOf(l.home)); err != nil {
		l.t.Fatalf("%v\n%s", err, l.runtime.Tail(20))
	}
}

// describeKubelet decides how the kubelet is started: with its own certificate,
// as the node of the cluster.
func (l *lab) describeKubelet() {
	l.t.Helper()
	ports, err := cluster.FreePorts(2)
	if err != nil {
		l.t.Fatal(err)
	}
	serving, err := l.cluster.ServingPair("kubelet", append(addresses(l.t), nodeName, "127.0.0.1")...)
	if err != nil {
		l.t.Fatal(err)
	}
	credentials, err := l.cluster.Kubeconfig("system:node:"+nodeName, "system:nodes")
	if err != nil {
		l.t.Fatal(err)
	}
	l.health = fmt.Sprintf("http://127.0.0.1:%d/healthz", ports[1])
	l.config = func(gates string) string {
		return fmt.Sprintf(kubeletConfig, l.home, socketOf(l.home), l.group(), l.cluster.CAFile(), serving.Cert, serving.Key, ports[0], ports[1], gates)
	}
	l.kubelet = &cluster.Program{Name: "kubelet", Log: l.home + "/kubelet.log", Args: []string{filepath.Join(cluster.DefaultBin(), "kubelet"), "--config=" + l.home + "/kubelet.yaml",
		"--kubeconfig=" + credentials, "--root-dir=" + l.home + "/kubelet", "--hostname-override=" + nodeName, "--v=2"}}
}

// gate says which further feature gates (", Name: true") the kubelet has from
// its next start on.
func (l *lab) gate(gates string) {
	l.t.Helper()
	if err := os.WriteFile(l.home+"/kubelet.yaml", []byte(l.config(gates)), 0o600); err != nil {
		l.t.Fatal(err)
	}
}

// addresses are this machine's.
func addresses(t *testing.T) []string {
	t.Helper()
	all, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	var ips []string
	for _, a := range all {
		if n, ok := a.(*net.IPNet); ok {
			ips = append(ips, n.IP.String())
		}
	}
	return ips
}

// images builds the archive that the runtime gets: the workload's image and the
// peer's pause image.
func (l *lab) images() string {
	l.t.Helper()
	program := l.home + "/workload"
	build := exec.Command("go", "build", "-ldflags", "-s -w", "-o", program, "github.com/berthd/berth/test/kubelet/workload")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if msg, err := build.CombinedOutput(); err != nil {
		l.t.Fatalf("build the workload: %v\n%s", err, msg)
	}
	body, err := os.ReadFile(program)
	if err != nil {
		l.t.Fatal(err)
	}
	busybox, err := image.Busybox()
	if err != nil {
		l.t.Fatal(err)
	}
	spec := image.Spec{
		Names:  []string{workloadImage, pauseImage},
		Layers: []image.Layer{busybox, {"/workload": {Body: body, Mode: 0o755}, "/pause": {Body: []byte("#!/bin/sh\ntrap 'exit 0' TERM INT\nwhile :; do sleep 3600 & wait; done\n"), Mode: 0o755}}},
		Config: ocispec.ImageConfig{Entrypoint: []string{"/pause"}, Env: []string{"PATH=/bin:/usr/bin"}},
	}
	path := l.home + "/images.tar"
	f, err := os.Create(path)
	if err != nil {
		l.t.Fatal(err)
	}
	if err := errors.Join(image.WriteOCI(f, spec), f.Close()); err != nil {
		l.t.Fatal(err)
	}
	return path
}

// sweep ends and removes everything, and shows the logs of a failed test.
func (l *lab) sweep() {
	if l.kubelet != nil {
		l.kubelet.Stop(10 * time.Second)
	}
	if l.runtime != nil {
		if l.t.Failed() {
			l.t.Logf("the runtime's log:\n%s", l.runtime.Tail(60))
		}
		l.runtime.Stop(20 * time.Second)
		if err := l.cri.clean(l.home); err != nil {
			l.t.Errorf("clean up: %v", err)
		}
	}
	mounts, _ := os.ReadFile("/proc/self/mounts")
	lines := strings.Split(string(mounts), "\n")
	for i := len(lines) - 1; i >= 0; i-- {
		if f := strings.Fields(lines[i]); len(f) > 1 && strings.HasPrefix(f[1], l.home+"/") {
			_ = unix.Unmount(f[1], unix.MNT_DETACH)
		}
	}
	links, _ := filepath.Glob("/var/log/containers/*.log")
	for _, link := range links {
		if to, err := os.Readlink(link); err == nil && strings.HasPrefix(to, l.home+"/") {
			_ = os.Remove(link)
		}
	}
	if err := hostgroup.Remove(l.group()); err != nil {
		l.t.Errorf("clean up: %v", err)
	}
	if keep := os.Getenv("BERTH_KUBELET_KEEP"); keep != "" {
		l.t.Logf("%s stays", l.home)
		return
	}
	if err := os.RemoveAll(l.home); err != nil {
		l.t.Errorf("clean up: %v", err)
	}
}

// kubectl runs kubectl, which must succeed, and returns what it wrote.
func (l *lab) kubectl(args ...string) string {
	l.t.Helper()
	out, err := l.try("", args...)
	if err != nil {
		l.t.Fatal(err)
	}
	return out
}

// try runs kubectl with an input.
func (l *lab) try(stdin string, args ...string) (string, error) {
	ctx, cancel := context.WithTimeout(l.t.Context(), patience.For(2*time.Minute))
	defer cancel()
	return l.cluster.Kubectl(ctx, stdin, args...)
}

// apply creates or changes what the manifest describes, once the namespace's
// service account is there.
func (l *lab) apply(manifest string) {
	l.t.Helper()
	if out, err := l.try(manifest, "apply", "-f", "-"); err != nil {
		l.t.Fatalf("%v\n%s", err, out)
	}
}

// pod reads a pod.
func (l *lab) pod(name string) (*v1.Pod, error) {
	out, err := l.try("", "get", "pod", name, "-o", "json")
	if err != nil {
		return nil, err
	}
	p := &v1.Pod{}
	return p, json.Unmarshal([]byte(out), p)
}

// wait waits until check has nothing to object to in a pod.
func (l *lab) wait(name string, within time.Duration, check func(*v1.Pod) error) *v1.Pod {
	l.t.Helper()
	for end := time.Now().Add(patience.For(within)); ; time.Sleep(300 * time.Millisecond) {
		p, err := l.pod(name)
		if err == nil {
			err = check(p)
		}
		if err == nil {
			return p
		}
		if !l.kubelet.Running() {
			l.t.Fatalf("the kubelet has ended:\n%s", l.kubelet.Tail(200))
		}
		if time.Now().After(end) {
			events, _ := l.try("", "get", "events", "--field-selector", "involvedObject.name="+name, "-o", "custom-columns=:.type,:.reason,:.message", "--no-headers")
			l.t.Fatalf("pod %s, after %v: %v\n%s", name, within, err, events)
		}
	}
}

// ready waits until a pod is Ready.
func (l *lab) ready(name string) *v1.Pod {
	l.t.Helper()
	return l.wait(name, 90*time.Second, func(p *v1.Pod) error {
		for _, c := range p.Status.Conditions {
			if c.Type == v1.PodReady && c.Status == v1.ConditionTrue {
				return nil
			}
		}
		return fmt.Errorf("not ready: %s", statusText(p))
	})
}

// ended waits until a pod has ended in a phase.
func (l *lab) ended(name string, phase v1.PodPhase) *v1.Pod {
	l.t.Helper()
	return l.wait(name, 90*time.Second, func(p *v1.Pod) error {
		if p.Status.Phase != phase {
			return fmt.Errorf("not %s: %s", phase, statusText(p))
		}
		return nil
	})
}

// remove deletes a pod and waits until it is gone.
func (l *lab) remove(kind, name string) {
	l.t.Helper()
	l.kubectl("delete", kind, name, "--timeout=90s")
}

// expect fails the test unless text has all of parts.
func (l *lab) expect(what, text string, parts ...string) {
	l.t.Helper()
	for _, p := range parts {
		if !strings.Contains(text, p) {
			l.t.Errorf("%s lacks %q:\n%s", what, p, text)
		}
	}
}

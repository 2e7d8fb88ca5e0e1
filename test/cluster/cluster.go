// Package cluster starts a Kubernetes control plane of its own for tests: etcd,
// kube-apiserver, kube-controller-manager and kube-scheduler on free ports of
// loopback, with certificates and kubeconfigs made for it in one directory.
// Nothing of the machine is changed, and several may run at once. Nodes are the
// caller's: they join with a kubeconfig of system:node:NAME.
//
// The programs are those that test/peer/build.sh builds.
package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// Config says where a cluster lies and what it is.
type Config struct {
	Dir string // everything of the cluster; made if it does not exist
	Bin string // directory of the programs; DefaultBin if empty
	// PodCIDR is what nodes' pod ranges are taken from, ServiceCIDR services'
	// addresses; comma-separated pairs for dual stack.
	PodCIDR, ServiceCIDR string
	// APIServer are further flags of the API server.
	APIServer []string
}

// Cluster is a running control plane.
type Cluster struct {
	Dir    string
	Server string // https://127.0.0.1:port
	Admin  string // path of an administrator's kubeconfig
	// The programs, for tests that end one and start it again.
	Etcd, APIServer, ControllerManager, Scheduler *Program

	cfg Config
	ca  *authority
}

// DefaultBin is where test/peer/build.sh puts programs.
func DefaultBin() string {
	if peer := os.Getenv("PEER"); peer != "" {
		return filepath.Join(peer, "bin")
	}
	return filepath.Join(os.Getenv("HOME"), ".cache/berth-peer/bin")
}

// Programs are the names of those that Start needs.
var Programs = []string{"etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl"}

// New starts a cluster that ends with the test. It skips the test where the
// programs are not built.
func New(t testing.TB, cfg Config) *Cluster {
	t.Helper()
	if cfg.Bin == "" {
		cfg.Bin = DefaultBin()
	}
	for _, p := range Programs {
		if _, err := os.Stat(filepath.Join(cfg.Bin, p)); err != nil {
			t.Skipf("%s is not built: run test/peer/build.sh cluster", p)
		}
	}
	if cfg.Dir == "" {
		cfg.Dir = t.TempDir()
	}
	c, err := Start(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			for _, p := range []*Program{c.APIServer, c.ControllerManager, c.Scheduler} {
				t.Logf("%s:\n%s", p.Name, p.Tail(20))
			}
		}
		c.Stop()
	})
	return c
}

// Start starts a control plane and returns when it answers and the default
// namespace has what pods need. What it has started is ended if it fails.
func Start(ctx context.Context, cfg Config) (*Cluster, error) {
	if cfg.Bin == "" {
		cfg.Bin = DefaultBin()
	}
	if cfg.PodCIDR == "" {
		cfg.PodCIDR = "10.217.0.0/16"
	}
	if cfg.ServiceCIDR == "" {
		cfg.ServiceCIDR = "10.218.0.0/16"
	}
	c := &Cluster{Dir: cfg.Dir, cfg: cfg}
	if err := c.start(ctx); err != nil {
		c.Stop()
		return nil, fmt.Errorf("start a cluster in %s: %w", cfg.Dir, err)
	}
	return c, nil
}

func (c *Cluster) start(ctx context.Context) error {
	if err := c.describe(); err != nil {
		return err
	}
	for _, p := range []*Program{c.Etcd, c.APIServer} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	if err := c.await(ctx, 2*time.Minute, "the API server is ready", "get", "--raw", "/readyz"); err != nil {
		return fmt.Errorf("%w\n%s", err, c.APIServer.Tail(15))
	}
	for _, p := range []*Program{c.ControllerManager, c.Scheduler} {
		if err := p.Start(); err != nil {
			return err
		}
	}
	if err := c.await(ctx, time.Minute, "there is a default service account", "get", "serviceaccount/default", "configmap/kube-root-ca.crt"); err != nil {
		return fmt.Errorf("%w\n%s", err, c.ControllerManager.Tail(15))
	}
	return nil
}

// describe makes certificates and kubeconfigs, and decides how each program is run.
func (c *Cluster) describe() error {
	pki := filepath.Join(c.Dir, "pki")
	if err := os.MkdirAll(pki, 0o700); err != nil {
		return err
	}
	ports, err := FreePorts(5)
	if err != nil {
		return err
	}
	if c.ca, err = newAuthority(pki); err != nil {
		return err
	}
	c.Server = fmt.Sprintf("https://127.0.0.1:%d", ports[2])
	serving, err := c.ca.issue("apiserver", "kube-apiserver", nil, []string{"127.0.0.1", "localhost", "kubernetes", "kubernetes.default", "kubernetes.default.svc"})
	if err != nil {
		return err
	}
	toKubelet, err := c.ca.issue("apiserver-kubelet", "kube-apiserver-kubelet-client", []string{"system:masters"}, nil)
	if err != nil {
		return err
	}
	signing, err := signingKeys(pki)
	if err != nil {
		return err
	}
	var manager, scheduler string
	for path, user := range map[*string]string{&c.Admin: "admin", &manager: "system:kube-controller-manager", &scheduler: "system:kube-scheduler"} {
		var groups []string
		if user == "admin" {
			groups = []string{"system:masters"}
		}
		if *path, err = c.Kubeconfig(user, groups...); err != nil {
			return err
		}
	}
	etcd := fmt.Sprintf("http://127.0.0.1:%d", ports[0])
	peers := fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	c.Etcd = c.program("etcd", "--data-dir="+c.Dir+"/etcd", "--listen-client-urls="+etcd, "--advertise-client-urls="+etcd,
		"--listen-peer-urls="+peers, "--initial-advertise-peer-urls="+peers, "--initial-cluster=default="+peers, "--unsafe-no-fsync", "--log-level=warn")
	c.APIServer = c.program("kube-apiserver", append([]string{
		"--etcd-servers=" + etcd, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[2]), "--endpoint-reconciler-type=none",
		"--tls-cert-file=" + serving.Cert, "--tls-private-key-file=" + serving.Key, "--client-ca-file=" + c.ca.file(),
		"--service-account-key-file=" + signing.Cert, "--service-account-signing-key-file=" + signing.Key, "--service-account-issuer=https://kubernetes.default.svc",
		"--service-cluster-ip-range=" + c.cfg.ServiceCIDR, "--authorization-mode=Node,RBAC", "--allow-privileged", "--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + toKubelet.Cert, "--kubelet-client-key=" + toKubelet.Key, "--kubelet-certificate-authority=" + c.ca.file(),
		"--kubelet-preferred-address-types=InternalIP,Hostname",
	}, c.cfg.APIServer...)...)
	c.ControllerManager = c.program("kube-controller-manager", "--kubeconfig="+manager, "--authentication-kubeconfig="+manager, "--authorization-kubeconfig="+manager,
		"--service-account-private-key-file="+signing.Key, "--root-ca-file="+c.ca.file(), "--use-service-account-credentials",
		"--allocate-node-cidrs", "--cluster-cidr="+c.cfg.PodCIDR, "--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[3]), "--leader-elect=false",
		"--cert-dir="+pki)
	c.Scheduler = c.program("kube-scheduler", "--kubeconfig="+scheduler, "--authentication-kubeconfig="+scheduler, "--authorization-kubeconfig="+scheduler,
		"--bind-address=127.0.0.1", fmt.Sprintf("--secure-port=%d", ports[4]), "--leader-elect=false", "--cert-dir="+pki)
	return nil
}

func (c *Cluster) program(name string, args ...string) *Program {
	return &Program{Name: name, Args: append([]string{filepath.Join(c.cfg.Bin, name)}, args...), Log: filepath.Join(c.Dir, name+".log")}
}

// Stop ends the control plane; what it has stored stays in Dir.
func (c *Cluster) Stop() {
	for _, p := range []*Program{c.Scheduler, c.ControllerManager, c.APIServer, c.Etcd} {
		if p != nil {
			p.Stop(5 * time.Second)
		}
	}
}

// Command is kubectl as administrator; the caller runs it.
func (c *Cluster) Command(ctx context.Context, args ...string) *exec.Cmd {
	return exec.CommandContext(ctx, filepath.Join(c.cfg.Bin, "kubectl"), append([]string{"--kubeconfig=" + c.Admin}, args...)...)
}

// Kubectl runs kubectl as administrator, with stdin as its input, and returns
// what it wrote, errors included.
func (c *Cluster) Kubectl(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := c.Command(ctx, args...)
	cmd.Stdin = strings.NewReader(stdin)
	out, err := cmd.CombinedOutput()
	if err != nil {
		return string(out), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(string(out)))
	}
	return string(out), nil
}

// await repeats a kubectl command until it succeeds. It fails early when one of
// the programs ends.
func (c *Cluster) await(ctx context.Context, within time.Duration, what string, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	started := slices.DeleteFunc([]*Program{c.Etcd, c.APIServer, c.ControllerManager, c.Scheduler}, func(p *Program) bool { return !p.Running() })
	for {
		_, err := c.Kubectl(ctx, "", args...)
		if err == nil {
			return nil
		}
		for _, p := range started {
			if !p.Running() {
				return fmt.Errorf("%s has ended:\n%s", p.Name, p.Tail(15))
			}
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, errors.Join(ctx.Err(), err))
		case <-time.After(200 * time.Millisecond):
		}
	}
}

package config

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"time"
)

// Version and Kind are what a configuration file says it is.
const (
	Version = "berth.dev/v1alpha1"
	Kind    = "Configuration"
)

// DefaultPath is read if it exists and no other file is named.
const DefaultPath = "/etc/berth/config.yaml"

// maxFile is the most a configuration file may hold, in bytes.
const maxFile = 1 << 20

// Config is Berth's configuration. Paths are absolute once it has been checked.
type Config struct {
	APIVersion string `json:"apiVersion"`
	Kind       string `json:"kind"`

	RootDir  string `json:"rootDir"`
	StateDir string `json:"stateDir"`
	LogDir   string `json:"logDir"`
	NodeName string `json:"nodeName"` // the host's name if empty
	// NodeLabels are what node selectors and affinity find, beyond the usual ones.
	NodeLabels         map[string]string `json:"nodeLabels"`
	RegisterWithTaints []Taint           `json:"registerWithTaints"`

	Sockets   Sockets   `json:"sockets"`
	Manifests Manifests `json:"manifests"`
	Runtime   Runtime   `json:"runtime"`
	Cgroups   Cgroups   `json:"cgroups"`
	Network   Network   `json:"network"`

	ClusterDNS    []string `json:"clusterDNS"`
	ClusterDomain string   `json:"clusterDomain"`
	ResolvConf    string   `json:"resolvConf"`

	MaxPods        int               `json:"maxPods"`
	PodPidsLimit   int               `json:"podPidsLimit"` // -1: none
	SystemReserved map[string]string `json:"systemReserved"`
	KubeReserved   map[string]string `json:"kubeReserved"`

	CPUCFSQuota                   bool          `json:"cpuCFSQuota"`
	CPUCFSQuotaPeriod             time.Duration `json:"cpuCFSQuotaPeriod"`
	MemorySwap                    MemorySwap    `json:"memorySwap"`
	SingleProcessOOMKill          bool          `json:"singleProcessOOMKill"`
	LocalStorageCapacityIsolation bool          `json:"localStorageCapacityIsolation"`

	SeccompDefault       bool           `json:"seccompDefault"`
	AllowedUnsafeSysctls []string       `json:"allowedUnsafeSysctls"`
	UserNamespaces       UserNamespaces `json:"userNamespaces"`

	CrashLoopBackOff CrashLoopBackOff `json:"crashLoopBackOff"`
	ParallelPulls    int              `json:"parallelPulls"`
	ContainerLogs    ContainerLogs    `json:"containerLogs"`
	Logging          Logging          `json:"logging"`
	problems         []Problem        // found by decoding
	positions        map[string]position
}

// Taint keeps pods of a cluster away that do not tolerate it.
type Taint struct {
	Key    string `json:"key"`
	Value  string `json:"value"`
	Effect string `json:"effect"`
}

// MemorySwap says whether pods may use the node's swap space.
type MemorySwap struct {
	SwapBehavior string `json:"swapBehavior"` // empty and NoSwap, or LimitedSwap
}

// UserNamespaces size the ranges of host IDs that pods with hostUsers: false get.
type UserNamespaces struct {
	IDsPerPod int `json:"idsPerPod"`
}

// Sockets are the unix sockets; empty ones lie in the state directory.
type Sockets struct {
	Agent string `json:"agent"`
	CRI   string `json:"cri"`
}

// Manifests are where pods come from.
type Manifests struct {
	Directories []string          `json:"directories"`
	Files       []string          `json:"files"` // "-" is standard input
	URLs        []string          `json:"urls"`
	Headers     map[string]string `json:"headers"` // sent with each fetch; never shown
}

// Runtime is what runs containers.
type Runtime struct {
	Endpoint   string `json:"endpoint"` // of an external CRI runtime; empty: the embedded one
	OCIRuntime string `json:"ociRuntime"`
	Conmon     string `json:"conmon"`
	CertsDir   string `json:"certsDir"`
	ImportDir  string `json:"importDir"` // empty: import in RootDir
	// Handlers are the OCI runtimes that RuntimeClasses name.
	Handlers map[string]Handler `json:"handlers"`
	// CDISpecDirs are where vendors describe their devices.
	CDISpecDirs []string `json:"cdiSpecDirs"`
}

// Handler is an OCI runtime. A string in its place is its path.
type Handler struct {
	Path string   `json:"path"`
	Args []string `json:"args"` // before the subcommand
	// Annotations are those of pods that it may see; "*" at the end stands for any rest.
	Annotations []string `json:"annotations"`
	// DefaultAnnotations are on each of its containers.
	DefaultAnnotations map[string]string `json:"defaultAnnotations"`
}

// Cgroups say where pods' cgroups lie.
type Cgroups struct {
	Root   string `json:"root"`
	Driver string `json:"driver"`
}

// Network is CNI's.
type Network struct {
	ConfDirs []string `json:"confDirs"`
	BinDirs  []string `json:"binDirs"`
	Subnets  []string `json:"subnets"`
}

// CrashLoopBackOff bounds the wait before a container that keeps ending is started again.
type CrashLoopBackOff struct {
	Max time.Duration `json:"max"`
}

// ContainerLogs bound each container's log.
type ContainerLogs struct {
	MaxSize  Size `json:"maxSize"`
	MaxFiles int  `json:"maxFiles"`
}

// Logging is the agent's own log.
type Logging struct {
	Level  string `json:"level"`
	Format string `json:"format"`
}

// Size is a number of bytes, written as a Kubernetes quantity ("10Mi").
type Size int64

// New returns the defaults.
func New() *Config {
	return &Config{
		APIVersion: Version, Kind: Kind,
		RootDir: "/var/lib/berth", StateDir: "/run/berth", LogDir: "/var/log/pods",
		Manifests:  Manifests{Directories: []string{"/etc/berth/manifests"}},
		Network:    Network{ConfDirs: []string{"/etc/cni/net.d"}, BinDirs: []string{"/opt/cni/bin", "/usr/lib/cni"}},
		Runtime:    Runtime{CDISpecDirs: []string{"/etc/cdi", "/var/run/cdi"}},
		ResolvConf: "/etc/resolv.conf",
		MaxPods:    1000, PodPidsLimit: -1, CPUCFSQuota: true, CPUCFSQuotaPeriod: 100 * time.Millisecond, LocalStorageCapacityIsolation: true,
		SeccompDefault: true, UserNamespaces: UserNamespaces{1 << 16}, CrashLoopBackOff: CrashLoopBackOff{300 * time.Second}, ParallelPulls: 3,
		ContainerLogs: ContainerLogs{MaxSize: 10 << 20, MaxFiles: 5},
		Logging:       Logging{Level: "info", Format: "text"},
	}
}

// Load reads and checks a configuration file. What it leaves out has the
// default. All that is wrong with it is in the error, which is Problems.
func Load(path string) (*Config, error) {
	c, err := read(path)
	if err != nil {
		return nil, err
	}
	if err := c.Check(); err != nil {
		return nil, err
	}
	return c, nil
}

// read decodes a file; the defaults if path is empty and there is no DefaultPath.
func read(path string) (*Config, error) {
	named := path != ""
	if !named {
		path = DefaultPath
	}
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) && !named {
		return New(), nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the configuration: %w", err)
	}
	defer f.Close()
	content, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return nil, fmt.Errorf("read the configuration %s: %w", path, err)
	}
	return Parse(path, content), nil
}

// Parse decodes content over the defaults. What is wrong with it is told by
// Check. name is what problems call the file.
func Parse(name string, content []byte) *Config {
	c := New()
	d := decoder{file: name, positions: map[string]position{}}
	d.document(content, c)
	c.problems, c.positions = d.problems, d.positions
	return c
}

// AgentSocket is the path of the agent's socket.
func (c *Config) AgentSocket() string {
	return either(c.Sockets.Agent, filepath.Join(c.StateDir, "berth.sock"))
}

// CRISocket is the path of the CRI socket.
func (c *Config) CRISocket() string {
	return either(c.Sockets.CRI, filepath.Join(c.StateDir, "cri.sock"))
}

func either(a, b string) string {
	if a != "" {
		return a
	}
	return b
}

var levels = map[string]slog.Level{"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError}

// Logger makes the agent's log on w. c has been checked.
func (c *Config) Logger(w io.Writer) *slog.Logger {
	o := &slog.HandlerOptions{Level: levels[c.Logging.Level]}
	if c.Logging.Format == "json" {
		return slog.New(slog.NewJSONHandler(w, o))
	}
	return slog.New(slog.NewTextHandler(w, o))
}

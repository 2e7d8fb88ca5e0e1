package wire

import (
	"io"
	"log/slog"
	"net/http"
	"time"

	v1 "k8s.io/api/core/v1"

	"github.com/berthd/berth/cri/ociruntime"
)

// RuntimeHandler is an OCI runtime that a RuntimeClass may name.
type RuntimeHandler struct {
	Path string
	ociruntime.Handler
}

// Options are everything about an agent that can be chosen. All paths are absolute.
type Options struct {
	RootDir, StateDir, LogDir string
	// LogLinksDir gets links to containers' logs. If empty: /var/log/containers for
	// the default log directory, else "containers" beside LogDir.
	LogLinksDir       string
	Socket, CRISocket string // the agent's API, and the runtime's
	NodeName          string // the host's name if empty

	// Sources: each may be empty.
	ManifestDirs, ManifestFiles, ManifestURLs []string
	ManifestHeader                            http.Header
	Stdin                                     io.Reader

	// The embedded runtime; Endpoint names an external one instead (unix:///path).
	Endpoint   string
	OCIRuntime string // crun, runc, a path, or empty: the first usable
	Conmon     string
	CertsDir   string
	// ImportDir is where image archives are dropped to be imported; empty: import
	// in RootDir.
	ImportDir string

	CgroupRoot   string
	CgroupDriver string // cgroupfs, systemd, or empty: systemd where it runs the host

	CNIConfDirs, CNIBinDirs []string
	Subnets                 []string // of the default pod network

	// Runtimes are the OCI runtimes that a RuntimeClass may name, by handler.
	Runtimes map[string]RuntimeHandler
	// CDISpecDirs hold the specifications of vendors' devices.
	CDISpecDirs []string

	// What the node offers to pods, and what it keeps for itself.
	NodeLabels map[string]string
	Taints     []v1.Taint
	Reserved   v1.ResourceList // cpu, memory, ephemeral-storage, pid

	ClusterDNS    []string
	ClusterDomain string
	ResolvConf    string

	NoCPUQuota           bool
	CPUPeriod            time.Duration
	LimitedSwap          bool  // burstable pods get a part of the swap space; else none
	SingleProcessOOMKill bool  // the OOM killer takes one process, not the container
	PodPidsLimit         int64 // 0: none
	NoStorageLimits      bool  // limits on ephemeral storage are not enforced
	IDsPerPod            uint32
	UnsafeSysctls        []string

	SeccompDefault bool
	MaxPods        int
	CrashLoopMax   time.Duration
	ParallelPulls  int
	LogMaxSize     int64 // bytes of one container log file
	LogMaxFiles    int

	Version string
	Log     *slog.Logger
}

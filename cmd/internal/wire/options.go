package wire

import (
	"io"
	"log/slog"
	"net/http"
	"time"
)

// Options are everything about an agent that can be chosen. All paths are absolute.
type Options struct {
	RootDir, StateDir, LogDir string
	Socket, CRISocket         string // the agent's API, and the runtime's
	NodeName                  string // the host's name if empty

	// Sources: each may be empty.
	ManifestDirs, ManifestFiles, ManifestURLs []string
	ManifestHeader                            http.Header
	Stdin                                     io.Reader

	// The embedded runtime; Endpoint names an external one instead (unix:///path).
	Endpoint   string
	OCIRuntime string // crun, runc, a path, or empty: the first usable
	Conmon     string
	CertsDir   string

	CgroupRoot   string
	CgroupDriver string // cgroupfs, systemd, or empty: systemd where it runs the host

	CNIConfDirs, CNIBinDirs []string
	Subnets                 []string // of the default pod network

	SeccompDefault bool
	MaxPods        int
	CrashLoopMax   time.Duration
	ParallelPulls  int
	LogMaxSize     int64 // bytes of one container log file
	LogMaxFiles    int

	Version string
	Log     *slog.Logger
}

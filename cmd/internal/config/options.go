package config

import (
	"log/slog"
	"net/http"
	"os"
	"slices"

	"github.com/berthd/berth/cmd/internal/wire"
)

// Options makes of c what the agent is started with. c has been checked.
func (c *Config) Options(log *slog.Logger, version string) wire.Options {
	o := wire.Options{
		RootDir: c.RootDir, StateDir: c.StateDir, LogDir: c.LogDir, Socket: c.AgentSocket(), CRISocket: c.CRISocket(), NodeName: c.NodeName,
		ManifestDirs: c.Manifests.Directories, ManifestURLs: c.Manifests.URLs, ManifestHeader: http.Header{},
		Endpoint: c.Runtime.Endpoint, OCIRuntime: c.Runtime.OCIRuntime, Conmon: c.Runtime.Conmon, CertsDir: c.Runtime.CertsDir,
		CgroupRoot: c.Cgroups.Root, CgroupDriver: c.Cgroups.Driver,
		CNIConfDirs: c.Network.ConfDirs, CNIBinDirs: c.Network.BinDirs, Subnets: c.Network.Subnets,
		SeccompDefault: c.SeccompDefault, MaxPods: c.MaxPods, CrashLoopMax: c.CrashLoopBackOff.Max, ParallelPulls: c.ParallelPulls,
		LogMaxSize: int64(c.ContainerLogs.MaxSize), LogMaxFiles: c.ContainerLogs.MaxFiles,
		Version: version, Log: log,
	}
	for name, value := range c.Manifests.Headers {
		o.ManifestHeader.Set(name, value)
	}
	o.ManifestFiles = slices.DeleteFunc(slices.Clone(c.Manifests.Files), func(f string) bool { return f == stdin })
	if slices.Contains(c.Manifests.Files, stdin) {
		o.Stdin = os.Stdin
	}
	return o
}

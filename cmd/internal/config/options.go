package config

import (
	"log/slog"
	"net/http"
	"os"
	"slices"

	v1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/berthd/berth/cmd/internal/wire"
	"github.com/berthd/berth/cri/ociruntime"
)

// Options makes of c what the agent is started with. c has been checked.
func (c *Config) Options(log *slog.Logger, version string) wire.Options {
	o := wire.Options{
		RootDir: c.RootDir, StateDir: c.StateDir, LogDir: c.LogDir, Socket: c.AgentSocket(), CRISocket: c.CRISocket(), NodeName: c.NodeName,
		ManifestDirs: c.Manifests.Directories, ManifestURLs: c.Manifests.URLs, ManifestHeader: http.Header{},
		Endpoint: c.Runtime.Endpoint, OCIRuntime: c.Runtime.OCIRuntime, Conmon: c.Runtime.Conmon, CertsDir: c.Runtime.CertsDir, ImportDir: c.Runtime.ImportDir,
		CgroupRoot: c.Cgroups.Root, CgroupDriver: c.Cgroups.Driver,
		CNIConfDirs: c.Network.ConfDirs, CNIBinDirs: c.Network.BinDirs, Subnets: c.Network.Subnets,
		NodeLabels: c.NodeLabels, Runtimes: handlers(c.Runtime.Handlers), CDISpecDirs: c.Runtime.CDISpecDirs, ClusterDNS: c.ClusterDNS, ClusterDomain: c.ClusterDomain, ResolvConf: c.ResolvConf,
		NoCPUQuota: !c.CPUCFSQuota, CPUPeriod: c.CPUCFSQuotaPeriod, LimitedSwap: c.MemorySwap.SwapBehavior == limitedSwap,
		SingleProcessOOMKill: c.SingleProcessOOMKill, NoStorageLimits: !c.LocalStorageCapacityIsolation,
		PodPidsLimit: max(int64(c.PodPidsLimit), 0), IDsPerPod: uint32(c.UserNamespaces.IDsPerPod), UnsafeSysctls: c.AllowedUnsafeSysctls,
		Reserved:       reserved(c.SystemReserved, c.KubeReserved),
		SeccompDefault: c.SeccompDefault, MaxPods: c.MaxPods, CrashLoopMax: c.CrashLoopBackOff.Max, ParallelPulls: c.ParallelPulls,
		LogMaxSize: int64(c.ContainerLogs.MaxSize), LogMaxFiles: c.ContainerLogs.MaxFiles,
		Version: version, Log: log,
	}
	for name, value := range c.Manifests.Headers {
		o.ManifestHeader.Set(name, value)
	}
	for _, t := range c.RegisterWithTaints {
		o.Taints = append(o.Taints, v1.Taint{Key: t.Key, Value: t.Value, Effect: v1.TaintEffect(t.Effect)})
	}
	o.ManifestFiles = slices.DeleteFunc(slices.Clone(c.Manifests.Files), func(f string) bool { return f == stdin })
	if slices.Contains(c.Manifests.Files, stdin) {
		o.Stdin = os.Stdin
	}
	return o
}

func handlers(all map[string]Handler) map[string]wire.RuntimeHandler {
	out := map[string]wire.RuntimeHandler{}
	for name, h := range all {
		out[name] = wire.RuntimeHandler{Path: h.Path, Handler: ociruntime.Handler{Name: name, Args: h.Args, Annotations: h.Annotations, Defaults: h.DefaultAnnotations}}
	}
	return out
}

// reserved sums up what is kept from pods. The lists have been checked.
func reserved(lists ...map[string]string) v1.ResourceList {
	sum := v1.ResourceList{}
	for _, l := range lists {
		for name, value := range l {
			q := sum[v1.ResourceName(name)]
			q.Add(resource.MustParse(value))
			sum[v1.ResourceName(name)] = q
		}
	}
	return sum
}
